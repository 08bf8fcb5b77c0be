"""What Prometheus is told of a router."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from packkv.router.holdings import Holdings
from packkv.router.worker import Worker

OUTCOMES = ("answered", "cancelled", "broken", "refused", "no_worker")


class RouterMetrics:
    """Counters of one router, in a registry of their own."""

    def __init__(self, workers: Sequence[Worker], holdings: Sequence[Holdings]) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"packkv_router_{name}", text, labels, registry=registry)

        self.requests = counter("requests", "Requests by outcome", "outcome")
        self.sent = counter("sent_requests", "Requests sent, by worker", "worker")
        self.retries = counter("retries", "Requests that another worker was sent as well")
        self.unnamed = counter("unnamed_requests", "Requests whose blocks no worker named in time")
        self.blocks = counter("blocks", "Blocks of requests")
        self.held = counter("held_blocks", "Of those, held where the request was sent")
        # a label that never occurred shows as zero, not as missing
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        for worker in workers:
            self.sent.labels(worker.url)
        registry.register(_Present(workers, holdings))


class _Present(Collector):
    """What is the case now, read at every scrape."""

    def __init__(self, workers: Sequence[Worker], holdings: Sequence[Holdings]) -> None:
        self._workers = workers
        self._holdings = holdings

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily(
            "packkv_router_worker_up", "Whether a worker is ready", labels=["worker"]
        )
        running = GaugeMetricFamily(
            "packkv_router_under_way_requests", "Sent and not answered", labels=["worker"]
        )
        for worker in self._workers:
            up.add_metric([worker.url], worker.is_up)
            running.add_metric([worker.url], worker.under_way)
        followed = GaugeMetricFamily(
            "packkv_router_followed_blocks", "Blocks known of a store", labels=["store"]
        )
        for one in self._holdings:
            followed.add_metric([one.store], len(one))
        yield from (up, running, followed)

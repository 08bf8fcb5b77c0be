"""What Prometheus is told of a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from packkv.prefix_cache import Counters

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.5, 5)
OUTCOMES = ("ok", "cancelled", "late", "draining", "failed", "refused")


class WorkerMetrics:
    """Counters and histograms of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "packkv_worker_requests", "Requests by outcome", ["outcome"], registry=registry
        )
        # a label that never occurred shows as zero, not as missing
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        self.prompt_tokens = Counter(
            "packkv_worker_prompt_tokens", "Tokens of prompts", registry=registry
        )
        self.cached_tokens = Counter(
            "packkv_worker_cached_tokens",
            "Tokens of prompts that came from the store or from this worker's pages",
            registry=registry,
        )
        self.generated_tokens = Counter(
            "packkv_worker_generated_tokens", "Tokens of answers", registry=registry
        )
        self.first_token = Histogram(
            "packkv_worker_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "packkv_worker_inter_token_seconds",
            "From a token to the next of the same answer",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self.queued = Histogram(
            "packkv_worker_queued_seconds",
            "From a request's arrival to its turn",
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(
            "packkv_worker_waiting_requests", "Requests in the queue", registry=registry
        )
        self.running = Gauge(
            "packkv_worker_running_requests", "Requests being answered", registry=registry
        )

    def follow_store(self, counters: Callable[[], Counters]) -> None:
        """Also tell what the store was good for, read at every scrape."""
        self.registry.register(_StoreCounters(counters))


class _StoreCounters(Collector):
    """The prefix cache's own counters."""

    def __init__(self, counters: Callable[[], Counters]) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        found = self._counters()
        plain = {
            "loads": ("Loads of a prefix from the store", found.loads),
            "hit_tokens": ("Tokens that came from the store", found.hit_tokens),
            "fetched_bytes": ("Payload bytes received", found.fetched_bytes),
            "published_blocks": ("Blocks that the store took", found.published_blocks),
            "published_bytes": ("Their payload bytes", found.published_bytes),
            "published_cold": ("Those of them that went in cold form", found.published_cold),
            "loaded_cold": ("Blocks that came in cold form", found.loaded_cold),
        }
        for name, (text, value) in plain.items():
            yield CounterMetricFamily(f"packkv_worker_store_{name}", text, value=value)
        for name, text, counts in (
            ("misses", "Loads that ended early, by reason", found.misses),
            ("dropped_blocks", "Blocks that were not published, by reason", found.dropped_blocks),
        ):
            family = CounterMetricFamily(f"packkv_worker_store_{name}", text, labels=["reason"])
            for reason, count in counts.items():
                family.add_metric([reason], count)
            yield family

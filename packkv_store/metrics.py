"""Counts what the store does, from around it, and says so to Prometheus."""

import asyncio
import time
from collections import Counter as Counts
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from packkv_store.block import ChainHash, Span
from packkv_store.pace import Pace
from packkv_store.store import Downloading, Uploading
from packkv_store.store.answers import (
    BlockAnswer,
    Listed,
    Located,
    Match,
    MissReason,
    PutResult,
    PutStatus,
    StoreStats,
    Tally,
)
from packkv_store.store.forwarding import ForwardingStore, ForwardingUpload
from packkv_store.store.layout import Layout
from packkv_store.tenant import Tenant

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class CallMetrics:
    """Everything that is counted of calls."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.matched = counter("packkv_matched_blocks", "Blocks that Match found")
        self.hits = counter("packkv_hits", "Blocks that Get served")
        self.misses = counter("packkv_misses", "Matches cut short, blocks Get missed", "reason")
        self.puts = counter("packkv_put_blocks", "Blocks put, by what became of them", "status")
        self.received = counter("packkv_received_bytes", "Payload bytes of blocks put")
        self.sent = counter("packkv_sent_bytes", "Payload bytes sent by Get")
        self.seconds = Histogram(
            "packkv_call_seconds", "Time in the store", ["call"], buckets=SECONDS, registry=registry
        )
        # a label that never occurred shows as zero, not as missing
        for reason in MissReason:
            self.misses.labels(reason.value)
        for status in PutStatus:
            self.puts.labels(status.name.lower())

    @contextmanager
    def timed(self, call: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds.labels(call).observe(time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class MeteredStore(ForwardingStore):
    """A store that behaves as the one inside and counts what it answers."""

    registry: CollectorRegistry
    calls: CallMetrics

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        with self.calls.timed("match"):
            found = await self.inner.match(tenant, hashes, heads, lease_seconds)
        self.calls.matched.inc(len(found.lengths))
        if found.miss is not None:
            self.calls.misses.labels(found.miss.value).inc()
        return found

    @asynccontextmanager
    async def put(self, tenant: Tenant) -> AsyncIterator[Uploading]:
        with self.calls.timed("put"):
            async with self.inner.put(tenant) as upload:
                yield MeteredUpload(upload, self.calls)

    @asynccontextmanager
    async def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AsyncIterator[Downloading]:
        with self.calls.timed("get"):
            async with self.inner.get(tenant, hashes, layers, heads) as download:
                self._count(answer.miss for answer in download.answers)
                yield MeteredDownload(download, self.calls)

    async def locate(
        self,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        layers: Span,
        heads: Span,
        lease_seconds: float,
    ) -> Located:
        with self.calls.timed("locate"):
            located = await self.inner.locate(tenant, hashes, layers, heads, lease_seconds)
        here = [place for place in located.places if place.offset is not None]
        # one that is elsewhere is counted when it is fetched there
        self._count(one.miss for one in located.places if one.miss or one.offset is not None)
        if located.extents is None:
            self.calls.sent.inc(sum(place.length for place in here))
        else:
            self.calls.sent.inc(int(located.extents[:, 2].sum()))
        return located

    async def renew(self, tenant: Tenant, lease_id: int, seconds: float) -> float:
        with self.calls.timed("renew"):
            return await self.inner.renew(tenant, lease_id, seconds)

    async def release(self, tenant: Tenant, lease_id: int) -> None:
        with self.calls.timed("release"):
            await self.inner.release(tenant, lease_id)

    async def put_profile(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        with self.calls.timed("put_profile"):
            return await self.inner.put_profile(tenant, digest, profile)

    async def get_profile(self, tenant: Tenant, digest: bytes) -> bytes | None:
        with self.calls.timed("get_profile"):
            return await self.inner.get_profile(tenant, digest)

    async def clear(self, root_hash: bytes | None) -> tuple[int, int]:
        with self.calls.timed("clear"):
            return await self.inner.clear(root_hash)

    async def set_lifetime(self, root_hash: bytes, seconds: float | None) -> None:
        with self.calls.timed("set_lifetime"):
            await self.inner.set_lifetime(root_hash, seconds)

    async def page(self, tenant: Tenant, after: bytes, limit: int) -> list[Listed]:
        with self.calls.timed("list"):
            return await self.inner.page(tenant, after, limit)

    async def stats(self) -> StoreStats:
        stats = await self.inner.stats()
        return replace(stats, counters=_counters(self.registry, stats.tally))

    def _count(self, misses: Iterable[MissReason | None]) -> None:
        """Hits (None) and misses of a call."""
        for miss, count in Counts(misses).items():
            if miss is None:
                self.calls.hits.inc(count)
            else:
                self.calls.misses.labels(miss.value).inc(count)


@dataclass(frozen=True, slots=True)
class MeteredUpload(ForwardingUpload):
    """Counts what becomes of the blocks of one Put."""

    calls: CallMetrics

    async def finish(self) -> list[PutResult]:
        results = await self.inner.finish()
        # a lock each time: once for thousands of blocks, not for each
        for status, count in Counts(result.status for result in results).items():
            self.calls.puts.labels(status.name.lower()).inc(count)
        self.calls.received.inc(sum(result.length for result in results))
        return results


@dataclass(frozen=True, slots=True)
class MeteredDownload:
    """Counts the bytes of one Get."""

    inner: Downloading
    calls: CallMetrics

    @property
    def answers(self) -> Sequence[BlockAnswer]:
        return self.inner.answers

    async def layout(self, groups: int) -> Layout:
        return await self.inner.layout(groups)

    async def runs(self, layout: Layout) -> AsyncIterator[list[memoryview]]:
        sent = 0
        try:
            async for run in self.inner.runs(layout):
                sent += sum(map(len, run))
                yield run
        finally:
            self.calls.sent.inc(sent)


class PaceCollector:
    """What the tenants with a rate have moved and how long they have waited for it. Tenants are
    configured, so there are not many labels."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def collect(self) -> Iterator[Metric]:
        labels = ["tenant", "call"]
        moved, waited, refused = (
            CounterMetricFamily(f"packkv_paced_{name}", text, labels=labels)
            for name, text in (
                ("bytes", "Payload bytes that tenants with a rate have moved"),
                ("seconds", "Time that their calls have waited for their turn"),
                ("refusals", "Calls of theirs that would have waited for too long"),
            )
        )
        for tenant, call, bucket in self._pace.buckets():
            moved.add_metric([tenant, call], bucket.moved_bytes)
            waited.add_metric([tenant, call], bucket.waited_seconds)
            refused.add_metric([tenant, call], bucket.refused_calls)
        yield from (moved, waited, refused)


class StoreCollector:
    """All metrics of a node for an exposition that runs in another thread."""

    def __init__(self, store: MeteredStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        # the store's state belongs to its event loop
        asked = asyncio.run_coroutine_threadsafe(self._store.inner.stats(), self._loop)
        stats = asked.result(timeout=10)
        yield from self._store.registry.collect()
        yield from _tally_metrics(stats.tally)
        yield from _state_metrics(stats)


def _tally_metrics(tally: Tally) -> Iterator[Metric]:
    by_tier = {
        "packkv_evictions": ("Blocks evicted to make room", tally.evicted),
        "packkv_corrupt_blocks": ("Blocks found corrupt and quarantined", tally.corrupt),
        "packkv_tier_failures": ("Transfers that the system refused", tally.failures),
    }
    for name, (text, counts) in by_tier.items():
        family = CounterMetricFamily(name, text, labels=["tier"])
        for tier, count in counts.items():
            family.add_metric([tier.value], count)
        yield family
    totals = {
        "packkv_promotions": ("Blocks brought from disk into RAM", tally.promoted),
        "packkv_expired_blocks": ("Blocks past their lifetime", tally.expired),
        "packkv_recovered_blocks": ("Blocks found on disk at the start", tally.recovered),
        "packkv_pulled_blocks": ("Blocks brought here from other nodes", tally.pulled),
        "packkv_pull_failures": ("Blocks that no node delivered", tally.pull_failures),
        "packkv_replicas": ("Copies of put blocks that other nodes have taken", tally.replicas),
        "packkv_replicas_dropped": ("Copies that were not made", tally.replicas_dropped),
        "packkv_watch_resets": ("Watchers that fell behind and began again", tally.watch_resets),
    }
    for name, (text, count) in totals.items():
        yield CounterMetricFamily(name, text, value=count)


def _state_metrics(stats: StoreStats) -> Iterator[Metric]:
    blocks = GaugeMetricFamily("packkv_tier_blocks", "Blocks in a tier", labels=["tier"])
    used = GaugeMetricFamily("packkv_tier_used_bytes", "Bytes taken in a tier", labels=["tier"])
    room = GaugeMetricFamily("packkv_tier_capacity_bytes", "Bytes a tier has", labels=["tier"])
    cold = GaugeMetricFamily("packkv_tier_cold_blocks", "Those in cold form", labels=["tier"])
    taken = GaugeMetricFamily("packkv_tier_cold_bytes", "Bytes those take", labels=["tier"])
    for tier in stats.tiers:
        blocks.add_metric([tier.name.value], tier.blocks)
        used.add_metric([tier.name.value], tier.used_bytes)
        room.add_metric([tier.name.value], tier.capacity_bytes)
        cold.add_metric([tier.name.value], tier.cold_blocks)
        taken.add_metric([tier.name.value], tier.cold_bytes)
    yield from (blocks, used, room, cold, taken)
    yield GaugeMetricFamily("packkv_blocks", "Distinct blocks of this node", stats.blocks)
    yield GaugeMetricFamily("packkv_index_up", "Whether the index answers", int(stats.index_up))
    yield GaugeMetricFamily("packkv_leases", "Leases that are in force", stats.leases)
    yield GaugeMetricFamily("packkv_watchers", "Streams of changes that are open", stats.watchers)


def _counters(registry: CollectorRegistry, tally: Tally) -> dict[str, int]:
    """Every counter by its exposed name: `packkv_misses_total{reason="absent"}`."""
    counters = {}
    for metric in [*registry.collect(), *_tally_metrics(tally)]:
        for sample in metric.samples if metric.type == "counter" else ():
            if sample.name.endswith("_total"):
                labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
                counters[sample.name + (f"{{{labels}}}" if labels else "")] = int(sample.value)
    return counters

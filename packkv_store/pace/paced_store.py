"""Has the calls of a tenant that moves payloads faster than it may wait, from around the store."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate

from packkv_store.block import ChainHash, Span
from packkv_store.clock import Clock
from packkv_store.pace.bucket import Bucket
from packkv_store.store import Downloading, Uploading
from packkv_store.store.answers import (
    BlockAnswer,
    Located,
    Match,
    StoreStats,
)
from packkv_store.store.forwarding import ForwardingStore, ForwardingUpload
from packkv_store.store.layout import Layout
from packkv_store.tenant import Tenant


class Pace:
    """The buckets of the tenants that have a rate. A tenant's are its own: nobody else waits."""

    def __init__(self, tenants: Sequence[Tenant], clock: Clock) -> None:
        self._names = {one.tag: one.name for one in tenants}
        self._put = {
            one.tag: Bucket("put_rate", one.put_rate, one.burst or one.put_rate, clock)
            for one in tenants
            if one.put_rate
        }
        self._get = {
            one.tag: Bucket("get_rate", one.get_rate, one.burst or one.get_rate, clock)
            for one in tenants
            if one.get_rate
        }

    def put(self, tenant: Tenant) -> Bucket | None:
        """For what the tenant puts; None: without a limit."""
        return self._put.get(tenant.tag)

    def get(self, tenant: Tenant) -> Bucket | None:
        """For what the tenant gets; None: without a limit."""
        return self._get.get(tenant.tag)

    def buckets(self) -> Iterator[tuple[str, str, Bucket]]:
        """Every bucket, with its tenant's name and the call that it is for."""
        for call, buckets in (("put", self._put), ("get", self._get)):
            for tag, bucket in buckets.items():
                yield self._names[tag], call, bucket


@dataclass(frozen=True, slots=True)
class PacedStore(ForwardingStore):
    """A store that behaves as the one inside, no faster than each tenant may.

    Who is too fast waits, within the time that a stream may be open, or is told at once that this
    would not be enough. Nodes do not go through this among themselves: a block that one pulls for a
    caller counts where the caller gets it.
    """

    pace: Pace
    clock: Clock
    stream_seconds: float

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        return await self.inner.match(tenant, hashes, heads, lease_seconds)

    def put(self, tenant: Tenant) -> AbstractAsyncContextManager[Uploading]:
        bucket = self.pace.put(tenant)
        return self.inner.put(tenant) if bucket is None else self._put(tenant, bucket)

    def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AbstractAsyncContextManager[Downloading]:
        inner = self.inner.get(tenant, hashes, layers, heads)
        bucket = self.pace.get(tenant)
        return inner if bucket is None else self._get(inner, bucket)

    async def locate(
        self,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        layers: Span,
        heads: Span,
        lease_seconds: float,
    ) -> Located:
        located = await self.inner.locate(tenant, hashes, layers, heads, lease_seconds)
        bucket = self.pace.get(tenant)
        if bucket is None:
            return located
        size = _size(located)
        if bucket.take_at_once(size):
            return located
        # its reader is not kept waiting with a lease that runs out meanwhile, and after as long as
        # it wants one for, there is no reader
        await self.inner.release(tenant, located.lease_id)
        patience = min(lease_seconds, self.stream_seconds)
        await bucket.take(size, self.clock.monotonic() + patience)
        try:
            located = await self.inner.locate(tenant, hashes, layers, heads, lease_seconds)
        except BaseException:
            bucket.give_back(size)
            raise
        bucket.give_back(size - _size(located))
        return located

    async def renew(self, tenant: Tenant, lease_id: int, seconds: float) -> float:
        return await self.inner.renew(tenant, lease_id, seconds)

    async def release(self, tenant: Tenant, lease_id: int) -> None:
        await self.inner.release(tenant, lease_id)

    async def put_profile(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        return await self.inner.put_profile(tenant, digest, profile)

    async def get_profile(self, tenant: Tenant, digest: bytes) -> bytes | None:
        return await self.inner.get_profile(tenant, digest)

    async def stats(self) -> StoreStats:
        return await self.inner.stats()

    @asynccontextmanager
    async def _put(self, tenant: Tenant, bucket: Bucket) -> AsyncIterator[Uploading]:
        ends_at = self.clock.monotonic() + self.stream_seconds
        async with self.inner.put(tenant) as upload:
            yield PacedUpload(upload, bucket, ends_at)

    @asynccontextmanager
    async def _get(
        self, inner: AbstractAsyncContextManager[Downloading], bucket: Bucket
    ) -> AsyncIterator[Downloading]:
        ends_at = self.clock.monotonic() + self.stream_seconds
        async with inner as download:
            yield PacedDownload(download, bucket, ends_at)


@dataclass(frozen=True, slots=True)
class PacedUpload(ForwardingUpload):
    """One Put. Bytes that have come wait before they are taken in, which holds up their sender;
    a place for bytes is given when it is their turn to come."""

    bucket: Bucket
    ends_at: float

    async def data(self, piece: memoryview) -> None:
        await self.bucket.take(len(piece), self.ends_at)
        await self.inner.data(piece)

    async def reserve(self, blocks: Sequence[tuple[ChainHash, int]]) -> list[memoryview | None]:
        sizes = accumulate(length for _, length in blocks)
        # few at a time, so that others have a turn and bytes come as steadily as they may
        count = max(1, sum(size <= self.bucket.instalment for size in sizes))
        places = await self.inner.reserve(blocks[:count])
        # only then is it known which of them are wanted; if this fails the stream gives them back
        await self.bucket.take(sum(len(one) for one in places if one is not None), self.ends_at)
        return places


@dataclass(frozen=True, slots=True)
class PacedDownload:
    """One Get, whose bytes are given when it is their turn."""

    inner: Downloading
    bucket: Bucket
    ends_at: float

    @property
    def answers(self) -> Sequence[BlockAnswer]:
        return self.inner.answers

    async def layout(self, groups: int) -> Layout:
        """As of the one inside. Raises RateExceeded when so many bytes would take too long."""
        layout = await self.inner.layout(groups)
        size = sum(int(group.extents[:, 2].sum(dtype="u8")) for group in layout)
        self.bucket.check(size, self.ends_at)
        return layout

    async def runs(self, layout: Layout) -> AsyncIterator[list[memoryview]]:
        async for run in self.inner.runs(layout):
            for piece in _pieces(run, self.bucket.instalment):
                await self.bucket.take(sum(map(len, piece)), self.ends_at)
                yield piece


def _pieces(run: Sequence[memoryview], size: int) -> Iterator[list[memoryview]]:
    """The views in pieces of at most `size` bytes, unless one view is larger."""
    piece: list[memoryview] = []
    left = size
    for view in run:
        if piece and len(view) > left:
            yield piece
            piece, left = [], size
        piece.append(view)
        left -= len(view)
    if piece:
        yield piece


def _size(located: Located) -> int:
    """How many bytes its reader may read."""
    if located.extents is not None:
        return int(located.extents[:, 2].sum(dtype="u8"))
    return sum(place.length for place in located.places if place.offset is not None)

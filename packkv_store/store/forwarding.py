"""Layers around a store: what each of them leaves as it is."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from packkv_store.block import ChainHash
from packkv_store.store import Store, Uploading
from packkv_store.store.answers import Changes, LifetimesInForce, Listed, PutResult
from packkv_store.store.verdict import Verdict
from packkv_store.tenant import Tenant
from packkv_store.tiers.ram import RamTier


@dataclass(frozen=True, slots=True)
class ForwardingStore:
    """The calls of a store that concern no layer around it: each is the inner store's."""

    inner: Store

    def arena(self, tenant: Tenant) -> RamTier:
        return self.inner.arena(tenant)

    async def clear(self, root_hash: bytes | None) -> tuple[int, int]:
        return await self.inner.clear(root_hash)

    async def set_lifetime(self, root_hash: bytes, seconds: float | None) -> None:
        await self.inner.set_lifetime(root_hash, seconds)

    async def lifetimes(self) -> LifetimesInForce:
        return await self.inner.lifetimes()

    async def page(self, tenant: Tenant, after: bytes, limit: int) -> list[Listed]:
        return await self.inner.page(tenant, after, limit)

    def watch(self, tenant: Tenant, snapshot: bool) -> AsyncGenerator[Changes, None]:
        return self.inner.watch(tenant, snapshot)


@dataclass(frozen=True, slots=True)
class ForwardingUpload:
    """One Put that is the inner one's."""

    inner: Uploading

    async def start(self, chain_hash: ChainHash, length: int) -> None:
        await self.inner.start(chain_hash, length)

    async def data(self, piece: memoryview) -> None:
        await self.inner.data(piece)

    async def reserve(self, blocks: Sequence[tuple[ChainHash, int]]) -> list[memoryview | None]:
        return await self.inner.reserve(blocks)

    def filled(self, count: int, verdicts: Sequence[Verdict | None] = ()) -> None:
        self.inner.filled(count, verdicts)

    async def finish(self) -> list[PutResult]:
        return await self.inner.finish()

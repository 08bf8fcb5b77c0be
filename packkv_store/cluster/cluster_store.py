"""A store that also has what other nodes have. To its callers it is one store."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from packkv_store.block import ChainHash, Span, TierName, block_key
from packkv_store.cluster import PeerFailure, PeerMatch, Peers
from packkv_store.cluster.borrowed import Borrowed, BorrowedLeases
from packkv_store.cluster.plan import Part, runs_from
from packkv_store.cluster.puller import Puller
from packkv_store.cluster.shared_profiles import SharedProfiles
from packkv_store.index import Index
from packkv_store.store.answers import Listed, Located, Match, MissReason, StoreStats
from packkv_store.store.block_store import BlockStore
from packkv_store.store.download import Download
from packkv_store.store.upload import Upload
from packkv_store.tenant import Tenant
from packkv_store.tiers.ram import RamTier

# Nodes that fall short of what the index says are asked no more; others take their place so often.
ROUNDS = 2


@dataclass(slots=True)
class Run:
    """A run of blocks, here and elsewhere, while it is put together."""

    lengths: list[int]
    tiers: list[TierName]
    miss: MissReason | None
    behind: list[Borrowed]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStore:
    """What is not here is looked for in the index, asked of its owners, and pulled when it is
    wanted. Whatever goes wrong elsewhere makes a miss."""

    inner: BlockStore
    index: Index
    peers: Peers
    puller: Puller
    profiles: SharedProfiles
    # leases that are older than the last so many are not renewed at the other nodes
    borrowed: BorrowedLeases

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        here = await self.inner.match(tenant, hashes, heads, lease_seconds)
        if here.miss is not MissReason.ABSENT:
            return here
        run = Run(list(here.lengths), list(here.tiers), here.miss, [])
        await self._extend(run, tenant, hashes, heads, lease_seconds)
        if len(run.lengths) == len(here.lengths):
            return replace(here, miss=run.miss)
        # one lease over all of it: blocks that are not here yet are held as soon as they come
        leases = self.inner.leases
        keys = [block_key(tenant.tag, one) for one in hashes[: len(run.lengths)]]
        lease_id, granted = leases.grant(tenant.tag, keys, lease_seconds)
        self.borrowed.put(lease_id, run.behind)
        leases.release(tenant.tag, here.lease_id)
        miss = run.miss if len(run.lengths) < len(hashes) else None
        return Match(run.lengths, run.tiers, lease_id, granted, miss)

    def put(self, tenant: Tenant) -> AbstractAsyncContextManager[Upload]:
        return self.inner.put(tenant)

    @asynccontextmanager
    async def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AsyncIterator[Download]:
        await self._pull_missing(tenant, hashes)
        async with self.inner.get(tenant, hashes, layers, heads) as download:
            yield download

    async def locate(
        self,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        layers: Span,
        heads: Span,
        lease_seconds: float,
    ) -> Located:
        await self._pull_missing(tenant, hashes)
        return await self.inner.locate(tenant, hashes, layers, heads, lease_seconds)

    def arena(self, tenant: Tenant) -> RamTier:
        return self.inner.arena(tenant)

    async def renew(self, tenant: Tenant, lease_id: int, seconds: float) -> float:
        left = await self.inner.renew(tenant, lease_id, seconds)
        if left > 0:
            for address, behind in self.borrowed.behind(lease_id):
                self._tell(self.peers.renew(address, tenant, behind, left))
        return left

    async def release(self, tenant: Tenant, lease_id: int) -> None:
        await self.inner.release(tenant, lease_id)
        for address, behind in self.borrowed.pop(lease_id):
            self._tell(self.peers.release(address, tenant, behind))

    async def put_profile(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        return await self.profiles.put(tenant, digest, profile)

    async def get_profile(self, tenant: Tenant, digest: bytes) -> bytes | None:
        return await self.profiles.get(tenant, digest)

    async def clear(self, root_hash: bytes | None) -> tuple[int, int]:
        return await self.inner.clear(root_hash)

    async def page(self, tenant: Tenant, after: bytes, limit: int) -> list[Listed]:
        return await self.inner.page(tenant, after, limit)

    async def stats(self) -> StoreStats:
        return replace(await self.inner.stats(), index_up=self.index.is_up)

    async def _extend(
        self,
        run: Run,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        heads: Span,
        lease_seconds: float,
    ) -> None:
        start = len(run.lengths)
        keys = [block_key(tenant.tag, one) for one in hashes[start:]]
        located = await self.index.locate(keys)
        short: set[str] = set()
        for _ in range(ROUNDS):
            first = len(run.lengths) - start
            parts = runs_from(located, first, short)
            asked = [
                self._ask(part, tenant, hashes[start + part.first : start + part.end], heads,
                          lease_seconds)
                for part in parts
            ]  # fmt: skip
            found = await asyncio.gather(*asked)
            if not self._join(run, parts, found, short):
                return

    def _join(
        self,
        run: Run,
        parts: Sequence[Part],
        found: Sequence[tuple[str, PeerMatch]],
        short: set[str],
    ) -> bool:
        """Takes over what was found up to the first gap; answers whether others may fill it."""
        has_gap = False
        for part, (address, match) in zip(parts, found, strict=True):
            if match.lease_id:
                run.behind.append(Borrowed(address, match.lease_id))
            if has_gap:
                continue
            run.lengths += match.lengths
            run.tiers += match.tiers
            has_gap = len(match.lengths) < part.end - part.first
            if has_gap:
                run.miss = match.miss
                short.add(part.node)
        return has_gap

    async def _ask(
        self,
        part: Part,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        heads: Span,
        lease_seconds: float,
    ) -> tuple[str, PeerMatch]:
        if part.node == self.inner.node:
            # behind a gap that others fill, there may be blocks of this node again
            own = await self.inner.match(tenant, hashes, heads, 0.0)
            return "", PeerMatch(own.lengths, own.tiers, own.miss, 0)
        address = self.index.address(part.node)
        nothing = PeerMatch([], [], MissReason.ABSENT, 0)
        if address is None:
            return "", nothing
        try:
            return address, await self.peers.match(address, tenant, hashes, heads, lease_seconds)
        except PeerFailure:
            return address, nothing

    async def _pull_missing(self, tenant: Tenant, hashes: Sequence[ChainHash]) -> None:
        residents = self.inner.residents
        missing = [
            chain_hash
            for chain_hash in dict.fromkeys(hashes)
            if residents.find_held(block_key(tenant.tag, chain_hash)) is None
        ]
        if missing:
            await self.puller.pull(tenant, missing)

    def _tell(self, message: Coroutine[Any, Any, None]) -> None:
        async def tell() -> None:
            with suppress(PeerFailure):
                await message

        self.inner.residents.tasks.begin(tell())

"""A store that also has what other nodes have. To its callers it is one store."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from packkv_store.block import ChainHash, Span, TierName, block_key, block_keys
from packkv_store.cluster import PeerFailure, PeerMatch, Peers
from packkv_store.cluster.borrowed import Borrowed, BorrowedLeases
from packkv_store.cluster.coming import Coming
from packkv_store.cluster.plan import Part, runs_from
from packkv_store.cluster.puller import Puller
from packkv_store.cluster.relay import Passing, Relay
from packkv_store.cluster.replicas import CopiedUpload, Replicas
from packkv_store.cluster.shared_profiles import SharedProfiles
from packkv_store.errors import Interrupted, PayloadError
from packkv_store.index import Index
from packkv_store.store import Downloading, Uploading
from packkv_store.store.answers import (
    Located,
    Match,
    MissReason,
    StoreStats,
)
from packkv_store.store.block_store import BlockStore
from packkv_store.store.forwarding import ForwardingStore
from packkv_store.tenant import Tenant

# Nodes that fall short of what the index says are asked no more; others take their place so often.
ROUNDS = 2


@dataclass(slots=True)
class Run:
    """A run of blocks, here and elsewhere, while it is put together."""

    lengths: list[int]
    tiers: list[TierName]
    owners: list[str]
    miss: MissReason | None
    behind: list[Borrowed]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStore(ForwardingStore):
    """What is not here is looked for in the index, asked of its owners, and pulled when it is
    wanted. Whatever goes wrong elsewhere makes a miss."""

    inner: BlockStore
    index: Index
    peers: Peers
    puller: Puller
    profiles: SharedProfiles
    # leases that are older than the last so many are not renewed at the other nodes
    borrowed: BorrowedLeases
    # tenants that have called, by tag, in whose name other nodes can be asked later
    callers: dict[bytes, Tenant]
    # None: what is put here is copied nowhere
    replicas: Replicas | None

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        self.callers[tenant.tag] = tenant
        here = await self.inner.match(tenant, hashes, heads, lease_seconds)
        if here.miss is not MissReason.ABSENT:
            return here
        run = Run(list(here.lengths), list(here.tiers), [""] * len(here.lengths), here.miss, [])
        await self._extend(run, tenant, hashes, heads, lease_seconds)
        if len(run.lengths) == len(here.lengths):
            return replace(here, miss=run.miss)
        # one lease over all of it: blocks that are not here yet are held as soon as they come
        leases = self.inner.leases
        keys = block_keys(tenant.tag, hashes[: len(run.lengths)])
        lease_id, granted = leases.grant(tenant.tag, keys, lease_seconds)
        self.borrowed.put(lease_id, run.behind)
        leases.release(tenant.tag, here.lease_id)
        miss = run.miss if len(run.lengths) < len(hashes) else None
        return Match(run.lengths, run.tiers, lease_id, granted, miss, run.owners)

    @asynccontextmanager
    async def put(self, tenant: Tenant) -> AsyncIterator[Uploading]:
        self.callers[tenant.tag] = tenant
        async with self.inner.put(tenant) as upload:
            copies = self.replicas
            yield upload if copies is None else CopiedUpload(upload, tenant, copies)

    @asynccontextmanager
    async def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AsyncIterator[Downloading]:
        passing = await self._begin_pulling(tenant, hashes)
        async with (
            # so that what has come stays until it has been passed on
            self.inner.residents.holding(block_keys(tenant.tag, passing)),
            self.inner.get(tenant, hashes, layers, heads) as download,
        ):
            coming = {
                number: passing[chain_hash]
                for number, chain_hash in enumerate(hashes)
                if download.answers[number].miss is MissReason.ABSENT and chain_hash in passing
            }
            try:
                yield Relay(download, coming) if coming else download
            except Interrupted:
                for chain_hash in passing:
                    self.puller.doubt(tenant, chain_hash)
                raise

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
        keys = block_keys(tenant.tag, hashes[start:])
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
            run.owners += [address] * len(match.lengths)
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
        missing = self._missing(tenant, hashes)
        if missing:
            await self.puller.pull(tenant, missing)

    async def _begin_pulling(
        self, tenant: Tenant, hashes: Sequence[ChainHash]
    ) -> dict[ChainHash, Passing]:
        """As `_pull_missing`, but for the blocks that can be passed on while they come."""
        missing = self._missing(tenant, hashes)
        if not missing:
            return {}
        coming = await self.puller.begin(tenant, missing)
        opened = await asyncio.gather(*map(_opened, coming.values()))
        passing = {one.coming.chain_hash: one for one in opened if one is not None}
        await self.puller.settled(tenant, [one for one in missing if one not in passing])
        return passing

    def _missing(self, tenant: Tenant, hashes: Sequence[ChainHash]) -> list[ChainHash]:
        residents = self.inner.residents
        return [
            chain_hash
            for chain_hash in dict.fromkeys(hashes)
            if residents.find_held(block_key(tenant.tag, chain_hash)) is None
        ]

    def _tell(self, message: Coroutine[Any, Any, None]) -> None:
        async def tell() -> None:
            with suppress(PeerFailure):
                await message

        self.inner.residents.tasks.begin(tell())


async def _opened(coming: Coming) -> Passing | None:
    """None when it does not come, or is something else than the block."""
    try:
        return Passing(coming, *await coming.head())
    except (Interrupted, PayloadError):
        return None

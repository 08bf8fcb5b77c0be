"""The store of one node: its parts, and what each call makes of them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter

import numpy as np

from packkv_store.block import BlockKey, ChainHash, Span, block_keys, chain_hash_of
from packkv_store.clock import Clock
from packkv_store.events import MAX_BATCH
from packkv_store.lease import LeaseTable
from packkv_store.lifetimes import Lifetimes
from packkv_store.profiles import Profiles
from packkv_store.store.answers import (
    BlockAnswer,
    Changes,
    LifetimesInForce,
    Listed,
    Located,
    Match,
    MissReason,
    Place,
    StoreStats,
)
from packkv_store.store.block_table import Block
from packkv_store.store.download import Download, open_sources
from packkv_store.store.layout import Extents, Part, lay_out
from packkv_store.store.promotion import Promotion
from packkv_store.store.residents import Residents
from packkv_store.store.shelf import KEY
from packkv_store.store.threads import Run
from packkv_store.store.upload import Upload
from packkv_store.tenant import Tenant
from packkv_store.tiers.extents import Extent
from packkv_store.tiers.ram import RamTier

LENGTH: Callable[[Block], int] = attrgetter("length")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStore:
    """The domain behind the RPCs. All its state belongs to one event loop; threads only ever see
    bytes that are held for them."""

    node: str
    version: str
    clock: Clock
    started_at: float
    leases: LeaseTable
    residents: Residents
    promotion: Promotion
    profiles: Profiles
    own_lifetimes: Lifetimes
    run: Run
    max_block_bytes: int
    max_blocks: int
    sync: bool

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        keys = block_keys(tenant.tag, hashes)
        blocks, miss = self._run_of(keys, heads)
        matched = list(map(KEY, blocks))
        lease_id, granted = self.leases.grant(tenant.tag, matched, lease_seconds)
        self.residents.use_run(blocks)
        if blocks and len(blocks) < len(keys):
            self.residents.table.expect(keys[len(blocks)], blocks[-1].key)
        tiers = self.residents.fastest(tenant.tag, blocks)
        return Match(list(map(LENGTH, blocks)), tiers, lease_id, granted, miss)

    def put(self, tenant: Tenant) -> AbstractAsyncContextManager[Upload]:
        return self._taking(tenant, self.sync)

    def take_over(self, tenant: Tenant) -> AbstractAsyncContextManager[Upload]:
        """As `put`, for copies of what another node has: a power cut may have them."""
        return self._taking(tenant, sync=False)

    @asynccontextmanager
    async def _taking(self, tenant: Tenant, sync: bool) -> AsyncIterator[Upload]:
        upload = Upload(
            self.residents,
            self.arena(tenant),
            self.run,
            tenant,
            self.residents.moment(tenant.tag),
            self.max_block_bytes,
            self.max_blocks,
            sync,
        )
        try:
            yield upload
        finally:
            upload.abandon()

    @asynccontextmanager
    async def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AsyncIterator[Download]:
        keys = block_keys(tenant.tag, hashes)
        found = [self.residents.find_held(key) for key in keys]
        wanted = [b if b is not None and b.covers_heads(heads) else None for b in found]
        blocks = [block for block in wanted if block is not None]
        async with self.residents.holding([block.key for block in blocks]):
            self.residents.use(blocks)
            await self.promotion.promote(blocks)
            sources = await open_sources(wanted, self.residents, self.run)
            answers = [_answer(was, now) for was, now in zip(found, wanted, strict=True)]
            yield Download(answers, sources, layers, heads, self.residents, self.run)

    async def locate(
        self,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        layers: Span,
        heads: Span,
        lease_seconds: float,
    ) -> Located:
        keys = block_keys(tenant.tag, hashes)
        found = [self.residents.find_held(key) for key in keys]
        wanted = [b if b is not None and b.covers_heads(heads) else None for b in found]
        blocks = [block for block in wanted if block is not None]
        held = [block.key for block in blocks]
        lease_id, granted = self.leases.grant(tenant.tag, held, lease_seconds)
        try:
            self.residents.use(blocks)
            shelf = self.residents.ram_of(tenant.tag)
            # what no lease holds may be overwritten while it is read
            await self.promotion.promote(blocks if lease_id else [])
            places = [
                _place(was, now, shelf.find(now) if now is not None and lease_id else None)
                for was, now in zip(found, wanted, strict=True)
            ]
            extents = None
            if layers.count or heads.count:
                extents = await self._extents(wanted, places, layers, heads)
        except BaseException:
            await self.release(tenant, lease_id)
            raise
        return Located(lease_id, granted, places, extents)

    def arena(self, tenant: Tenant) -> RamTier:
        return self.residents.ram_of(tenant.tag).tier

    async def renew(self, tenant: Tenant, lease_id: int, seconds: float) -> float:
        return self.leases.renew(tenant.tag, lease_id, seconds)

    async def release(self, tenant: Tenant, lease_id: int) -> None:
        self.leases.release(tenant.tag, lease_id)
        await self.residents.collect()

    async def put_profile(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        return await self.run(self.profiles.put, tenant.tag + digest, profile)

    async def get_profile(self, tenant: Tenant, digest: bytes) -> bytes | None:
        return self.profiles.get(tenant.tag + digest)

    async def clear(self, root_hash: bytes | None) -> tuple[int, int]:
        going = [
            block
            for block in self.residents.table.all()
            if not block.leaving and root_hash in (None, block.root_hash)
        ]
        await self.residents.retire(going)
        return len(going), sum(block.length for block in going)

    async def set_lifetime(self, root_hash: bytes, seconds: float | None) -> None:
        await self.run(self.own_lifetimes.put, root_hash, seconds)
        # of calls at one time the last that was written is in force, whichever comes back last
        in_force = self.own_lifetimes.all().get(root_hash)
        self.residents.set_lifetime(root_hash, in_force)

    async def lifetimes(self) -> LifetimesInForce:
        return LifetimesInForce(self.own_lifetimes.all(), self.residents.lifetime_of_others)

    async def page(self, tenant: Tenant, after: bytes, limit: int) -> list[Listed]:
        # a table of millions is sorted beside the event loop
        table = self.residents.table.all()
        blocks = await self.run(_first_of, table, tenant.tag, after, limit)
        return [
            Listed(
                chain_hash_of(block.key),
                block.root_hash,
                block.length,
                block.first_token,
                block.tokens,
                self.residents.tiers(block),
            )
            for block in blocks
        ]

    async def watch(self, tenant: Tenant, snapshot: bool) -> AsyncGenerator[Changes, None]:
        with self.residents.events.watching(tenant.tag) as watcher:
            while True:
                watcher.begin()
                yield Changes(reset=True)
                if snapshot:
                    table = self.residents.table.all()
                    names = await self.run(_names_of, table, tenant.tag)
                    # what changes meanwhile is told afterwards, and may repeat what is told here
                    for first in range(0, len(names), MAX_BATCH):
                        yield Changes(stored=names[first : first + MAX_BATCH])
                yield Changes(current=True)
                while (news := await watcher.news()) is not None:
                    yield Changes(
                        list(map(chain_hash_of, news.stored)),
                        list(map(chain_hash_of, news.removed)),
                    )
                self.residents.tally.watch_resets += 1

    async def stats(self) -> StoreStats:
        return StoreStats(
            self.node,
            self.version,
            self.clock.monotonic() - self.started_at,
            self.residents.tier_stats(),
            len(self.leases),
            len(self.residents.table),
            self.residents.tally,
            len(self.residents.events),
        )

    async def keep_house(self, every_seconds: float) -> None:
        """Expires blocks and looks for damage in RAM, until cancelled."""
        while True:
            await asyncio.sleep(every_seconds)
            await self.residents.expire()
            await self.promotion.scrub()

    def _run_of(
        self, keys: Sequence[BlockKey], heads: Span
    ) -> tuple[list[Block], MissReason | None]:
        blocks = self.residents.find_run(keys)
        if heads.count:
            for place, block in enumerate(blocks):
                if not block.covers_heads(heads):
                    return blocks[:place], MissReason.HEADS
        return blocks, MissReason.ABSENT if len(blocks) < len(keys) else None

    async def _extents(
        self,
        blocks: Sequence[Block | None],
        places: Sequence[Place],
        layers: Span,
        heads: Span,
    ) -> Extents:
        parts = [
            Part(number, block.head, True)
            for number, (block, place) in enumerate(zip(blocks, places, strict=True))
            if block is not None and block.head is not None and place.offset is not None
        ]
        groups = await self.run(lay_out, parts, layers, heads, 1)
        return groups[0].extents if groups else np.empty((0, 3), np.uint32)


def _first_of(blocks: Sequence[Block], tag: bytes, after: bytes, limit: int) -> list[Block]:
    """The first blocks of a tenant behind `after`, by name, without those that are leaving."""
    low = tag + after
    behind = (
        block
        for block in blocks
        if block.key > low and block.key.startswith(tag) and not block.leaving
    )
    return nsmallest(limit, behind, key=attrgetter("key"))


def _names_of(blocks: Sequence[Block], tag: bytes) -> list[ChainHash]:
    """Of all blocks of a tenant, oldest first, without those that are leaving."""
    return [
        chain_hash_of(block.key)
        for block in blocks
        if block.key.startswith(tag) and not block.leaving
    ]


def _answer(found: Block | None, wanted: Block | None) -> BlockAnswer:
    if found is None:
        return BlockAnswer(0, MissReason.ABSENT)
    if found.corrupt:
        return BlockAnswer(0, MissReason.CORRUPT)
    if wanted is None:
        return BlockAnswer(0, MissReason.HEADS)
    return BlockAnswer(found.length, None)


def _place(found: Block | None, wanted: Block | None, extent: Extent | None) -> Place:
    if wanted is None or wanted.corrupt:
        return Place(None, 0, _answer(found, wanted).miss)
    return Place(None if extent is None else extent.offset, wanted.length, None)

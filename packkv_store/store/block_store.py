"""The store of one node: its parts, and what each call makes of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from packkv_store.block import BlockKey, ChainHash, Span, block_key
from packkv_store.clock import Clock
from packkv_store.index import Index
from packkv_store.lease import LeaseTable
from packkv_store.profiles import Profiles
from packkv_store.store.answers import BlockAnswer, Match, MissReason, StoreStats
from packkv_store.store.block_table import Block
from packkv_store.store.download import Download, open_sources
from packkv_store.store.promotion import Promotion
from packkv_store.store.residents import Residents
from packkv_store.store.threads import Run
from packkv_store.store.upload import Upload
from packkv_store.tenant import Tenant
from packkv_store.tiers.ram import RamTier


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStore:
    """The domain behind the RPCs. All its state belongs to one event loop; threads only ever see
    bytes that are held for them."""

    node: str
    version: str
    clock: Clock
    started_at: float
    ram: RamTier
    index: Index
    leases: LeaseTable
    residents: Residents
    promotion: Promotion
    profiles: Profiles
    run: Run
    max_block_bytes: int
    max_blocks: int
    sync: bool

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        keys = [block_key(tenant.tag, chain_hash) for chain_hash in hashes]
        located = await self.index.locate(keys)
        blocks, miss = self._run_of(keys[: len(located)], heads)
        matched = [block.key for block in blocks]
        lease_id, granted = self.leases.grant(tenant.tag, matched, lease_seconds)
        self._used(blocks, keys)
        if miss is None and len(blocks) < len(keys):
            miss = MissReason.ABSENT
            await self._repair(keys[len(blocks) : len(located)][:1])
        return Match(
            [block.length for block in blocks],
            [self.residents.where(block) for block in blocks],
            lease_id,
            granted,
            miss,
        )

    @asynccontextmanager
    async def put(self, tenant: Tenant) -> AsyncIterator[Upload]:
        upload = Upload(
            self.residents,
            self.ram,
            self.run,
            tenant,
            self.clock.monotonic(),
            self.max_block_bytes,
            self.max_blocks,
            self.sync,
        )
        try:
            yield upload
        finally:
            upload.abandon()

    @asynccontextmanager
    async def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AsyncIterator[Download]:
        keys = [block_key(tenant.tag, chain_hash) for chain_hash in hashes]
        found = [self.residents.find_held(key) for key in keys]
        wanted = [b if b is not None and b.covers_heads(heads) else None for b in found]
        blocks = [block for block in wanted if block is not None]
        with self.leases.holding([block.key for block in blocks]):
            self._used(blocks, [])
            await self.promotion.promote(blocks)
            sources = await open_sources(wanted, self.residents, self.ram, self.run)
            answers = [_answer(was, now) for was, now in zip(found, wanted, strict=True)]
            yield Download(answers, sources, layers, heads, self.residents, self.run)
        await self.residents.collect()

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

    async def stats(self) -> StoreStats:
        return StoreStats(
            self.node,
            self.version,
            self.clock.monotonic() - self.started_at,
            self.residents.tier_stats(),
            len(self.leases),
            len(self.residents.table),
            self.residents.tally,
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
        blocks: list[Block] = []
        for key in keys:
            block = self.residents.find(key)
            if block is None:
                return blocks, None
            if not block.covers_heads(heads):
                return blocks, MissReason.HEADS
            blocks.append(block)
        return blocks, None

    def _used(self, blocks: Sequence[Block], chain: Sequence[BlockKey]) -> None:
        now = self.clock.monotonic()
        for before, block in zip([None, *blocks], blocks, strict=False):
            if chain and before is not None:
                block.parent = before.key
            self.residents.table.use(block, now)
        if blocks and len(blocks) < len(chain):
            self.residents.table.expect(chain[len(blocks)], blocks[-1].key)

    async def _repair(self, stale: Sequence[BlockKey]) -> None:
        # the index said that these are here and they are not: the tier decides
        gone = [key for key in stale if self.residents.table.get(key) is None]
        for shelf in self.residents.shelves if gone else ():
            await self.index.withdraw(gone, shelf.location)


def _answer(found: Block | None, wanted: Block | None) -> BlockAnswer:
    if found is None:
        return BlockAnswer(0, MissReason.ABSENT)
    if found.corrupt:
        return BlockAnswer(0, MissReason.CORRUPT)
    if wanted is None:
        return BlockAnswer(0, MissReason.HEADS)
    return BlockAnswer(found.length, None)

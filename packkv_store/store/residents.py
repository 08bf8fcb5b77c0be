"""Which blocks this node holds; the only place that moves them between tiers."""

import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import takewhile

from packkv_store.block import TAG_BYTES, BlockKey, PayloadHead, TierName, chain_hash_of
from packkv_store.clock import Clock
from packkv_store.errors import NoRoom, Quarantined, TierFailure
from packkv_store.events import Events
from packkv_store.eviction import FairOrder
from packkv_store.index import Index, Location
from packkv_store.lease import LeaseTable
from packkv_store.store.answers import PutStatus, Tally, TierStats
from packkv_store.store.block_table import Block, BlockTable
from packkv_store.store.shelf import Shelf, TierT
from packkv_store.store.threads import Run, Tasks, inline
from packkv_store.tiers.disk import DiskTier, disk_weight
from packkv_store.tiers.extents import Extent, extent_size
from packkv_store.tiers.ram import RamTier

log = logging.getLogger(__name__)

# Several writes can meet a full disk at one time, and what one was given the others may be refused.
WRITE_TRIES = 4


class Residents:
    """Blocks in RAM and, if there is a disk tier, on disk. Every block of a tenant with a share of
    the disk is written through, so that leaving RAM costs nothing and a crash loses nothing that
    was answered."""

    def __init__(
        self,
        node: str,
        arenas: Mapping[bytes, RamTier],
        disk: DiskTier | None,
        index: Index,
        leases: LeaseTable,
        clock: Clock,
        run: Run,
        ttl_seconds: float,
        disk_shares: Mapping[bytes, float],
    ) -> None:
        self.tally = Tally()
        self.tasks = Tasks()
        self.events = Events()
        self.table = BlockTable()
        self._disk_tier = disk
        self._leases = leases
        self._clock = clock
        self._run = run
        self._ttl = ttl_seconds
        self._leaving: dict[BlockKey, Block] = {}

        def shelf(tier: TierT, run: Run, order: FairOrder) -> Shelf[TierT]:
            at, left = Location(node, tier.name), self._left_shelf
            return Shelf(tier, at, index, leases, run, self.tasks, self.tally, left, order)

        self._ram = {
            tag: shelf(arena, inline, FairOrder({tag: 1.0}, extent_size))
            for tag, arena in arenas.items()
        }
        # who has no share of the disk has his blocks in RAM alone
        self._on_disk = {tag for tag, share in disk_shares.items() if share}
        order = FairOrder(disk_shares, disk_weight)
        self.disk = None if disk is None else shelf(disk, run, order)

    def ram_of(self, key: bytes) -> Shelf[RamTier]:
        """The RAM of the tenant that a block, or a tag, belongs to. Only a tenant of this server
        has one; a disk can hold blocks of tenants that were there before."""
        return self._ram[key[:TAG_BYTES]]

    def lasting(self, tag: bytes) -> Shelf[RamTier] | Shelf[DiskTier]:
        """The tier that a tenant's blocks leave last."""
        if self.disk is not None and tag in self._on_disk:
            return self.disk
        return self.ram_of(tag)

    def in_ram(self, block: Block) -> bool:
        shelf = self._ram.get(block.key[:TAG_BYTES])
        return shelf is not None and block in shelf

    def all_in_ram(self) -> list[Block]:
        """Of all tenants."""
        return [block for shelf in self._ram.values() for block in shelf.blocks()]

    async def recover(self) -> None:
        """Takes in what the disk tier holds from before the start."""
        if self._disk_tier is None or self.disk is None:
            return
        found, lost = await self._run(self._disk_tier.recover)
        now = self._clock.monotonic()
        for kept in sorted(found, key=lambda kept: kept.stored_at):
            block = Block.of(kept.key, kept.head, kept.stored_at, now)
            self.table.add(block)
            self.disk.adopt(block, kept.extent)
        await self.disk.announce()
        self.tally.recovered = len(found)
        self.tally.corrupt[TierName.DISK] += lost
        log.info("disk tier: %d blocks recovered, %d unusable ones removed", len(found), lost)

    def find(self, key: BlockKey) -> Block | None:
        """The block, if a new caller may have it."""
        block = self.table.get(key)
        return block if block is not None and self._is_open(block) else None

    def find_run(self, keys: Iterable[BlockKey]) -> list[Block]:
        """As `find`, for the blocks from the front up to the first that is not there."""
        blocks = self.table.get_run(keys)
        if self._leaving or self._ttl > 0:
            # rare, or set so: every block has to be looked at
            return list(takewhile(self._is_open, blocks))
        return blocks

    def find_held(self, key: BlockKey) -> Block | None:
        """As `find`; a block that is cleared or expired but still leased is found as well."""
        block = self.table.get(key)
        if block is None or block.corrupt:
            return None
        return block if self._is_open(block) or self._leases.holds(key) else None

    def fastest(self, tag: bytes, blocks: Sequence[Block]) -> list[TierName]:
        """The fastest tier that has each of a tenant's blocks."""
        shelf = self._ram.get(tag)
        if shelf is None:
            return [TierName.DISK] * len(blocks)
        if shelf.has_all(blocks):
            return [TierName.RAM] * len(blocks)
        return [TierName.RAM if block in shelf else TierName.DISK for block in blocks]

    def tiers(self, block: Block) -> list[TierName]:
        """Where the block is, fastest first; nowhere once it has left."""
        on_disk = self.disk is not None and block in self.disk
        places = ((TierName.RAM, self.in_ram(block)), (TierName.DISK, on_disk))
        return [tier for tier, is_there in places if is_there]

    async def admit(
        self,
        key: BlockKey,
        head: PayloadHead,
        extent: Extent,
        used_at: float,
        before: BlockKey | None,
    ) -> PutStatus:
        """Makes the verified payload at `extent` of the arena a block, on disk first.
        `before` is the block that came before it on its stream.

        The extent is the block's or has been given back when this ends. Raises NoRoom, TierFailure.
        """
        try:
            on_disk = await self._write_through(key, extent, head.payload_length)
        except (NoRoom, TierFailure):
            self.ram_of(key).tier.free(extent)
            raise
        stale = self.table.get(key)
        if stale is not None and self.find(key) is None:
            await self.retire([stale])
        # since the put began another stream may have been faster, or a reader may hold an old copy
        known = self.table.get(key)
        if known is not None:
            try:
                # before anything is awaited: nothing may take it away any more
                return await self._revive(known)
            finally:
                self.ram_of(key).tier.free(extent)
                await self._give_back_on_disk(on_disk)
        block = Block.of(key, head, self._clock.wall(), used_at)
        block.head = head
        self.table.add(block, before)
        self.table.use(block, used_at)
        self.events.stored(key)
        await self._publish(block, extent, on_disk)
        return PutStatus.STORED

    def read_disk(self, block: Block, start: int, into: memoryview) -> None:
        """Fills `into` from a held block's disk copy, unverified. Blocks; raises TierFailure."""
        if self.disk is None:
            raise AssertionError("only a disk tier holds blocks that are not in RAM")
        self.disk.tier.read(self.disk.extent(block), start, into)

    async def quarantine(self, block: Block, tier: TierName, error: Exception) -> None:
        """A corrupt block is not found, sent or recovered any more."""
        if block.corrupt:
            return
        log.warning("corrupt block %s in %s: %s", chain_hash_of(block.key).hex(), tier, error)
        self.tally.corrupt[tier] += 1
        block.corrupt = True
        if self.disk is not None and block in self.disk:
            # at once: its extent is freed only when nobody holds the block any more
            with suppress(TierFailure):
                await self._run(self.disk.tier.erase, self.disk.extent(block))
        await self.retire([block])

    async def retire(self, blocks: Sequence[Block]) -> None:
        """Hides blocks at once; their bytes go as soon as nobody holds them."""
        self.events.removed(block.key for block in blocks if not block.leaving)
        for block in blocks:
            block.leaving = True
            self._leaving[block.key] = block
        for shelf, here in self._by_shelf(blocks):
            await shelf.hide(here)
        await self.collect()

    async def collect(self) -> None:
        """Frees what has been retired and is no longer held."""
        await self._free(list(self._leaving.values()))

    @asynccontextmanager
    async def holding(self, keys: Sequence[BlockKey]) -> AsyncIterator[None]:
        """Holds blocks for the length of the `with` body; those that are retired meanwhile go at
        its end, however it ends."""
        try:
            with self._leases.holding(keys):
                yield
        finally:
            if self._leaving:
                await self._free([self._leaving[key] for key in keys if key in self._leaving])

    async def expire(self) -> None:
        """Retires blocks that are past their time to live."""
        if self._ttl > 0:
            old = self.table.expired(self._clock.wall(), self._ttl)
            old = [block for block in old if not block.leaving]
            self.tally.expired += len(old)
            await self.retire(old)
        await self.collect()

    async def flush(self) -> None:
        """Returns when all that was stored would survive a power cut. Raises TierFailure."""
        if self._disk_tier is not None:
            await self._run(self._disk_tier.flush)

    def tier_stats(self) -> list[TierStats]:
        ram = list(self._ram.values())
        stats = [
            TierStats(
                TierName.RAM,
                sum(map(len, ram)),
                sum(shelf.tier.used_bytes for shelf in ram),
                sum(shelf.tier.capacity_bytes for shelf in ram),
            )
        ]
        if self.disk is not None:
            disk = self.disk.tier
            stats.append(
                TierStats(TierName.DISK, len(self.disk), disk.used_bytes, disk.capacity_bytes)
            )
        return stats

    async def _free(self, retired: Iterable[Block]) -> None:
        free = [block for block in retired if not self._leases.holds(block.key)]
        for shelf, here in self._by_shelf(free):
            await shelf.drop(here, retired=True)

    def _by_shelf(
        self, blocks: Iterable[Block]
    ) -> Iterator[tuple[Shelf[RamTier] | Shelf[DiskTier], list[Block]]]:
        """The shelves that have some of the blocks, with those: RAM first."""
        blocks = list(blocks)
        tags: dict[bytes, list[Block]] = {}
        for block in blocks:
            if self.in_ram(block):
                tags.setdefault(block.key[:TAG_BYTES], []).append(block)
        for tag, here in tags.items():
            yield self._ram[tag], here
        if self.disk is not None and (here := [block for block in blocks if block in self.disk]):
            yield self.disk, here

    async def _publish(self, block: Block, in_ram: Extent, on_disk: Extent | None) -> None:
        if self.disk is not None and on_disk is not None:
            await self.disk.add(block, on_disk)
        await self.ram_of(block.key).add(block, in_ram)

    async def _write_through(self, key: BlockKey, extent: Extent, length: int) -> Extent | None:
        if self.disk is None or key[:TAG_BYTES] not in self._on_disk:
            return None
        payload = self.ram_of(key).tier.view(extent, length)
        refused: list[Extent] = []
        try:
            while True:
                on_disk = await self.disk.reserve(key, length)
                try:
                    await self._run(self.disk.tier.write, key, on_disk, payload, self._clock.wall())
                except TierFailure:
                    self.tally.failures[TierName.DISK] += 1
                    refused.append(on_disk)
                    # a tier that met a full disk has become smaller: evicting may make room now,
                    # at another place
                    if len(refused) == WRITE_TRIES:
                        raise
                else:
                    return on_disk
        finally:
            await self.disk.give_back(*refused)

    async def _give_back_on_disk(self, on_disk: Extent | None) -> None:
        if self.disk is not None and on_disk is not None:
            await self.disk.give_back(on_disk)

    async def _revive(self, known: Block) -> PutStatus:
        if known.corrupt:
            raise Quarantined(chain_hash_of(known.key).hex())
        if known.leaving:
            known.leaving = False
            self._leaving.pop(known.key, None)
            self.events.stored(known.key)
            for shelf, _ in self._by_shelf([known]):
                await shelf.show(known)
        return PutStatus.ALREADY_PRESENT

    def _is_open(self, block: Block) -> bool:
        """Whether a new caller may have it."""
        return not (block.leaving or self._is_expired(block))

    def _is_expired(self, block: Block) -> bool:
        return self._ttl > 0 and block.stored_at + self._ttl < self._clock.wall()

    def _left_shelf(self, block: Block) -> None:
        if not self.in_ram(block):
            block.head = None
        if not self.in_ram(block) and (self.disk is None or block not in self.disk):
            self.table.remove(block)
            self._leaving.pop(block.key, None)
            if not block.leaving:
                self.events.removed([block.key])

"""Which blocks this node holds; the only place that moves them between tiers."""

import asyncio
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
from packkv_store.store.expiry import OTHERS, Expiry
from packkv_store.store.shelf import KEY, Shelf, TierT, tier_stats
from packkv_store.store.threads import Run, Tasks, inline
from packkv_store.store.worth import Moment, Worth
from packkv_store.tiers.disk import DiskTier, disk_weight
from packkv_store.tiers.extents import Extent, extent_size
from packkv_store.tiers.ram import RamTier

log = logging.getLogger(__name__)

# Several writes can meet a full disk at one time, and what one was given the others may be refused.
WRITE_TRIES = 4
# What a call hides at most of what has expired before it, a millisecond; the rest is told apart
# block by block until housekeeping has hidden it.
EXPIRED_AT_ONCE = 1024


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
        expiry: Expiry,
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
        self._expiry = expiry
        self._worth = Worth()
        self._leaving: dict[BlockKey, Block] = {}
        # expired, and not yet withdrawn from the index
        self._expired: list[Block] = []

        def shelf(tier: TierT, run: Run, order: FairOrder) -> Shelf[TierT]:
            at, left = Location(node, tier.name), self._left_shelf
            return Shelf(tier, at, index, leases, run, self.tasks, self.tally, left, order)

        # who has no share of the disk has his blocks in RAM alone
        self._on_disk = {tag for tag, share in disk_shares.items() if share and disk is not None}
        # what leaves RAM for the disk is not lost: its worth counts where it goes for good
        self._ram = {
            tag: shelf(arena, inline, FairOrder({tag: 1.0}, extent_size, tag not in self._on_disk))
            for tag, arena in arenas.items()
        }
        order = FairOrder(disk_shares, disk_weight, by_value=True)
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
            # which block follows which is not known: what is worth more might outlive its head
            block = Block.of(kept.key, kept.head, kept.stored_at, now, value=1.0)
            self.table.add(block)
            self._expiry.add(block)
            self._worth.add(block)
            self.disk.adopt(block, kept.extent)
        await self.disk.announce()
        self.tally.recovered = len(found)
        self.tally.corrupt[TierName.DISK] += lost
        log.info("disk tier: %d blocks recovered, %d unusable ones removed", len(found), lost)

    def find(self, key: BlockKey) -> Block | None:
        """The block, if a new caller may have it."""
        self._let_expire()
        block = self.table.get(key)
        return block if block is not None and self._is_open(block) else None

    def find_run(self, keys: Iterable[BlockKey]) -> list[Block]:
        """As `find`, for the blocks from the front up to the first that is not there."""
        self._let_expire()
        blocks = self.table.get_run(keys)
        if self._expiry.is_due() or self._is_any_leaving(blocks):
            # rare: every block has to be looked at
            return list(takewhile(self._is_open, blocks))
        return blocks

    def find_held(self, key: BlockKey) -> Block | None:
        """As `find`; a block that is cleared or expired but still leased is found as well."""
        self._let_expire()
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

    def moment(self, tag: bytes) -> Moment:
        """Now, as blocks of a tenant see it that are used from here on."""
        return Moment(self._clock.monotonic(), self.lasting(tag).level(tag))

    def use_run(self, blocks: Sequence[Block]) -> None:
        """Blocks of a tenant are used, of which each follows the one before it."""
        if blocks:
            at, level = self.moment(blocks[0].key[:TAG_BYTES])
            self.table.use_run(blocks, at, level + self._worth.of(blocks))

    def use(self, blocks: Sequence[Block]) -> None:
        """As `use_run`, of blocks that follow each other in an order that is not known."""
        if blocks:
            at, level = self.moment(blocks[0].key[:TAG_BYTES])
            value = level + self._worth.of(blocks)
            for block in blocks:
                self.table.use(block, at, value)

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
        begun: Moment,
        before: BlockKey | None,
    ) -> PutStatus:
        """Makes the verified payload at `extent` of the arena a block, on disk first.
        `before` is the block that came before it on its stream, which has `begun` then.

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
        block = Block.of(key, head, self._clock.wall(), begun.at)
        block.head = head
        self.table.add(block, before)
        self._expiry.add(block)
        self._worth.add(block)
        self.table.use(block, begun.at, begun.level + self._worth.of([block]))
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
        self._hide(blocks)
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
        """Frees blocks that are past their lifetime, as soon as nobody holds them."""
        while self._let_expire():
            # after a lifetime was shortened there can be millions
            await asyncio.sleep(0)
        expired, self._expired = self._expired, []
        for shelf, here in self._by_shelf(block for block in expired if block.leaving):
            await shelf.hide(here)
        await self.collect()

    def set_lifetime(self, root_hash: bytes, seconds: float | None) -> None:
        """How long the blocks of a namespace stay, counted from their Put; None: as all others."""
        blocks = (block for block in self.table.all() if not block.leaving)
        self._expiry.change(root_hash, seconds, blocks)

    @property
    def lifetime_of_others(self) -> float:
        """Seconds, of blocks whose namespace has no lifetime of its own."""
        return self._expiry.seconds(OTHERS)

    async def flush(self) -> None:
        """Returns when all that was stored would survive a power cut. Raises TierFailure."""
        if self._disk_tier is not None:
            await self._run(self._disk_tier.flush)

    def tier_stats(self) -> list[TierStats]:
        """Of RAM, all tenants together, and of the disk tier, if there is one."""
        disk = [] if self.disk is None else [tier_stats([self.disk])]
        return [tier_stats(list(self._ram.values())), *disk]

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
            # it has been put now; one that had expired would go on being expired
            self.table.renew(known, self._clock.wall())
            self._expiry.add(known)
            self.events.stored(known.key)
            for shelf, _ in self._by_shelf([known]):
                await shelf.show(known)
        return PutStatus.ALREADY_PRESENT

    def _is_open(self, block: Block) -> bool:
        """Whether a new caller may have it."""
        return not (block.leaving or self._expiry.is_past(block))

    def _is_any_leaving(self, blocks: Iterable[Block]) -> bool:
        # thousands are asked in one go
        return bool(self._leaving) and not self._leaving.keys().isdisjoint(map(KEY, blocks))

    def _let_expire(self) -> bool:
        """Hides some blocks that are past their lifetime; whether there may be more."""
        if not self._expiry.is_due():
            return False
        past = self._expiry.take(EXPIRED_AT_ONCE)
        self._hide(past)
        self._expired += past
        self.tally.expired += len(past)
        return True

    def _hide(self, blocks: Sequence[Block]) -> None:
        self.events.removed(block.key for block in blocks if not block.leaving)
        for block in blocks:
            block.leaving = True
            self._leaving[block.key] = block
            self._expiry.discard(block)

    def _left_shelf(self, block: Block) -> None:
        if not self.in_ram(block):
            block.head = None
        if not self.in_ram(block) and (self.disk is None or block not in self.disk):
            if self.table.remove(block):
                self._expiry.discard(block)
                self._worth.remove(block)
            self._leaving.pop(block.key, None)
            if not block.leaving:
                self.events.removed([block.key])

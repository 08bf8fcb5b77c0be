"""One tier with the blocks that are in it: makes room, takes blocks in, lets them go."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from operator import attrgetter
from typing import Generic, TypeVar

from packkv_store.block import TAG_BYTES, BlockKey
from packkv_store.errors import NoRoom, TierFailure
from packkv_store.eviction import FairOrder
from packkv_store.index import Index, Location
from packkv_store.lease import LeaseTable
from packkv_store.store.answers import Tally, TierStats
from packkv_store.store.block_table import Block
from packkv_store.store.threads import Run, Tasks
from packkv_store.tiers import Tier
from packkv_store.tiers.extents import Extent

log = logging.getLogger(__name__)

TierT = TypeVar("TierT", bound=Tier)
KEY: Callable[[Block], BlockKey] = attrgetter("key")

# Eviction starts at the high watermark and goes on to the low one, so that it comes in batches.
HIGH_WATERMARK = 0.97
LOW_WATERMARK = 0.92
# A put waits for one batch at most, however large the tier.
EVICTED_AT_ONCE = 256 << 20


class Shelf(Generic[TierT]):
    """Blocks of one tier, in RAM those of one tenant. Held ones (leased, or being sent) stay.

    `order` says who makes room for whom; it is this shelf's alone, and holds the same blocks.
    """

    def __init__(
        self,
        tier: TierT,
        location: Location,
        index: Index,
        leases: LeaseTable,
        run: Run,
        tasks: Tasks,
        tally: Tally,
        on_drop: Callable[[Block], None],
        order: FairOrder,
    ) -> None:
        self.tier = tier
        self.location = location
        self.cold_blocks = 0
        self.cold_bytes = 0
        self._tasks = tasks
        self._tally = tally
        self._index = index
        self._leases = leases
        self._run = run
        self._on_drop = on_drop
        self._blocks: dict[BlockKey, tuple[Block, Extent]] = {}
        self._order = order
        self._making_room = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: Block) -> bool:
        return self._blocks.get(block.key, (None,))[0] is block

    def has_all(self, blocks: Iterable[Block]) -> bool:
        """Whether all of these, which are in the table, are here. A key stands for one block."""
        return all(map(self._blocks.__contains__, map(KEY, blocks)))

    def blocks(self) -> list[Block]:
        return [block for block, _ in self._blocks.values()]

    def extent(self, block: Block) -> Extent:
        """Where the block is in this tier."""
        return self._blocks[block.key][1]

    def find(self, block: Block) -> Extent | None:
        """Where the block is in this tier, if it is."""
        known, extent = self._blocks.get(block.key, (None, None))
        return extent if known is block else None

    def level(self, tag: bytes) -> float:
        """The level of the order in which a tenant's blocks go."""
        return self._order.level(tag, self.tier.capacity_bytes)

    def used_bytes(self, tag: bytes) -> int:
        """Bytes of the tier that a tenant's blocks take."""
        return self._order.used_bytes(tag)

    def sure_bytes(self, tag: bytes) -> int:
        """Bytes of the tier that no other tenant takes from this one."""
        return int(self._order.share(tag) * self._shared_bytes())

    async def reserve(self, key: BlockKey, length: int) -> Extent:
        """Room for the `length` bytes of a block, after evicting others if need be.
        Raises NoRoom."""
        capacity = self.tier.capacity_bytes
        async with self._making_room:
            if self.tier.used_bytes + length > HIGH_WATERMARK * capacity:
                surplus = self.tier.used_bytes + length - int(LOW_WATERMARK * capacity)
                await self._evict(min(surplus, max(length, EVICTED_AT_ONCE)), key, length)
            while (extent := self.tier.reserve(length)) is None:
                # enough bytes may be free and yet no hole be large enough
                if not await self._evict(1, key, length):
                    raise NoRoom(self.tier.name, length, capacity)
            return extent

    async def add(self, block: Block, extent: Extent) -> None:
        """The block's bytes are in place: it can be found from now on."""
        self.adopt(block, extent)
        await self._index.publish([block.key], self.location)

    def adopt(self, block: Block, extent: Extent) -> None:
        """As `add`, for a block found at the start; `announce` publishes them all at once."""
        self._blocks[block.key] = block, extent
        self._order.add(block)
        if block.is_cold:
            self.cold_blocks += 1
            self.cold_bytes += extent.size

    async def announce(self) -> None:
        await self._index.publish(list(self._blocks), self.location)

    async def hide(self, blocks: Iterable[Block]) -> None:
        """The blocks can no longer be found here."""
        await self._index.withdraw([b.key for b in blocks if b in self], self.location)

    async def show(self, block: Block) -> None:
        """The block, if it is here, can be found again."""
        if block in self:
            await self._index.publish([block.key], self.location)

    async def drop(self, blocks: Sequence[Block], retired: bool = False) -> int:
        """Removes those that are here and not held, of `retired` ones those that have not been put
        again meanwhile; answers how many."""
        # what has begun must end even if the call that asked for it is cancelled
        return await asyncio.shield(self._tasks.begin(self._drop(blocks, retired)))

    async def give_back(self, *extents: Extent) -> None:
        """Extents that were reserved and, whatever was written there, hold no block."""
        for extent in await self._run(_erased, self.tier, extents):
            self.tier.free(extent)

    async def _evict(self, wanted: int, for_key: BlockKey, length: int) -> int:
        """Makes `wanted` bytes free, or what there is, for a block of `length`; answers how many
        blocks went."""
        victims: list[Block] = []
        shared = self._shared_bytes()
        with closing(
            self._order.victims(self._leases.holds, for_key[:TAG_BYTES], length, shared)
        ) as order:
            for victim in order:
                block, extent = self._blocks[victim.key]
                victims.append(block)
                wanted -= extent.size
                if wanted <= 0:
                    break
        dropped = await self.drop(victims) if victims else 0
        self._tally.evicted[self.tier.name] += dropped
        return dropped

    def _shared_bytes(self) -> int:
        # all but the bytes between the watermarks is shared out: those are never all in use
        return int(LOW_WATERMARK * self.tier.capacity_bytes)

    async def _drop(self, blocks: Sequence[Block], retired: bool) -> int:
        await self.hide(blocks)
        # the index may have taken time: a lease may have been granted, or a retired block put again
        here = [block for block in blocks if block in self]
        going = [
            block
            for block in here
            if not self._leases.holds(block.key) and (block.leaving or not retired)
        ]
        extents = [self._forget(block) for block in going]
        staying = [block.key for block in here if block in self and not block.leaving]
        await self._index.publish(staying, self.location)
        await self.give_back(*extents)
        return len(going)

    def _forget(self, block: Block) -> Extent:
        _, extent = self._blocks.pop(block.key)
        self._order.discard(block)
        if block.is_cold:
            self.cold_blocks -= 1
            self.cold_bytes -= extent.size
        self._on_drop(block)
        return extent


def tier_stats(shelves: Sequence[Shelf[TierT]]) -> TierStats:
    """Of a tier that is one shelf, or several: one at least."""
    return TierStats(
        shelves[0].tier.name,
        blocks=sum(map(len, shelves)),
        used_bytes=sum(shelf.tier.used_bytes for shelf in shelves),
        capacity_bytes=sum(shelf.tier.capacity_bytes for shelf in shelves),
        cold_blocks=sum(shelf.cold_blocks for shelf in shelves),
        cold_bytes=sum(shelf.cold_bytes for shelf in shelves),
    )


def _erased(tier: Tier, extents: Sequence[Extent]) -> list[Extent]:
    """Those that could be erased. Another may come back after a restart, so nothing else may be
    written there."""
    erased = []
    for extent in extents:
        try:
            tier.erase(extent)
            erased.append(extent)
        except TierFailure as error:
            log.error("%d bytes of %s are lost until a restart: %s", extent.size, tier.name, error)
    return erased

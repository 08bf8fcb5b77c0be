"""From disk into RAM, verified to the last byte on the way."""

import asyncio
from collections.abc import Sequence
from functools import partial

from packkv_store.block import BlockKey, PayloadHead, TierName, chain_hash_of, verify_payload
from packkv_store.errors import NoRoom, PayloadError, TierFailure
from packkv_store.store.block_table import Block
from packkv_store.store.residents import Residents
from packkv_store.store.threads import Run
from packkv_store.tiers import Tier
from packkv_store.tiers.extents import Extent

# Each call of `scrub` verifies about this much: 2 ms of one core.
SCRUB_BYTES = 32 << 20


class Promotion:
    """Promotes each block once, however many calls want it, `at_once` blocks a call."""

    def __init__(self, residents: Residents, run: Run, at_once: int) -> None:
        self._residents = residents
        self._run = run
        self._at_once = at_once
        self._running: dict[BlockKey, asyncio.Task[None]] = {}
        self._to_scrub: list[Block] = []

    async def promote(self, blocks: Sequence[Block]) -> None:
        """Brings held blocks into RAM. One that has no room there stays on disk alone;
        one that is corrupt is quarantined."""
        away = [block for block in blocks if not self._residents.in_ram(block)]
        if not away:
            return
        waiting = iter(away)

        async def work() -> None:
            for block in waiting:
                await self._promote_once(block)

        await asyncio.gather(*(work() for _ in range(self._at_once)))

    async def scrub(self) -> None:
        """Verifies some blocks in RAM, going on where the last call ended."""
        left = SCRUB_BYTES
        self._to_scrub = self._to_scrub or self._residents.all_in_ram()
        while left > 0 and self._to_scrub:
            block = self._to_scrub.pop()
            if not self._residents.in_ram(block) or block.leaving:
                continue
            left -= block.length
            async with self._residents.holding([block.key]):
                shelf = self._residents.ram_of(block.key)
                view = shelf.tier.view(shelf.extent(block), block.length)
                try:
                    await self._run(verify_payload, view, chain_hash_of(block.key))
                except PayloadError as error:
                    await self._residents.quarantine(block, TierName.RAM, error)

    async def _promote_once(self, block: Block) -> None:
        running = self._running.get(block.key)
        if running is None:
            running = self._residents.tasks.begin(self._promote(block))
            self._running[block.key] = running
            running.add_done_callback(lambda _: self._running.pop(block.key, None))
        # shielded: a caller that goes away must not stop it for the others
        await asyncio.shield(running)

    async def _promote(self, block: Block) -> None:
        disk = self._residents.disk
        if self._residents.in_ram(block) or disk is None or block.corrupt:
            return
        async with self._residents.holding([block.key]):
            shelf = self._residents.ram_of(block.key)
            try:
                extent = await shelf.reserve(block.key, block.length)
            except NoRoom:
                return
            into = shelf.tier.view(extent, block.length)
            load = partial(_load, disk.tier, disk.extent(block), into, block.key)
            try:
                head = await self._run(load)
            except (PayloadError, TierFailure) as error:
                shelf.tier.free(extent)
                await self._residents.quarantine(block, TierName.DISK, error)
                return
            block.head = head
            await shelf.add(block, extent)
            self._residents.tally.promoted += 1


def _load(tier: Tier, extent: Extent, into: memoryview, key: BlockKey) -> PayloadHead:
    tier.read(extent, 0, into)
    return verify_payload(into, chain_hash_of(key))

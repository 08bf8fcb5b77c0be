"""Removes the locations of nodes that are gone for good: slowly, and by one node of the fleet."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from packkv_store.index.redis.connection import PATIENT, IndexDown
from packkv_store.index.redis.layout import (
    NODES,
    SWEEPER,
    heartbeat_key,
    holders,
    is_block,
    mark_of,
)
from packkv_store.index.redis.link import Link

log = logging.getLogger(__name__)

BATCH = 1024
PAUSE_SECONDS = 0.05


class Sweeper:
    """Their locations are ignored from the moment that their heartbeat is missing; sweeping only
    gives Redis its memory back, so it may take hours."""

    def __init__(self, node: str, link: Link, check_seconds: float, grace_seconds: float) -> None:
        self._mark = mark_of(node)
        self._link = link
        self._check_seconds = check_seconds
        self._grace_seconds = grace_seconds
        self._missing_since: dict[bytes, float] = {}
        self.swept = 0

    async def keep_sweeping(self) -> None:
        """Looks for the dead now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._check_seconds)
            with suppress(IndexDown):
                dead = await self._dead()
                if dead and await self._is_elected():
                    await self._sweep(dead)

    async def _dead(self) -> list[bytes]:
        [marks] = await self._link.call([("SMEMBERS", NODES)])
        missing = await self._missing([mark for mark in marks if mark != self._mark])
        now = asyncio.get_running_loop().time()
        self._missing_since = {mark: self._missing_since.get(mark, now) for mark in missing}
        return [m for m, since in self._missing_since.items() if now - since >= self._grace_seconds]

    async def _is_elected(self) -> bool:
        lives_ms = int(1000 * max(self._check_seconds, 10))
        name = ("SET", SWEEPER, self._mark, "PX", lives_ms)
        [is_first] = await self._link.call([(*name, "NX")])
        if is_first:
            return True
        [holder] = await self._link.values([SWEEPER])
        if holder == self._mark:
            await self._link.call([name])
        return holder == self._mark

    async def _sweep(self, dead: Sequence[bytes]) -> None:
        log.info("sweeping the locations of %d nodes that are gone", len(dead))
        async for names in self._link.names(BATCH):
            blocks = [name for name in names if is_block(name)]
            dead = await self._missing(dead)
            if not dead or not await self._is_elected():
                return
            await self._clean(blocks, dead)
            await asyncio.sleep(PAUSE_SECONDS)
        # one that comes back right now is listed again with its next beat
        await self._link.call([("SREM", NODES, *dead)])
        for mark in dead:
            self._missing_since.pop(mark, None)

    async def _missing(self, marks: Sequence[bytes]) -> list[bytes]:
        beats = await self._link.values([heartbeat_key(mark) for mark in marks], patience=PATIENT)
        return [mark for mark, beat in zip(marks, beats, strict=True) if beat is None]

    async def _clean(self, names: Sequence[bytes], dead: Sequence[bytes]) -> None:
        values = await self._link.values(names, patience=PATIENT)
        for mark in dead:
            stale = [
                name
                for name, value in zip(names, values, strict=True)
                if value is not None and any(mark == one for one, _ in holders(value))
            ]
            await self._link.set_tiers(mark, stale, bytes(len(stale)))
            self.swept += len(stale)

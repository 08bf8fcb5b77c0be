"""An index that many nodes share."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from packkv_store.block import BlockKey
from packkv_store.index import Location, Member
from packkv_store.index.redis.announcer import Announcer
from packkv_store.index.redis.connection import Connection, IndexDown
from packkv_store.index.redis.layout import TIERS, holders, mark_of, redis_keys
from packkv_store.index.redis.link import Link
from packkv_store.index.redis.roster import Roster
from packkv_store.index.redis.sweeper import Sweeper
from packkv_store.index.redis.url import RedisUrl


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the index may take and how often it looks after itself, in seconds."""

    deadline: float = 0.2  # of a call that somebody waits for
    beat: float = 1.0
    live: float = 4.0  # a node whose last beat is older is gone
    walk: float = 3600.0  # to tell Redis once of every block of this node
    sweep: float = 30.0  # between looks for nodes to be swept
    grace: float = 600.0  # a node may be away for so long and find its locations again


class RedisIndex:
    """What this node holds, it knows itself; what others hold is in Redis."""

    def __init__(self, node: str, url: RedisUrl, pace: Pace | None = None) -> None:
        pace = pace or Pace()
        self.node = node
        self._mark = mark_of(node)
        connection = Connection(url, pace.deadline)
        self._link = Link(connection, str(url), self._resume)
        self._announcer = Announcer(node, self._link, pace.deadline, pace.walk)
        self._roster = Roster(node, self._link, pace.beat, pace.live, self._announcer.lost)
        self._sweeper = Sweeper(node, self._link, pace.sweep, pace.grace)
        self._own = [tuple(Location(node, tier) for tier in tiers) for tiers in TIERS]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_up(self) -> bool:
        """Whether Redis answered the last time it was asked."""
        return self._link.is_up

    async def start(self, address: str) -> None:
        self._roster.say(address)
        with suppress(IndexDown):
            await self._roster.beat()
        work = (
            self._roster.keep_beating(),
            self._announcer.send_news(),
            self._announcer.walk(),
            self._sweeper.keep_sweeping(),
        )
        self._tasks = [asyncio.ensure_future(one) for one in work]

    async def leaving(self) -> None:
        with suppress(IndexDown):
            await self._roster.say_leaving()

    async def stop(self, forget_seconds: float = 0.0) -> None:
        while running := [task for task in self._tasks if not task.done()]:
            for task in running:
                task.cancel()
            # again if need be: wait_for of Python 3.11, which redis-py uses, may lose one
            await asyncio.wait(running, timeout=0.1)
        with suppress(IndexDown, TimeoutError):
            await self._roster.leave()
            if forget_seconds > 0:
                async with asyncio.timeout(forget_seconds):
                    await self._announcer.forget()
                    await self._roster.forget()
        await self._link.close()

    async def publish(self, keys: Sequence[BlockKey], location: Location) -> None:
        self._announcer.add(keys, location.tier)

    async def withdraw(self, keys: Sequence[BlockKey], location: Location) -> None:
        await self._announcer.remove(keys, location.tier)

    async def locate(self, keys: Sequence[BlockKey]) -> list[tuple[Location, ...]]:
        located = list(map(self._own.__getitem__, self._announcer.tiers(keys)))
        unknown = [at for at, locations in enumerate(located) if not locations]
        if unknown and self._link.is_up:
            with suppress(IndexDown):
                found = await self._elsewhere([keys[at] for at in unknown])
                for at, locations in zip(unknown, found, strict=True):
                    located[at] = locations
        return located

    async def repair(self, keys: Sequence[BlockKey]) -> None:
        self._announcer.repair(keys)

    def address(self, node: str) -> str | None:
        return self._roster.address(node)

    async def meet(self, node: str) -> str | None:
        with suppress(IndexDown):
            await self._roster.meet([mark_of(node)])
        return self.address(node)

    async def members(self) -> Sequence[Member]:
        with suppress(IndexDown):
            return await self._roster.members()
        return ()

    async def only_here(self, keys: Sequence[BlockKey]) -> list[bool]:
        with suppress(IndexDown):
            values = await self._link.values(redis_keys(keys))
            marks = {mark for value in values if value for mark, _ in holders(value)}
            await self._roster.meet(marks - {self._mark})
            staying = {
                mark
                for mark in marks - {self._mark}
                if (peer := self._roster.peer(mark)) is not None and not peer.is_leaving
            }
            return [
                value is None or not any(mark in staying for mark, _ in holders(value))
                for value in values
            ]
        return [True] * len(keys)

    async def claim(self, key: BlockKey, value: bytes, instead_of: bytes = b"") -> bytes | None:
        with suppress(IndexDown):
            return await self._link.claim(key, value, instead_of)
        return None

    async def _elsewhere(self, keys: Sequence[BlockKey]) -> list[tuple[Location, ...]]:
        values = await self._link.values(redis_keys(keys))
        # blocks of one prefix mostly have one and the same value
        distinct = {value for value in values if value is not None}
        marks = {mark for value in distinct for mark, _ in holders(value)}
        await self._roster.meet(marks - {self._mark})
        known: dict[bytes | None, tuple[Location, ...]] = {None: ()}
        known |= {value: self._locations(value) for value in distinct}
        # asked for because they are not here, and Redis says that they are
        wrong = {value for value in distinct if self._names_me(value)}
        if wrong:
            pairs = zip(keys, values, strict=True)
            self._announcer.repair([key for key, value in pairs if value in wrong])
        return list(map(known.__getitem__, values))

    def _locations(self, value: bytes) -> tuple[Location, ...]:
        return tuple(
            Location(peer.node, tier)
            for mark, tiers in holders(value)
            if mark != self._mark and (peer := self._roster.peer(mark)) is not None
            for tier in tiers
        )

    def _names_me(self, value: bytes) -> bool:
        return any(mark == self._mark for mark, _ in holders(value))

    def _resume(self) -> None:
        self._announcer.resume()

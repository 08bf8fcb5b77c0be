"""Tells Redis what this node holds, in batches, and tells it again when Redis has forgotten.

What is sent is always the present state of a block and never a change of it, so sending twice,
late or after a failure does no harm.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, repeat

from packkv_store.block import BlockKey, TierName
from packkv_store.index.redis.connection import IndexDown
from packkv_store.index.redis.layout import TIER_BIT, mark_of, redis_keys, shard_of
from packkv_store.index.redis.link import Link

BATCH = 2048
# What is told again comes in smaller batches, and after one that took longer than EASY_SECONDS the
# node rests for many times the excess: when a thousand nodes tell one Redis everything at once,
# they leave it time for matches.
WALK_BATCH = 512
EASY_SECONDS = 0.03
REST_FACTOR = 50
MAX_REST_SECONDS = 5.0
# Blocks whose news could not be sent. The news of more is forgotten: the walk, or whoever finds
# the location stale, repairs it.
MAX_UNSENT = 1 << 18


class Announcer:
    """All locations that this node has, and which of them Redis has yet to be told."""

    def __init__(self, node: str, link: Link, wait_seconds: float, walk_seconds: float) -> None:
        self._mark = mark_of(node)
        self._link = link
        self._wait_seconds = wait_seconds
        self._walk_seconds = walk_seconds
        self._held: dict[BlockKey, int] = {}
        self._unsent: dict[BlockKey, None] = {}
        self._wake = asyncio.Event()
        self._is_telling = False
        self._round: asyncio.Future[None] | None = None
        # a block's states must reach Redis in their order
        self._sending = asyncio.Lock()
        self._lost: set[int] = set()
        self._lost_some = asyncio.Event()

    @property
    def unsent(self) -> int:
        return len(self._unsent)

    def tiers(self, keys: Iterable[BlockKey]) -> Iterator[int]:
        """Bits of the tiers in which this node has each of the blocks."""
        return map(self._held.get, keys, repeat(0))

    def add(self, keys: Sequence[BlockKey], tier: TierName) -> None:
        """Returns at once; Redis learns it with the next batch."""
        for key in keys:
            self._held[key] = self._held.get(key, 0) | TIER_BIT[tier]
        self._to_send(keys)

    async def remove(self, keys: Sequence[BlockKey], tier: TierName) -> None:
        """Returns when Redis knows, or has had its time to."""
        for key in keys:
            left = self._held.get(key, 0) & ~TIER_BIT[tier]
            if left:
                self._held[key] = left
            else:
                self._held.pop(key, None)
        self._to_send(keys)
        if keys and self._is_telling and self._link.is_up:
            self._round = self._round or asyncio.get_running_loop().create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_seconds):
                    await asyncio.shield(self._round)

    def repair(self, keys: Sequence[BlockKey]) -> None:
        """Redis has this node for blocks that are not here, or lacks it for some that are."""
        self._to_send(keys)

    def lost(self, shards: Collection[int]) -> None:
        """These shards of Redis were found without what had been sent."""
        self._lost.update(shards)
        self._lost_some.set()

    async def forget(self) -> None:
        """Redis has no block of this node any more. Raises IndexDown."""
        for batch in _batches(list(self._held), BATCH):
            await self._link.set_tiers(self._mark, redis_keys(batch), bytes(len(batch)))

    def resume(self) -> None:
        """Redis answers again."""
        self._wake.set()

    async def send_news(self) -> None:
        """Sends what has changed, as soon as it has, until cancelled."""
        self._is_telling = True
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsent and self._link.is_up:
                keys = list(islice(self._unsent, BATCH))
                done, self._round = self._round, None
                with suppress(IndexDown):
                    await self._send(keys)
                if done is not None and not done.done():
                    done.set_result(None)

    async def walk(self) -> None:
        """Sends everything again: at once what Redis has lost, the rest slowly, until cancelled."""
        while True:
            lost = frozenset(self._lost)
            self._lost.clear()
            self._lost_some.clear()
            if lost:
                await self._announce(lost)
            else:
                await self._stroll()

    async def _announce(self, shards: Collection[int]) -> None:
        if not self._link.is_up:
            self.lost(shards)
            await asyncio.sleep(self._wait_seconds)
            return
        everything = len(shards) == self._link.shards
        clock = asyncio.get_running_loop().time
        keys = [key for key in self._held if everything or shard_of(key) in shards]
        for batch in _batches(keys, WALK_BATCH):
            began = clock()
            try:
                await self._send(batch)
            except IndexDown:
                self.lost(shards)
                return
            excess = max(clock() - began - EASY_SECONDS, 0.0)
            await asyncio.sleep(min(REST_FACTOR * excess, MAX_REST_SECONDS))

    async def _stroll(self) -> None:
        ends_at = asyncio.get_running_loop().time() + self._walk_seconds
        batches = list(_batches(list(self._held), WALK_BATCH))
        for at, batch in enumerate(batches):
            left = ends_at - asyncio.get_running_loop().time()
            if await self._is_lost_within(left / (len(batches) - at)):
                return
            with suppress(IndexDown):
                await self._send(batch)
        await self._is_lost_within(ends_at - asyncio.get_running_loop().time())

    async def _is_lost_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._lost_some.wait()
        return self._lost_some.is_set()

    async def _send(self, keys: Sequence[BlockKey]) -> None:
        async with self._sending:
            for key in keys:
                self._unsent.pop(key, None)
            tiers = bytes(self._held.get(key, 0) for key in keys)
            try:
                await self._link.set_tiers(self._mark, redis_keys(keys), tiers)
            except BaseException:
                self._keep(keys)
                raise

    def _to_send(self, keys: Sequence[BlockKey]) -> None:
        # what was there before the start is told by the first walk
        if self._is_telling:
            self._keep(keys)
            self._wake.set()

    def _keep(self, keys: Sequence[BlockKey]) -> None:
        self._unsent.update(dict.fromkeys(keys))
        while len(self._unsent) > MAX_UNSENT:
            del self._unsent[next(iter(self._unsent))]


def _batches(keys: list[BlockKey], size: int) -> Iterator[list[BlockKey]]:
    for first in range(0, len(keys), size):
        yield keys[first : first + size]

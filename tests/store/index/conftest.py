"""Indexes of nodes that live in the test's process; the Redis behind them is a real one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from packkv_store.block import BlockKey
from packkv_store.index import Index, Location
from packkv_store.index.redis.redis_index import Pace, RedisIndex
from packkv_store.index.redis.url import RedisUrl

# the same behaviour as in service, in the time that a test has
QUICK = Pace(deadline=1.0, beat=0.1, live=2.0, walk=3600.0, sweep=0.1, grace=0.3)


@asynccontextmanager
async def joined(url: str, node: str, pace: Pace = QUICK) -> AsyncIterator[RedisIndex]:
    """The index as `node` sees it, for as long as that node lives."""
    index = RedisIndex(node, RedisUrl.parse(url), pace)
    await index.start("127.0.0.1:7437")
    try:
        yield index
    finally:
        await index.stop()


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """Returns when it holds; the test's own time limit is the bound."""
    try:
        async with asyncio.timeout(60):
            while not await holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within 60 s: {what}") from None


async def sees(index: Index, keys: list[BlockKey], locations: list[set[Location]]) -> None:
    """Returns when the index has these locations for these blocks."""

    async def holds() -> bool:
        return [set(found) for found in await index.locate(keys)] == locations

    await until(holds, f"{len(keys)} blocks are where they should be")

"""Every index keeps the same contract, whatever it is made of."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from packkv_store.block import BlockKey, TierName
from packkv_store.index import Index, Location
from packkv_store.index.embedded import EmbeddedIndex
from tests.store.index.conftest import joined, sees
from tests.store.redis_servers import Deployment, deployment

KEYS = [BlockKey(bytes([number]) * 48) for number in range(6)]
RAM = Location("a", TierName.RAM)
DISK = Location("a", TierName.DISK)
OTHER = Location("b", TierName.RAM)
KINDS = ["embedded", "server", "unix", "acl", "tls", "sentinel", "cluster"]
Views = tuple[Index, Index, Index]


@pytest.fixture(scope="module", params=KINDS)
def redis(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment | None]:
    if request.param == "embedded":
        yield None
    else:
        with deployment(request.param, tmp_path_factory.mktemp("redis")) as made:
            yield made


@pytest.fixture
async def views(redis: Deployment | None) -> AsyncIterator[Views]:
    """The index as nodes a, b and c see it; the embedded one has one node, which is all three."""
    if redis is None:
        alone = EmbeddedIndex()
        yield alone, alone, alone
        return
    redis.empty()
    async with AsyncExitStack() as stack:
        a, b, c = [await stack.enter_async_context(joined(redis.url, node)) for node in "abc"]
        yield a, b, c


async def test_each_block_is_located_by_itself(views: Views) -> None:
    a, b, _ = views
    await a.publish(KEYS[:3] + KEYS[4:], RAM)
    for index in views:
        await sees(index, KEYS, [{RAM}, {RAM}, {RAM}, set(), {RAM}, {RAM}])
    assert await b.locate([]) == []


async def test_a_block_has_all_its_locations_once(views: Views) -> None:
    a, b, c = views
    for location in (RAM, DISK, RAM):
        await a.publish(KEYS[:2], location)
    await b.publish(KEYS[1:2], OTHER)
    await sees(c, KEYS[:2], [{RAM, DISK}, {RAM, DISK, OTHER}])
    assert len((await c.locate(KEYS[1:2]))[0]) == 3


async def test_what_is_withdrawn_everywhere_is_gone(views: Views) -> None:
    a, b, _ = views
    await a.publish(KEYS, RAM)
    await a.publish(KEYS[:1], DISK)
    await sees(b, KEYS[:2], [{RAM, DISK}, {RAM}])
    await a.withdraw(KEYS, RAM)
    await b.withdraw(KEYS, OTHER)
    for index in views:
        # at once: what is withdrawn is removed before its bytes are
        assert [set(found) for found in await index.locate(KEYS)] == [{DISK}] + [set()] * 5
    await a.withdraw(KEYS, DISK)
    for index in views:
        assert await index.locate(KEYS) == [()] * 6


async def test_one_call_takes_as_many_blocks_as_a_match_may_have(views: Views) -> None:
    a, b, _ = views
    keys = [BlockKey(number.to_bytes(48, "big")) for number in range(16_384)]
    await a.publish(keys, DISK)
    await sees(b, keys, [{DISK}] * len(keys))
    await a.withdraw(keys, DISK)
    await sees(b, keys, [set()] * len(keys))


async def test_of_values_offered_at_one_time_the_first_is_in_force_everywhere(views: Views) -> None:
    values = [b"from a", b"from b", b"from c"]
    offers = [index.claim(KEYS[0], value) for index, value in zip(views, values, strict=True)]
    [first] = set(await asyncio.gather(*offers))
    assert first in values
    [other, *_] = [value for value in values if value != first]
    assert await views[1].claim(KEYS[0], other) == first
    # who knows which value is no good any more may offer another one, and one of them wins again
    again = [
        index.claim(KEYS[0], value, instead_of=first)
        for index, value in zip(views, [b"x", b"y", b"z"], strict=True)
    ]
    [second] = set(await asyncio.gather(*again))
    assert second in (b"x", b"y", b"z")
    assert await views[2].claim(KEYS[1], b"under another name") == b"under another name"

"""Redis comes and goes, and so do nodes; the index heals and nobody waits for it."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from packkv_store.block import BlockKey, TierName
from packkv_store.index import Location
from packkv_store.index.redis.layout import (
    MAX_HOLDERS,
    NODES,
    heartbeat_key,
    mark_of,
    redis_keys,
)
from tests.store.index.conftest import joined, sees, until
from tests.store.redis_servers import Deployment, deployment

KEYS = [BlockKey(number.to_bytes(48, "big")) for number in range(300)]
RAM = Location("a", TierName.RAM)
FOUND = [{RAM}] * len(KEYS)
LOST = [set[Location]()] * len(KEYS)


@pytest.fixture(params=["server", "cluster"])
def redis(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with deployment(request.param, tmp_path_factory.mktemp("redis")) as made:
        yield made


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment("server", tmp_path_factory.mktemp("redis")) as made:
        yield made


@pytest.fixture
def server(one_server: Deployment) -> Deployment:
    one_server.empty()
    return one_server


def haunt(server: Deployment, node: str, keys: list[BlockKey]) -> None:
    """Leaves what a node leaves that was killed after a last beat, which has yet to be outlived."""
    [process] = server.servers
    client, said = process.client(), json.dumps({"node": node, "address": "127.0.0.1:1"})
    client.set(heartbeat_key(mark_of(node)), said, px=3_600_000)
    client.sadd(NODES, mark_of(node))
    for key in keys:
        client.append(*redis_keys([key]), mark_of(node) + b"\x01")


async def test_an_emptied_redis_is_told_again(redis: Deployment) -> None:
    async with joined(redis.url, "a") as a, joined(redis.url, "b") as b:
        await a.publish(KEYS, RAM)
        await sees(b, KEYS, FOUND)
        # of a cluster, one master alone
        redis.servers[0].client().flushall()
        await sees(b, KEYS, FOUND)
        redis.empty()
        await sees(b, KEYS, FOUND)


async def test_a_redis_that_was_killed_and_came_back_empty_is_told_again(
    server: Deployment,
) -> None:
    async with joined(server.url, "a") as a, joined(server.url, "b") as b:
        await a.publish(KEYS, RAM)
        await sees(b, KEYS, FOUND)
        server.servers[0].kill()
        assert await b.locate(KEYS) == [()] * len(KEYS)
        assert [set(found) for found in await a.locate(KEYS)] == FOUND
        # what goes while Redis is away must not come back with it
        await a.withdraw(KEYS[:1], RAM)
        server.servers[0].start()
        await sees(b, KEYS, [set(), *FOUND[1:]])


async def test_nobody_waits_for_a_paused_redis_and_it_catches_up(server: Deployment) -> None:
    async with joined(server.url, "a") as a, joined(server.url, "b") as b:
        await a.publish(KEYS[:100], RAM)
        await sees(b, KEYS, FOUND[:100] + LOST[100:])
        server.servers[0].pause()
        try:
            # two deadlines at most: of the first call, and of the first withdrawal
            async with asyncio.timeout(60):
                assert await b.locate(KEYS) == [()] * len(KEYS)
                await a.publish(KEYS[100:], RAM)
                await a.withdraw(KEYS[:50], RAM)
                assert [set(found) for found in await a.locate(KEYS)] == LOST[:50] + FOUND[50:]
                for _ in range(100):
                    await b.locate(KEYS)
        finally:
            server.servers[0].go_on()
        await sees(b, KEYS, LOST[:50] + FOUND[50:])


async def test_a_node_that_leaves_is_not_named_and_is_found_when_it_returns(
    server: Deployment,
) -> None:
    async with joined(server.url, "b") as b:
        async with joined(server.url, "a") as a:
            await a.publish(KEYS, RAM)
            await sees(b, KEYS, FOUND)
            assert b.address("a") == "127.0.0.1:7437"
        await sees(b, KEYS, LOST)
        assert b.address("a") is None
        async with joined(server.url, "a") as back:
            # recovered from its disk before the start, or during it
            await back.publish(KEYS[:200], RAM)
            await sees(b, KEYS[:200], FOUND[:200])


async def test_a_dead_node_is_ignored_at_once_and_swept_later(server: Deployment) -> None:
    async with joined(server.url, "a") as a, joined(server.url, "b") as b:
        await a.publish(KEYS[:100], RAM)
        haunt(server, "dead", KEYS[50:])
        both = {RAM, Location("dead", TierName.RAM)}
        ghost = {Location("dead", TierName.RAM)}
        await sees(b, KEYS, FOUND[:50] + [both] * 50 + [ghost] * 200)
        # as Redis does when the time of the beat is over
        server.servers[0].client().delete(heartbeat_key(mark_of("dead")))
        await sees(b, KEYS, FOUND[:100] + LOST[100:])

        async def is_swept() -> bool:
            client = server.servers[0].client()
            values = client.mget(redis_keys(KEYS))
            is_listed = client.sismember(NODES, mark_of("dead"))
            alone = mark_of("a") + b"\x01"
            return not is_listed and values == [alone] * 100 + [None] * 200

        await until(is_swept, "the locations of the dead node are gone from Redis")


async def test_a_location_of_its_own_that_is_stale_is_repaired(server: Deployment) -> None:
    async with joined(server.url, "a") as a, joined(server.url, "b") as b:
        await a.publish(KEYS[:1], RAM)
        client = server.servers[0].client()
        client.set(*redis_keys([KEYS[1]]), mark_of("a") + b"\x02")
        await sees(b, KEYS[:2], [{RAM}, {Location("a", TierName.DISK)}])
        assert (await a.locate(KEYS[:2]))[1] == ()
        await sees(b, KEYS[:2], [{RAM}, set()])


async def test_what_makes_no_sense_in_redis_is_no_location(server: Deployment) -> None:
    client = server.servers[0].client()
    marks = [mark_of(node) for node in ("x", "y", "z")]
    client.set(heartbeat_key(marks[0]), b"no JSON \xff")
    client.set(heartbeat_key(marks[1]), json.dumps({"node": "y", "address": "nowhere"}))
    client.set(heartbeat_key(marks[2]), json.dumps({"node": "another", "address": "h:1"}))
    client.set(*redis_keys([KEYS[0]]), b"".join(mark + b"\x01" for mark in marks))
    client.set(*redis_keys([KEYS[1]]), b"\x00" * 5)
    client.set(*redis_keys([KEYS[2]]), b"\xff" * 1000)
    async with joined(server.url, "a") as a, joined(server.url, "b") as b:
        assert await a.locate(KEYS[:4]) == [()] * 4
        await a.publish(KEYS[1:2], RAM)
        await sees(b, KEYS[1:2], [{RAM}])


async def test_a_block_that_is_everywhere_has_a_bounded_entry(server: Deployment) -> None:
    for number in range(MAX_HOLDERS):
        haunt(server, f"node {number}", KEYS[:1])
    async with joined(server.url, "a") as a, joined(server.url, "b") as b:
        await a.publish(KEYS[:2], RAM)
        await sees(b, KEYS[1:2], [{RAM}])
        [found] = await b.locate(KEYS[:1])
        assert len(found) == MAX_HOLDERS
        assert "a" not in {location.node for location in found}


async def test_a_failover_by_sentinel_is_followed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with deployment("sentinel", tmp_path_factory.mktemp("redis")) as redis:
        async with joined(redis.url, "a") as a, joined(redis.url, "b") as b:
            await a.publish(KEYS, RAM)
            await sees(b, KEYS, FOUND)
            redis.servers[0].kill()
            await a.publish(KEYS[:1], Location("a", TierName.DISK))
            now = [{RAM, Location("a", TierName.DISK)}, *FOUND[1:]]
            await sees(b, KEYS, now)
            assert redis.servers[1].client().role()[0] == b"master"


async def test_no_credential_is_ever_shown(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with deployment("acl", tmp_path_factory.mktemp("redis")) as redis:
        async with joined(redis.url, "a") as a:
            redis.servers[0].kill()
            assert await a.locate(KEYS) == [()] * len(KEYS)
        async with joined(redis.url.replace("p%40ss", "wrong"), "b"):
            redis.servers[0].connect = {}
            redis.servers[0].start()
            await asyncio.sleep(0.3)
    assert "is back" not in caplog.text
    assert f"redis://{redis.servers[0].address}" in caplog.text
    for secret in ("p@ss", "p%40ss", "wrong", "word"):
        assert secret not in caplog.text

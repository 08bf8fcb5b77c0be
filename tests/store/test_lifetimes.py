"""How long the blocks of a namespace stay, when it has a lifetime of its own."""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from packkv_protos.v1 import admin_pb2 as pb
from packkv_store.app import App
from packkv_store.lifetimes import MAX_LIFETIMES, Lifetimes
from tests.store.conftest import (
    MIB,
    Client,
    HandClock,
    Payload,
    build_prefix,
    connected,
    serving,
    small_config,
)

NEVER = math.inf
DAY = 86_400.0


async def set_lifetime(client: Client, prefix: list[Payload], seconds: float) -> None:
    request = pb.SetLifetimeRequest(root_hash=prefix[0].root_hash, seconds=seconds)
    await client.admin.SetLifetime(request, metadata=client.metadata)


async def lifetimes(client: Client) -> dict[bytes, float]:
    reply = await client.admin.Lifetimes(pb.LifetimesRequest(), metadata=client.metadata)
    return {one.root_hash: one.seconds for one in reply.lifetimes}


async def count(client: Client, prefix: list[Payload]) -> int:
    return int((await client.match([payload.chain_hash for payload in prefix])).blocks)


async def expired(app: App, client: Client) -> int:
    await app.store.residents.expire()
    return int((await client.stats()).counters["packkv_expired_blocks_total"])


async def test_a_namespace_expires_by_its_own_lifetime_and_others_by_the_servers(
    clock: HandClock,
) -> None:
    brief, lasting, usual = (build_prefix(name, 3) for name in ("brief", "lasting", "usual"))
    config = small_config(ttl_seconds=60.0)
    async with serving(config, clock) as app, connected(app.address) as client:
        await set_lifetime(client, brief, 10.0)
        for prefix in (usual, lasting, brief):
            await client.put(prefix)
        # one before its blocks come, one after
        await set_lifetime(client, lasting, NEVER)
        reply = await client.admin.Lifetimes(pb.LifetimesRequest())
        assert reply.default_seconds == 60.0
        assert await lifetimes(client) == {
            brief[0].root_hash: 10.0,
            lasting[0].root_hash: NEVER,
        }
        clock.move(10)
        assert [await count(client, one) for one in (brief, lasting, usual)] == [3, 3, 3]
        clock.move(0.001)
        assert [await count(client, one) for one in (brief, lasting, usual)] == [0, 3, 3]
        clock.move(50)
        assert [await count(client, one) for one in (brief, lasting, usual)] == [0, 3, 0]
        clock.move(1000 * DAY)
        assert await expired(app, client) == 6
        assert await count(client, lasting) == 3
        assert (await client.stats()).blocks == 3


async def test_a_lifetime_holds_for_the_blocks_that_are_there(clock: HandClock) -> None:
    prefix, other = build_prefix("a", 3), build_prefix("b", 2)
    async with serving(small_config(), clock) as app, connected(app.address) as client:
        await client.put(prefix[:2])
        clock.move(100)
        await client.put([*prefix[2:], *other])
        await set_lifetime(client, prefix, 200.0)
        assert await count(client, prefix) == 3
        # shorter: what is older goes at once
        await set_lifetime(client, prefix, 50.0)
        assert await count(client, prefix) == 0
        assert await expired(app, client) == 2
        await client.put(prefix[:2])
        # longer
        await set_lifetime(client, prefix, 300.0)
        clock.move(200)
        assert await count(client, prefix) == 3
        # and for ever again
        await set_lifetime(client, prefix, 0.0)
        assert await lifetimes(client) == {}
        clock.move(DAY)
        assert await count(client, prefix) == 3
        assert await count(client, other) == 2
        assert await expired(app, client) == 2


async def test_expired_blocks_are_told_withdrawn_and_freed(clock: HandClock) -> None:
    prefix = build_prefix("a", 3)
    async with serving(small_config(), clock) as app, connected(app.address) as client:
        await client.put(prefix)
        await set_lifetime(client, prefix, 10.0)
        # who holds a lease may go on
        leased = await client.match([prefix[0].chain_hash], lease_ms=60_000)
        clock.move(11)
        assert await count(client, prefix) == 0
        assert await expired(app, client) == 3
        assert (await client.stats()).blocks == 1
        got = await client.get([prefix[0].chain_hash], lease_id=leased.lease_id)
        assert bytes(got.payloads[0]) == prefix[0].data
        # put again it is there again, and its time begins anew
        await client.put(prefix)
        assert await count(client, prefix) == 3
        clock.move(9)
        assert await count(client, prefix) == 3
        clock.move(2)
        assert await count(client, prefix) == 0
        assert await expired(app, client) == 6
        clock.move(60)
        await app.store.residents.expire()
        assert (await client.stats()).tiers[0].used_bytes == 0


async def test_more_than_is_hidden_at_once_is_not_found_either(clock: HandClock) -> None:
    sizes: dict[str, Any] = {"layers": 1, "heads": 1, "section_bytes": 16}
    old, kept = build_prefix("old", 1100, **sizes), build_prefix("kept", 50, **sizes)
    async with serving(small_config(), clock) as app, connected(app.address) as client:
        await client.put([*old, *kept])
        await set_lifetime(client, old, 10.0)
        clock.move(11)
        # the sweep of this match ends long before the tail
        assert (await client.match([payload.chain_hash for payload in old[1050:]])).blocks == 0
        assert await count(client, kept) == 50
        assert await expired(app, client) == 1100
        assert (await client.stats()).blocks == 50


async def test_lifetimes_survive_a_restart(tmp_path: Path, clock: HandClock) -> None:
    config = small_config(data_dir=tmp_path)
    prefix, other = build_prefix("a", 3), build_prefix("b", 2)
    async with serving(config, clock) as app, connected(app.address) as client:
        await client.put([*prefix, *other])
        await set_lifetime(client, prefix, 100.0)
        await set_lifetime(client, other, NEVER)
    clock.move(60)
    async with serving(config, clock) as app, connected(app.address) as client:
        assert (await lifetimes(client))[other[0].root_hash] == NEVER
        assert await count(client, prefix) == 3
        clock.move(41)
        assert await count(client, prefix) == 0
        assert await count(client, other) == 2


@pytest.mark.parametrize("at", [0, 20, -1])
async def test_a_damaged_file_is_noticed_and_means_the_default(
    tmp_path: Path, clock: HandClock, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    config = small_config(data_dir=tmp_path)
    prefix = build_prefix("a", 3)
    async with serving(config, clock) as app, connected(app.address) as client:
        await client.put(prefix)
        await set_lifetime(client, prefix, 10.0)
    raw = bytearray((tmp_path / "lifetimes").read_bytes())
    raw[at] ^= 1
    (tmp_path / "lifetimes").write_bytes(raw)
    clock.move(11)
    with caplog.at_level(logging.ERROR):
        async with serving(config, clock) as app, connected(app.address) as client:
            assert await lifetimes(client) == {}
            assert await count(client, prefix) == 3
            await set_lifetime(client, prefix, 10.0)
            assert await count(client, prefix) == 0
    assert "lifetimes is damaged" in caplog.text
    assert list(Lifetimes(tmp_path / "lifetimes").all().values()) == [10.0]


def test_a_file_that_is_cut_or_grows_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "lifetimes"
    Lifetimes(path).put(b"r" * 32, 1.0)
    raw = path.read_bytes()
    for wrong in (raw[:-1], raw[:16], raw[:3], b"", raw + b"\0", raw * 100_000):
        path.write_bytes(wrong)
        assert Lifetimes(path).all() == {}


async def test_what_cannot_be_written_is_not_in_force(tmp_path: Path, clock: HandClock) -> None:
    prefix = build_prefix("a", 3)
    async with (
        serving(small_config(data_dir=tmp_path), clock) as app,
        connected(app.address) as client,
    ):
        await client.put(prefix)
        # its new version cannot be made where a directory is
        (tmp_path / "lifetimes.new").mkdir()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await set_lifetime(client, prefix, 10.0)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        clock.move(11)
        assert await lifetimes(client) == {}
        assert await count(client, prefix) == 3


async def test_of_calls_at_one_time_the_one_that_was_written_last_is_in_force(
    tmp_path: Path, clock: HandClock
) -> None:
    [payload] = build_prefix("a", 1)
    first_is_written, second_is_back = asyncio.Event(), asyncio.Event()
    async with (
        serving(small_config(data_dir=tmp_path), clock) as app,
        connected(app.address) as client,
    ):

        async def run(call: Callable[..., Any], *args: Any) -> Any:
            result = await app.store.run(call, *args)
            if args[-1] == 10.0:
                # what was written first comes back last
                first_is_written.set()
                await second_is_back.wait()
            return result

        async def second() -> None:
            await first_is_written.wait()
            await store.set_lifetime(payload.root_hash, 20.0)
            second_is_back.set()

        store = replace(app.store, run=run)
        await client.put([payload])
        await asyncio.gather(store.set_lifetime(payload.root_hash, 10.0), second())
        assert Lifetimes(tmp_path / "lifetimes").all() == {payload.root_hash: 20.0}
        clock.move(15)
        assert await count(client, [payload]) == 1
        clock.move(6)
        assert await count(client, [payload]) == 0


def test_there_is_a_most(tmp_path: Path) -> None:
    lifetimes = Lifetimes(None)
    for number in range(MAX_LIFETIMES):
        lifetimes.put(number.to_bytes(32), 1.0)
    with pytest.raises(Exception, match="at most 4096"):
        lifetimes.put(b"x" * 32, 1.0)
    # those that are there can be changed and forgotten, and make room
    lifetimes.put(bytes(32), 2.0)
    lifetimes.put((1).to_bytes(32), None)
    lifetimes.put(b"x" * 32, 3.0)
    assert len(lifetimes.all()) == MAX_LIFETIMES


@pytest.mark.parametrize("seconds", [-1.0, math.nan, -NEVER, 1e-9, 1e11])
async def test_no_other_seconds_are_taken(client: Client, seconds: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await set_lifetime(client, build_prefix("a", 1), seconds)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "seconds is" in (caught.value.details() or "")


async def test_a_root_hash_has_32_bytes(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.admin.SetLifetime(pb.SetLifetimeRequest(root_hash=b"r", seconds=1.0))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_evicted_and_cleared_blocks_are_in_no_queue_any_more(clock: HandClock) -> None:
    sizes: dict[str, Any] = {"layers": 2, "heads": 1, "section_bytes": 150_000}
    first, second = build_prefix("a", 3, **sizes), build_prefix("b", 3, **sizes)
    config = small_config(ram_bytes=MIB, ttl_seconds=60.0)
    async with serving(config, clock) as app, connected(app.address) as client:
        for prefix in (first, second, first):
            await client.put(prefix)
            clock.move(1)
        await client.clear()
        clock.move(100)
        assert await expired(app, client) == 0

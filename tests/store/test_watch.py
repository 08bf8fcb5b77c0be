"""Watch: what a node has, told to whoever wants to follow it."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store import events
from packkv_store.app import App
from packkv_store.events import MAX_WATCHERS
from packkv_store.store.answers import Changes
from packkv_store.tenant import Tenant
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
from tests.store.test_security import TOKENS, bearer

EVERYBODY = Tenant("", admin=True)


def watch(client: Client, **request: Any) -> Any:
    return client.blocks.Watch(pb.WatchRequest(**request), metadata=client.metadata, timeout=30)


def hashes_of(prefix: Iterable[Payload]) -> set[bytes]:
    return {payload.chain_hash for payload in prefix}


class Follower:
    """Keeps the set of blocks that the frames of a watch speak of."""

    def __init__(self, frames: AsyncIterator[Any]) -> None:
        self._frames = frames
        self.names: set[bytes] = set()
        self.resets = 0
        self._sequence = 0

    async def step(self) -> Any:
        frame = await anext(self._frames)
        self._sequence += 1
        assert frame.sequence == self._sequence
        assert len(frame.stored) + len(frame.removed) <= 4096
        if frame.reset:
            self.resets += 1
            self.names.clear()
        self.names.update(frame.stored)
        self.names.difference_update(frame.removed)
        return frame

    async def catch_up(self) -> None:
        while not (await self.step()).current:
            pass

    async def until(self, names: set[bytes]) -> None:
        async with asyncio.timeout(60):
            while self.names != names:
                await self.step()


async def test_a_watch_begins_with_what_is_there_and_goes_on_with_what_changes(
    client: Client,
) -> None:
    first, second = build_prefix("a", 5), build_prefix("b", 3)
    await client.put(first)
    follower = Follower(aiter(watch(client, snapshot=True)))
    assert (await follower.step()).reset
    await follower.catch_up()
    assert follower.names == hashes_of(first)
    await client.put(second)
    await follower.until(hashes_of(first + second))
    await client.clear(first[0].root_hash)
    await follower.until(hashes_of(second))
    assert follower.resets == 1


async def test_without_a_snapshot_it_tells_what_changes_from_now_on(client: Client) -> None:
    first, second = build_prefix("a", 2), build_prefix("b", 2)
    await client.put(first)
    follower = Follower(aiter(watch(client)))
    await follower.catch_up()
    assert follower.names == set()
    await client.put(second)
    await follower.until(hashes_of(second))


async def test_what_is_evicted_and_what_expires_is_told(clock: HandClock) -> None:
    config = small_config(ram_bytes=1 * MIB, ttl_seconds=60)
    async with serving(config, clock) as app, connected(app.address) as client:
        follower = Follower(aiter(watch(client, snapshot=True)))
        await follower.catch_up()
        blocks = build_prefix("a", 30, section_bytes=8192)
        for block in blocks:
            await client.put([block])
        kept = {one for one in hashes_of(blocks) if (await client.match([one])).blocks}
        assert 0 < len(kept) < len(blocks)
        await follower.until(kept)
        clock.move(61)
        await app.store.residents.expire()
        await follower.until(set())


async def test_a_block_that_is_put_again_while_it_leaves_is_told_again(client: Client) -> None:
    prefix = build_prefix("a", 2)
    await client.put(prefix)
    # held, so that it is hidden and not gone
    await client.match(hashes_of(prefix), lease_ms=10_000)
    follower = Follower(aiter(watch(client, snapshot=True)))
    await follower.catch_up()
    await client.clear()
    await follower.until(set())
    await client.put(prefix)
    await follower.until(hashes_of(prefix))


async def test_a_block_that_is_found_corrupt_is_removed(tmp_path: Path) -> None:
    prefix = build_prefix("a", 1, section_bytes=4096)
    config = small_config(data_dir=tmp_path)
    async with serving(config) as app, connected(app.address) as client:
        await client.put(prefix)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    (blocks,) = [path for path in files if prefix[0].data in path.read_bytes()]
    blocks.write_bytes(blocks.read_bytes().replace(prefix[0].data[-64:], bytes(64)))
    async with serving(config) as app, connected(app.address) as client:
        follower = Follower(aiter(watch(client, snapshot=True)))
        await follower.catch_up()
        assert follower.names == hashes_of(prefix)
        assert (await client.get(hashes_of(prefix))).misses == {0: pb.MISS_REASON_CORRUPT}
        await follower.until(set())


async def test_after_a_restart_the_snapshot_has_what_is_on_disk(tmp_path: Path) -> None:
    prefix = build_prefix("a", 4)
    config = small_config(data_dir=tmp_path)
    async with serving(config) as app, connected(app.address) as client:
        await client.put(prefix)
    async with serving(config) as app, connected(app.address) as client:
        follower = Follower(aiter(watch(client, snapshot=True)))
        await follower.catch_up()
        assert follower.names == hashes_of(prefix)


async def test_a_watcher_that_falls_behind_begins_again_and_no_put_waits_for_it(
    client: Client, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_PENDING", 8)
    blocks = build_prefix("a", 30)
    async with aclosing(app.store.watch(EVERYBODY, True)) as changes:
        assert [await anext(changes) for _ in range(2)] == [
            Changes(reset=True),
            Changes(current=True),
        ]
        # it looks away
        results = await client.put(blocks)
        assert {result.status for result in results} == {pb.PUT_STATUS_STORED}
        told = [await anext(changes) for _ in range(3)]
    assert [change.reset for change in told] == [True, False, False]
    assert set(told[1].stored) == hashes_of(blocks)
    assert told[2].current
    assert (await client.stats()).counters["packkv_watch_resets_total"] == 1


async def test_a_tenant_sees_nothing_of_another(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    async with (
        serving(small_config(tokens_file=tokens)) as app,
        connected(app.address, bearer("red secret")) as a,
        connected(app.address, bearer("blue new")) as b,
        connected(app.address) as nobody,
    ):
        await a.put(build_prefix("before", 2))
        follower = Follower(aiter(watch(b, snapshot=True)))
        await follower.catch_up()
        await a.put(build_prefix("after", 2))
        own = build_prefix("own", 1)
        await b.put(own)
        await follower.step()
        assert follower.names == hashes_of(own)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(watch(nobody)))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_watchers_are_counted_and_bounded(client: Client, app: App) -> None:
    open_ones = [watch(client) for _ in range(MAX_WATCHERS)]
    for one in open_ones:
        await anext(aiter(one))
    assert len(app.store.residents.events) == MAX_WATCHERS
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(watch(client)))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "watchers of a tenant is 17" in str(refused.value.details())
    for one in open_ones:
        one.cancel()
    async with asyncio.timeout(60):
        while len(app.store.residents.events):
            await asyncio.sleep(0.01)


async def test_a_watch_ends_at_once_when_the_server_stops() -> None:
    async with serving(small_config(grace_seconds=60)) as app, connected(app.address) as client:
        frames = aiter(watch(client))
        await anext(frames)
        await anext(frames)
        stopping = asyncio.ensure_future(app.stop())
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await anext(frames)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(60):
            await stopping

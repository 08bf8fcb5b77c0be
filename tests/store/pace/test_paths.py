"""A tenant's rate holds on every way to move payloads. Real clients; time is moved by hand."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from packkv.client import Client, ClientConfig, Fetched, PutStatus
from packkv.client.config import PATHS
from packkv.errors import ClientClosed, LimitExceeded
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from packkv_store.pace import Bucket
from tests.store.cluster.conftest import apps, hashes_of, matches
from tests.store.cluster.conftest import one_redis as one_redis
from tests.store.cluster.conftest import redis as redis
from tests.store.conftest import (
    MIB,
    HandClock,
    Payload,
    build_prefix,
    connected,
    serving,
    small_config,
)
from tests.store.redis_servers import Deployment

T = TypeVar("T")

KIB = 1 << 10
# timers of an instalment are a few milliseconds
RATE = 64 * MIB
BURST = 256 * KIB
FAST = f'put_rate = "{RATE}"\nget_rate = "{RATE}"\nburst = "{BURST}"'
SLOW = 'put_rate = "64KiB"\nget_rate = "64KiB"'
PREFIX = build_prefix("a", 8, section_bytes=16_000)
SIZE = sum(len(one.data) for one in PREFIX)
# at 64 KiB a second, a block takes ten
LARGE = build_prefix("large", 2, section_bytes=80_000)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    if request.param == "shared-memory" and sys.platform != "linux":
        pytest.skip("a path of Linux")
    return str(request.param)


def tokens(folder: Path, **tenants: str) -> Path:
    """Tenants with their lines of the file; a token is its tenant's name."""
    path = folder / "tokens.toml"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in tenants}
    path.write_text(
        "".join(
            f'[tenants.{name}]\ntoken_sha256 = "{digests[name]}"\n{lines}\n'
            for name, lines in tenants.items()
        )
    )
    return path


@asynccontextmanager
async def paced(folder: Path, clock: HandClock, red: str, **settings: object) -> AsyncIterator[App]:
    """A node with a tenant `red` of these lines and a tenant `blue` that may do what it likes."""
    file = tokens(folder, red=red, blue="")
    async with serving(small_config(tokens_file=file, **settings), clock) as app:
        yield app


@asynccontextmanager
async def calling(app: App, path: str, name: str) -> AsyncIterator[Client]:
    config = ClientConfig(paths=(path,), token=name, transfer_deadline_s=60.0)
    client = Client(app.address, config=config)
    try:
        yield client
    finally:
        await asyncio.to_thread(client.close)


def bucket(app: App, call: str, name: str = "red") -> Bucket:
    return next(one for tenant, of, one in app._pace.buckets() if (tenant, of) == (name, call))


async def waits(one: Bucket) -> None:
    async with asyncio.timeout(60):
        while one.waiting_calls == 0:
            await asyncio.sleep(0.001)


async def as_time_goes_on(
    call: Callable[[], T], one: Bucket, clock: HandClock, every_s: float = 0.002
) -> tuple[T, float]:
    """What the call returns, and how long it took by the clock, which moves while it waits."""
    began_at = clock.monotonic()
    running = asyncio.ensure_future(asyncio.to_thread(call))
    async with asyncio.timeout(60):
        while not running.done():
            if one.waiting_calls:
                clock.move(every_s)
            await asyncio.sleep(0.001)
    return running.result(), clock.monotonic() - began_at


def put_all(client: Client, prefix: list[Payload]) -> set[PutStatus]:
    return {one.status for one in client.put([(b.chain_hash, b.data) for b in prefix])}


def contents(blocks: list[Fetched]) -> list[bytes | None]:
    return [None if one.data is None else bytes(one.data) for one in blocks]


async def test_a_tenant_puts_and_gets_as_fast_as_it_may_and_no_faster(
    tmp_path: Path, clock: HandClock, path: str
) -> None:
    async with (
        paced(tmp_path, clock, FAST + "\nadmin = true") as app,
        calling(app, path, "red") as red,
    ):
        for call, done in (
            ("put", lambda: put_all(red, PREFIX) == {PutStatus.STORED}),
            ("get", lambda: contents(red.get(hashes_of(PREFIX))) == [b.data for b in PREFIX]),
        ):
            one = bucket(app, call)
            is_right, seconds = await as_time_goes_on(done, one, clock)
            assert is_right
            assert seconds >= (SIZE - BURST) / RATE
            assert one.moved_bytes == SIZE
            assert one.waited_seconds == pytest.approx(seconds, rel=0.01)
        assert red.path == path
        counted = (await asyncio.to_thread(red.stats)).counters
        for call in ("put", "get"):
            assert counted[f'packkv_paced_bytes_total{{tenant="red",call="{call}"}}'] == SIZE
        assert counted["packkv_received_bytes_total"] == SIZE
        assert counted["packkv_sent_bytes_total"] == SIZE


async def test_one_tenants_waiting_is_nobody_elses(
    tmp_path: Path, clock: HandClock, path: str
) -> None:
    async with (
        paced(tmp_path, clock, FAST) as app,
        calling(app, path, "red") as red,
        calling(app, path, "blue") as blue,
    ):
        one = bucket(app, "put")
        stuck = asyncio.ensure_future(asyncio.to_thread(put_all, red, PREFIX))
        await waits(one)
        # time stands still
        for _ in range(3):
            assert await asyncio.to_thread(put_all, blue, PREFIX)
            got = await asyncio.to_thread(blue.get, hashes_of(PREFIX))
            assert contents(got) == [block.data for block in PREFIX]
        assert not stuck.done()
        assert one.moved_bytes <= BURST
        async with asyncio.timeout(60):
            while not stuck.done():
                clock.move(0.01)
                await asyncio.sleep(0.001)
        assert stuck.result() == {PutStatus.STORED}


async def test_what_would_wait_for_too_long_is_refused_and_the_store_is_not_given_up(
    tmp_path: Path, clock: HandClock, path: str
) -> None:
    async with (
        paced(tmp_path, clock, SLOW, stream_seconds=2.0) as app,
        calling(app, path, "red") as red,
    ):
        for _ in range(red.config.breaker_failures + 1):
            with pytest.raises(LimitExceeded, match=r"put_rate is 65536 bytes/s: .* turn in \d+ s"):
                await asyncio.to_thread(put_all, red, LARGE)
        async with asyncio.timeout(60):
            while app.store.arena(app._access.tenants[0]).used_bytes:
                await asyncio.sleep(0.001)
        clock.move(100.0)
        small = build_prefix("small", 1)
        assert await asyncio.to_thread(put_all, red, small) == {PutStatus.STORED}
        assert (await asyncio.to_thread(red.match, hashes_of(small))).blocks == 1


async def test_a_get_that_cannot_end_in_time_is_refused_before_its_first_byte(
    tmp_path: Path, clock: HandClock, path: str
) -> None:
    lines = 'get_rate = "64KiB"'
    async with (
        paced(tmp_path, clock, lines, stream_seconds=2.0) as app,
        calling(app, path, "red") as red,
    ):
        assert await asyncio.to_thread(put_all, red, PREFIX) == {PutStatus.STORED}
        came: list[int] = []

        def get() -> list[Fetched]:
            return red.get(hashes_of(PREFIX), on_bytes=came.append)

        for _ in range(red.config.breaker_failures + 1):
            with pytest.raises(LimitExceeded, match=r"get_rate is 65536 bytes/s"):
                await asyncio.to_thread(get)
        assert sum(came) == 0
        assert bucket(app, "get").refused_calls == red.config.breaker_failures + 1
        assert (await asyncio.to_thread(red.match, hashes_of(PREFIX))).blocks == len(PREFIX)


async def test_who_goes_away_while_it_waits_leaves_its_bytes_to_the_others(
    tmp_path: Path, clock: HandClock
) -> None:
    async with (
        paced(tmp_path, clock, FAST) as app,
        calling(app, "grpc", "red") as red,
    ):
        one = bucket(app, "put")
        # its first frame is larger than a burst
        stuck = asyncio.ensure_future(asyncio.to_thread(put_all, red, LARGE))
        await waits(one)
        await asyncio.to_thread(red.close)
        with pytest.raises(ClientClosed):
            await stuck
        async with asyncio.timeout(60):
            while one.waiting_calls:
                await asyncio.sleep(0.001)
        # all of the burst is there again, although time stands still
        assert one.take_at_once(BURST)


async def test_a_node_that_is_alone_has_no_other_nodes(tmp_path: Path, clock: HandClock) -> None:
    """What only nodes ask each other is as slow as everything else where there are none."""
    async with (
        paced(tmp_path, clock, 'get_rate = "64KiB"', stream_seconds=2.0) as app,
        connected(app.address, [("authorization", "Bearer red")]) as red,
    ):
        await red.put(PREFIX)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await red.get(hashes_of(PREFIX), here=True)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_a_node_pulls_for_a_caller_counts_where_the_caller_gets_it(
    tmp_path: Path, redis: Deployment
) -> None:
    lines = f'get_rate = "{RATE}"\nburst = "64MiB"'
    async with (
        apps(redis, 2, tokens_file=tokens(tmp_path, red=lines)) as (a, b),
        connected(a.address, [("authorization", "Bearer red")]) as at_a,
        connected(b.address, [("authorization", "Bearer red")]) as at_b,
    ):
        results = await at_a.put(PREFIX)
        assert {one.status for one in results} == {pb.PUT_STATUS_STORED}
        await matches(at_b, PREFIX, len(PREFIX))
        got = await at_b.get(hashes_of(PREFIX))
        assert [bytes(got.payloads[i]) for i in range(len(PREFIX))] == [b.data for b in PREFIX]
        assert bucket(a, "get").moved_bytes == 0
        assert bucket(b, "get").moved_bytes == SIZE

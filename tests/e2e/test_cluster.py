"""Many nodes as one store: real nodes, a real Redis, real faults."""

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from packkv.client import Client as StoreClient
from packkv.client import ClientConfig
from packkv.errors import StoreError, StoreUnavailable
from packkv_protos.v1 import block_store_pb2 as pb
from tests.store.conftest import (
    Client,
    Payload,
    Process,
    build_prefix,
    connected,
    server_process,
)
from tests.store.redis_servers import Deployment, deployment, free_port


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Deployment]:
    with deployment("server", tmp_path) as made:
        yield made


def hashes_of(prefix: Sequence[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in prefix]


@asynccontextmanager
async def nodes(
    redis: Deployment, *data: Path | None
) -> AsyncIterator[list[tuple[Process, Client]]]:
    """A node for each data directory, or None for one in RAM alone, and a client of each."""
    async with AsyncExitStack() as stack:
        running = []
        for folder in data:
            flags = ["--ram-bytes", "32MiB", "--index", redis.url, "--grace-seconds", "1"]
            flags += ["--data-dir", str(folder), "--disk-bytes", "64MiB"] if folder else []
            process = stack.enter_context(server_process(*flags))
            running.append((process, await stack.enter_async_context(connected(process.address))))
        yield running


async def matches(client: Client, prefix: Sequence[Payload], blocks: int) -> None:
    """Returns when a match has so many blocks."""
    async with asyncio.timeout(20):
        while (await client.match(hashes_of(prefix))).blocks != blocks:
            await asyncio.sleep(0.05)


async def holds(client: Client, prefix: Sequence[Payload], blocks: int) -> bool:
    """Whether the node itself has so many blocks from the front."""
    return bool((await client.match(hashes_of(prefix), here=True)).blocks == blocks)


async def test_a_prefix_published_to_one_node_is_fetched_through_another(
    redis: Deployment,
) -> None:
    prefix = build_prefix("a", 40, section_bytes=20_000)
    async with nodes(redis, None, None) as ((_, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 40)
        assert await holds(b, prefix, 0)
        found = await b.match(hashes_of(prefix), lease_ms=10_000)
        assert list(found.lengths) == [len(payload.data) for payload in prefix]
        assert found.lease_id
        got = await b.get(hashes_of(prefix), lease_id=found.lease_id)
        assert [got.payloads[at] for at in range(40)] == [payload.data for payload in prefix]
        # it is kept, and found without anybody else from now on
        assert await holds(b, prefix, 40)
        assert (await b.stats()).counters["packkv_pulled_blocks_total"] == 40


async def test_a_run_may_be_scattered_over_nodes(redis: Deployment) -> None:
    prefix = build_prefix("a", 30)
    async with nodes(redis, None, None, None) as ((_, a), (_, b), (_, c)):
        await c.put(prefix[:5] + prefix[12:14])
        await a.put(prefix[5:10] + prefix[15:20])
        await b.put(prefix[10:12] + prefix[14:15] + prefix[20:29])
        await matches(c, prefix, 29)
        found = await c.match(hashes_of(prefix))
        assert found.miss == pb.MISS_REASON_ABSENT
        got = await c.get(hashes_of(prefix))
        assert got.misses == {29: pb.MISS_REASON_ABSENT}
        assert [got.payloads[at] for at in range(29)] == [p.data for p in prefix[:29]]


async def test_heads_that_the_owner_lacks_are_a_miss(redis: Deployment) -> None:
    prefix = build_prefix("a", 3, heads=2)
    async with nodes(redis, None, None) as ((_, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 3)
        found = await b.match(hashes_of(prefix), heads=pb.Range(first=2, count=1))
        assert (found.blocks, found.miss) == (0, pb.MISS_REASON_HEADS)


async def test_many_callers_that_want_one_prefix_pull_it_once(redis: Deployment) -> None:
    prefix = build_prefix("a", 20, section_bytes=20_000)
    async with nodes(redis, None, None) as ((_, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 20)
        everybody = await asyncio.gather(*(b.get(hashes_of(prefix)) for _ in range(12)))
        for got in everybody:
            assert [got.payloads[at] for at in range(20)] == [p.data for p in prefix]
        sent = (await a.stats()).counters["packkv_sent_bytes_total"]
        assert sent == sum(len(payload.data) for payload in prefix)


async def test_a_node_that_was_killed_makes_a_miss_and_no_wait(redis: Deployment) -> None:
    shared, alone = build_prefix("shared", 10), build_prefix("alone", 10)
    async with nodes(redis, None, None) as ((killed, a), (_, b)):
        await a.put(shared)
        await a.put(alone)
        await matches(b, shared, 10)
        await matches(b, alone, 10)
        await b.get(hashes_of(shared))
        killed.kill()
        began = time.monotonic()
        assert (await b.match(hashes_of(alone))).blocks == 0
        assert set((await b.get(hashes_of(alone))).misses) == set(range(10))
        got = await b.get(hashes_of(shared))
        assert [got.payloads[at] for at in range(10)] == [p.data for p in shared]
        assert time.monotonic() - began < 5


async def test_a_node_that_hangs_makes_a_miss_and_no_wait(redis: Deployment) -> None:
    prefix = build_prefix("a", 10)
    async with nodes(redis, None, None) as ((hung, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 10)
        hung.popen.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert (await b.match(hashes_of(prefix))).blocks == 0
            assert len((await b.get(hashes_of(prefix))).misses) == 10
            assert time.monotonic() - began < 5
        finally:
            hung.popen.send_signal(signal.SIGCONT)
        await matches(b, prefix, 10)


async def test_redis_killed_and_restarted_empty_is_told_again(redis: Deployment) -> None:
    prefix, later = build_prefix("a", 10), build_prefix("later", 5)
    async with nodes(redis, None, None) as ((_, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 10)
        redis.servers[0].kill()
        assert (await a.match(hashes_of(prefix))).blocks == 10
        assert (await b.match(hashes_of(prefix))).blocks == 0
        await a.put(later)
        redis.servers[0].start()
        await matches(b, prefix, 10)
        await matches(b, later, 5)


async def test_a_paused_redis_delays_nobody_beyond_the_deadline(redis: Deployment) -> None:
    prefix, other = build_prefix("a", 10), build_prefix("b", 10)
    async with nodes(redis, None, None) as ((_, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 10)
        redis.servers[0].pause()
        try:
            began = time.monotonic()
            assert (await b.match(hashes_of(prefix))).blocks == 0
            results = await b.put(other)
            assert {result.status for result in results} == {pb.PUT_STATUS_STORED}
            assert len((await b.get(hashes_of(other))).payloads) == 10
            assert len((await b.get(hashes_of(prefix))).misses) == 10
            assert time.monotonic() - began < 5
        finally:
            redis.servers[0].go_on()
        await matches(b, prefix, 10)
        await matches(a, other, 10)


async def test_an_identity_and_its_blocks_survive_a_restart(
    redis: Deployment, tmp_path: Path
) -> None:
    prefix = build_prefix("a", 10)
    async with nodes(redis, None) as ((_, b),):
        async with nodes(redis, tmp_path / "a") as ((process, a),):
            await a.put(prefix)
            node = (await a.stats()).node
            await matches(b, prefix, 10)
            assert process.terminate() == 0
        # it has left: nobody is promised what it alone has
        assert (await b.match(hashes_of(prefix))).blocks == 0
        async with nodes(redis, tmp_path / "a") as ((_, a),):
            assert (await a.stats()).node == node
            await matches(b, prefix, 10)
            assert len((await b.get(hashes_of(prefix))).payloads) == 10


async def test_every_node_is_restarted_in_turn_and_no_request_fails(
    redis: Deployment, tmp_path: Path
) -> None:
    """Workers name their own node first and others behind it, as one gRPC target."""
    prefixes = [build_prefix(f"p{number}", 8, section_bytes=2_000) for number in range(6)]
    ports = [free_port() for _ in range(3)]
    stop, failures, served = threading.Event(), [], [0, 0, 0]

    def work(first: int) -> None:
        order = ports[first:] + ports[:first]
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in order)
        with StoreClient(target, config=ClientConfig(paths=("grpc",))) as client:
            for prefix in itertools.cycle(prefixes):
                if stop.is_set():
                    return
                hashes = hashes_of(prefix)
                try:
                    found = client.match(hashes, lease_ms=2_000)
                    for at, got in enumerate(client.get(hashes[: found.blocks or 1])):
                        assert got.data is None or got.data == prefix[at].data
                        served[first] += got.data is not None
                    # a publisher drops what a node that leaves does not take
                    with suppress(StoreUnavailable):
                        client.put([(one.chain_hash, one.data) for one in prefix])
                except (StoreError, AssertionError) as error:
                    failures.append(repr(error))

    with ExitStack() as stack:
        running = [node_at(stack, redis, port, tmp_path) for port in ports]
        workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        try:
            for number, port in enumerate(ports):
                before = list(served)
                assert await asyncio.to_thread(running[number].terminate) == 0
                await asyncio.to_thread(node_at, stack, redis, port, tmp_path)
                async with asyncio.timeout(30):
                    while any(now < then + 8 for now, then in zip(served, before, strict=True)):
                        await asyncio.sleep(0.02)
        finally:
            stop.set()
            for worker in workers:
                await asyncio.to_thread(worker.join)
    assert failures == []


def node_at(stack: ExitStack, redis: Deployment, port: int, folder: Path) -> Process:
    flags = ["--listen", f"127.0.0.1:{port}", "--index", redis.url, "--ram-bytes", "32MiB"]
    flags += ["--data-dir", str(folder / str(port)), "--disk-bytes", "64MiB"]
    return stack.enter_context(server_process(*flags, "--grace-seconds", "1"))

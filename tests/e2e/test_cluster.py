"""Many nodes as one store: real nodes, a real Redis, real faults."""

import asyncio
import itertools
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from packkv.client import Client as StoreClient
from packkv.client import ClientConfig, Fleet, PutStatus
from packkv_protos.v1 import block_store_pb2 as pb
from tests.store.conftest import (
    Client,
    Got,
    Payload,
    Process,
    build_prefix,
    connected,
    server_process,
)
from tests.store.redis_servers import Deployment, deployment, free_port

LACKING = pb.MISS_REASON_HEADS


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
    async with asyncio.timeout(60):
        while (await client.match(hashes_of(prefix))).blocks != blocks:
            await asyncio.sleep(0.05)


async def fetched(client: Client, prefix: Sequence[Payload], blocks: int) -> Got:
    """What a Get brings when it brings so many: on a busy machine, what comes late is a miss."""
    async with asyncio.timeout(60):
        while len((got := await client.get(hashes_of(prefix))).payloads) != blocks:
            await asyncio.sleep(0.05)
        return got


async def keeps(client: Client, prefix: Sequence[Payload]) -> None:
    """Returns when the node itself has all blocks: they are passed on before they are kept."""
    async with asyncio.timeout(60):
        while not await holds(client, prefix, len(prefix)):
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
        assert list(found.lengths) == [len(payload.data) for payload in prefix[: found.blocks]]
        assert found.lease_id
        got = await fetched(b, prefix, 40)
        assert [got.payloads[at] for at in range(40)] == [payload.data for payload in prefix]
        # it is kept, and found without anybody else from now on
        await keeps(b, prefix)
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
        got = await fetched(c, prefix, 29)
        assert got.misses == {29: pb.MISS_REASON_ABSENT}
        assert [got.payloads[at] for at in range(29)] == [p.data for p in prefix[:29]]


async def test_heads_that_the_owner_lacks_are_a_miss(redis: Deployment) -> None:
    prefix = build_prefix("a", 3, heads=2)
    async with nodes(redis, None, None) as ((_, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 3)
        heads = pb.Range(first=2, count=1)
        async with asyncio.timeout(60):
            while (found := await b.match(hashes_of(prefix), heads=heads)).miss != LACKING:
                assert found.blocks == 0
                await asyncio.sleep(0.05)
        assert found.blocks == 0


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
        await fetched(b, shared, 10)
        await keeps(b, shared)
        killed.kill()
        async with asyncio.timeout(60):
            assert (await b.match(hashes_of(alone))).blocks == 0
            assert set((await b.get(hashes_of(alone))).misses) == set(range(10))
            got = await b.get(hashes_of(shared))
        assert [got.payloads[at] for at in range(10)] == [p.data for p in shared]


@pytest.mark.parametrize("path", ["grpc", "bulk"])
async def test_an_owner_killed_in_the_middle_of_a_pull_makes_misses(
    redis: Deployment, path: str
) -> None:
    prefix = build_prefix("a", 24, layers=8, section_bytes=90_000)
    # nodes without a bulk port pull over gRPC
    big = ["--ram-bytes", "128MiB", "--index", redis.url]
    big += ["--bulk-listen", "off"] if path == "grpc" else []
    with ExitStack() as stack:
        owner, asked = (stack.enter_context(server_process(*big)) for _ in range(2))
        at_owner, at_asked = (
            stack.enter_context(StoreClient(node.address, config=ClientConfig(paths=(path,))))
            for node in (owner, asked)
        )
        at_owner.put([(one.chain_hash, one.data) for one in prefix])
        async with connected(asked.address) as client:
            await matches(client, prefix, 24)
            fetching = asyncio.ensure_future(asyncio.to_thread(at_asked.get, hashes_of(prefix)))
            async with asyncio.timeout(60):
                while not (await client.stats()).tiers[0].used_bytes:
                    await asyncio.sleep(0)
        owner.kill()
        # made again by the client, if any of it had been passed on
        for got, one in zip(await fetching, prefix, strict=True):
            assert got.data is None or got.data == one.data


async def test_a_node_that_hangs_makes_a_miss_and_no_wait(redis: Deployment) -> None:
    prefix = build_prefix("a", 10)
    async with nodes(redis, None, None) as ((hung, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 10)
        hung.popen.send_signal(signal.SIGSTOP)
        try:
            # it would never answer
            async with asyncio.timeout(60):
                assert (await b.match(hashes_of(prefix))).blocks == 0
                assert len((await b.get(hashes_of(prefix))).misses) == 10
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
            # it would never answer
            async with asyncio.timeout(60):
                assert (await b.match(hashes_of(prefix))).blocks == 0
                results = await b.put(other)
                assert {result.status for result in results} == {pb.PUT_STATUS_STORED}
                assert len((await b.get(hashes_of(other))).payloads) == 10
                assert len((await b.get(hashes_of(prefix))).misses) == 10
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
        await matches(b, prefix, 0)
        async with nodes(redis, tmp_path / "a") as ((_, a),):
            assert (await a.stats()).node == node
            await matches(b, prefix, 10)
            await fetched(b, prefix, 10)


class Worker(threading.Thread):
    """Publishes, finds and fetches without a pause; what goes wrong is in `failures`."""

    def __init__(self, number: int, fleet: Fleet, seeds: Sequence[Sequence[Payload]]) -> None:
        super().__init__(daemon=True)
        self.failures: list[str] = []
        self.served = 0
        self._number = number
        self._fleet = fleet
        self._seeds = seeds
        self._ended = threading.Event()

    def run(self) -> None:
        with self._fleet:
            for turn in itertools.count():
                if self._ended.is_set():
                    return
                own = build_prefix(f"{self._number} {turn}", 4, section_bytes=2_000)
                try:
                    results = self._fleet.put([(one.chain_hash, one.data) for one in own])
                    assert {one.status for one in results} == {PutStatus.STORED}
                    for prefix in (self._seeds[turn % len(self._seeds)], own):
                        self._fetch(prefix)
                except Exception as error:
                    self.failures.append(repr(error))

    def _fetch(self, prefix: Sequence[Payload]) -> None:
        found = self._fleet.match(hashes_of(prefix), lease_ms=2_000)
        wanted = hashes_of(prefix)[: found.blocks or 1]
        for at, got in enumerate(self._fleet.get(wanted, lease_id=found.lease_id)):
            assert got.data is None or got.data == prefix[at].data, "wrong bytes"
            self.served += got.data is not None
        self._fleet.release(found.lease_id, wait=False)

    def stop(self) -> None:
        self._ended.set()
        self.join()


async def test_every_node_is_restarted_in_turn_and_no_request_fails(redis: Deployment) -> None:
    """The nodes have nothing but RAM: what only one of them has, it must hand over."""
    seeds = [build_prefix(f"p{number}", 8, section_bytes=2_000) for number in range(9)]
    ports = [free_port() for _ in range(3)]
    targets = [f"127.0.0.1:{port}" for port in ports]
    # two have a node of their own and others behind it, one goes to the owners itself
    fleets = [Fleet(targets), Fleet([targets[1], targets[2], targets[0]])]
    fleets.append(Fleet(targets[::-1], direct=True))
    workers = [Worker(number, fleet, seeds) for number, fleet in enumerate(fleets)]
    with ExitStack() as stack:
        running = [node_at(stack, redis, port) for port in ports]
        for number, prefix in enumerate(seeds):
            async with connected(targets[number % 3]) as node:
                await node.put(prefix)
        for worker in workers:
            worker.start()
        try:
            for number, port in enumerate(ports):
                enough = [worker.served + 12 for worker in workers]
                assert await asyncio.to_thread(running[number].terminate) == 0
                await asyncio.to_thread(node_at, stack, redis, port)
                async with asyncio.timeout(60), connected(targets[number]) as node:
                    for prefix in seeds:
                        await matches(node, prefix, 8)
                    while any(w.served < one for w, one in zip(workers, enough, strict=True)):
                        await asyncio.sleep(0.02)
        finally:
            for worker in workers:
                await asyncio.to_thread(worker.stop)
    assert [worker.failures for worker in workers] == [[], [], []]


def node_at(stack: ExitStack, redis: Deployment, port: int) -> Process:
    flags = ["--listen", f"127.0.0.1:{port}", "--index", redis.url, "--ram-bytes", "64MiB"]
    return stack.enter_context(server_process(*flags, "--grace-seconds", "30"))


async def test_with_replicas_a_block_outlives_the_node_that_was_given_it(redis: Deployment) -> None:
    prefix = build_prefix("a", 20, section_bytes=2_000)
    async with AsyncExitStack() as stack:
        flags = ["--ram-bytes", "32MiB", "--index", redis.url, "--replicas", "2"]
        running = [stack.enter_context(server_process(*flags)) for _ in range(3)]
        at = [await stack.enter_async_context(connected(node.address)) for node in running]
        copied = 0
        async with asyncio.timeout(60):
            # the first Put may come before the nodes know of each other
            while copied < 20:
                await at[0].clear()
                await at[0].put(prefix)
                copied = (await at[0].stats()).counters["packkv_replicas_total"]
                await asyncio.sleep(0.2)
        running[0].kill()
        for client in at[1:]:
            await matches(client, prefix, 20)
            got = await client.get(hashes_of(prefix))
            assert [got.payloads[place] for place in range(20)] == [one.data for one in prefix]


async def test_redis_killed_while_a_node_hands_over_holds_nobody_up(redis: Deployment) -> None:
    prefix = build_prefix("a", 300, section_bytes=10_000)
    async with nodes(redis, None, None) as ((leaving, a), (_, b)):
        await a.put(prefix)
        await matches(b, prefix, 300)
        leaving.popen.terminate()
        redis.servers[0].kill()
        # calls are answered for as long as it is there
        with suppress(grpc.aio.AioRpcError):
            while await asyncio.wait_for(holds(a, prefix, 300), 60):
                await asyncio.sleep(0.01)
        # Redis is given up after its deadline, the hand-over after its own
        assert await asyncio.to_thread(leaving.popen.wait, 60) == 0
        # what came over is whole
        got = await b.get(hashes_of(prefix))
        assert all(data == prefix[at].data for at, data in got.payloads.items())

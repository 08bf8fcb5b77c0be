"""Many blocks and large ones, and what memory a store takes for them: a number of the docs."""

from __future__ import annotations

import hashlib
import re
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import xxhash

from packkv.client import Client, PutStatus
from tests.clients.conftest import StoreProcess
from tests.e2e.faults.conftest import Connect, StartStore, contents, named, names, pid_of
from tests.store.conftest import MIB, Payload, build_payload, build_prefix

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

RAM = 64 * MIB
# docs/operations.md, "Memory and disk": beside the RAM tier; for each block; for each stream of
# gRPC that is under way
CONSTANT = 128 * MIB
A_BLOCK = 1024
A_STREAM = {"grpc": 32 * MIB}
STREAMS = 4
OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def peak_rss(store: StoreProcess) -> int:
    """The most memory that the store had at one time, the arena counted."""
    with open(f"/proc/{pid_of(store)}/status") as status:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert found is not None
    return int(found[1]) * 1024


def check_bound(store: StoreProcess, path: str, blocks: int, streams: int) -> None:
    bound = RAM + CONSTANT + A_BLOCK * blocks + A_STREAM.get(path, 0) * streams
    peak = peak_rss(store)
    assert peak <= bound, f"{peak / MIB:.0f} MiB, the docs allow {bound / MIB:.0f}"


@pytest.fixture
def store(start_store: StartStore) -> StoreProcess:
    return start_store("--ram-bytes", str(RAM), "--disk-bytes", "2GiB", "--no-sync")


def test_the_bound_is_that_of_the_docs() -> None:
    text = OPERATIONS.read_text()
    promise = f"{CONSTANT // MIB} MiB, 1 KiB a block, and {A_STREAM['grpc'] // MIB} MiB"
    assert promise in text


@pytest.fixture(scope="module")
def tiny_blocks() -> list[Payload]:
    root = hashlib.sha256(b"tiny").digest()
    return [
        build_payload(hashlib.sha256(b"%d" % n).digest(), root, layers=1, heads=1, section_bytes=64)
        for n in range(10_000)
    ]


def test_ten_thousand_small_blocks(
    store: StoreProcess, connect: Connect, path: str, tiny_blocks: list[Payload]
) -> None:
    blocks = tiny_blocks
    client = connect(store.target, deadline_s=60.0, transfer_deadline_s=120.0)
    results = client.put(named(blocks))
    assert {result.status for result in results} == {PutStatus.STORED}
    assert client.match(names(blocks)).blocks == len(blocks)
    assert contents(client.get(names(blocks))) == [block.data for block in blocks]
    check_bound(store, path, len(blocks), 1)


class Huge:
    """Large blocks that differ in their names alone."""

    def __init__(self) -> None:
        self._first = build_payload(bytes(32), bytes(32), layers=8, section_bytes=380_000)

    def __getitem__(self, number: int) -> Payload:
        name = hashlib.sha256(struct.pack("<Q", number)).digest()
        return renamed(self._first, name)


def renamed(payload: Payload, name: bytes) -> Payload:
    head = bytearray(payload.data[: payload.head_length])
    head[64:96] = name
    head[176:192] = bytes(16)
    head[176:192] = xxhash.xxh3_128_digest(bytes(head))
    data = bytes(head) + payload.data[payload.head_length :]
    return Payload(name, payload.root_hash, data, payload.layers, payload.heads)


def test_a_hundred_huge_blocks(store: StoreProcess, connect: Connect, path: str) -> None:
    huge = Huge()
    client = connect(store.target, transfer_deadline_s=300.0)

    def put(first: int) -> set[PutStatus]:
        # one at a time is in the memory of this process
        stream = ((block.chain_hash, block.data) for n in range(25) if (block := huge[first + n]))
        return {result.status for result in client.put(stream)}

    with ThreadPoolExecutor(STREAMS) as threads:
        statuses = list(threads.map(put, range(0, 100, 25)))
        # what has no room while everything else is under way is refused, and may come again
        assert all(one <= {PutStatus.STORED, PutStatus.REJECTED} for one in statuses)
    for first in range(0, 100, 25):
        assert put(first) <= {PutStatus.STORED, PutStatus.ALREADY_PRESENT}
    # other paths bring what has no room in the arena
    reader = connect(store.target, paths=(path, "grpc"), transfer_deadline_s=300.0)
    for number in range(0, 100, 5):
        some = [huge[number + n] for n in range(5)]
        assert contents(reader.get(names(some))) == [block.data for block in some]
    check_bound(store, path, 100, STREAMS)


def test_readers_that_stop_reading_cost_no_memory(
    store: StoreProcess, connect: Connect, path: str
) -> None:
    prefix = build_prefix("a", 40, section_bytes=150_000)
    size = sum(len(block.data) for block in prefix)
    assert size < RAM * 0.9
    client = connect(store.target)
    client.put(named(prefix))
    over = threading.Event()
    begun = threading.Semaphore(0)

    def read_slowly(_: int) -> list[bytes | None]:
        def stop(count: int) -> None:
            if not over.is_set():
                begun.release()
                over.wait(60)

        with Client(store.target, config=client.config) as slow:
            return contents(slow.get(names(prefix), on_bytes=stop, deadline_s=120))

    with ThreadPoolExecutor(STREAMS) as threads:
        slow = threads.map(read_slowly, range(STREAMS))
        for _ in range(STREAMS):
            assert begun.acquire(timeout=60)
        # nobody else waits for them
        assert contents(client.get(names(prefix))) == [block.data for block in prefix]
        other = build_prefix("b", 2, section_bytes=1_000)
        assert {r.status for r in client.put(named(other))} == {PutStatus.STORED}
        over.set()
        assert all(got == [block.data for block in prefix] for got in slow)
    check_bound(store, path, len(prefix), STREAMS + 1)
    assert threads_of(store) < 64


def threads_of(store: StoreProcess) -> int:
    return int(psutil.Process(pid_of(store)).num_threads())

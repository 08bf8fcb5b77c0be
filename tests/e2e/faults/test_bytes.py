"""Bytes that rot in the memory and on the disk of a store never reach a worker, on no path."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import pytest

from packkv.client import Client
from packkv.prefix_cache import PrefixCacheConfig
from tests.clients.conftest import StoreProcess, Worker
from tests.e2e.faults.conftest import Connect, StartStore, pid_of, until

pytestmark = pytest.mark.timeout(600)

TOKENS = list(range(64 * 6))
ROTTEN = 3
PATIENT = PrefixCacheConfig(deadline_s=20)


def arenas(pid: int) -> Iterator[range]:
    """Where the RAM tier of a store is in its memory."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) .*memfd:packkv-arena", line)
            if found:
                yield range(int(found[1], 16), int(found[2], 16))


def flip_in_memory(store: StoreProcess, payload: bytes) -> int:
    """Flips a bit in every copy of the payload that the RAM tier has; how many there were."""
    pid = pid_of(store)
    flipped = 0
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for arena in arenas(pid):
            memory.seek(arena.start)
            at = memory.read(len(arena)).find(payload)
            if at >= 0:
                memory.seek(arena.start + at + len(payload) - 20)
                memory.write(bytes([payload[-20] ^ 8]))
                flipped += 1
    return flipped


@pytest.mark.skipif(sys.platform != "linux", reason="reaches into the memory of the store")
def test_rot_in_the_memory_is_never_handed_to_a_worker_and_the_store_finds_it(
    start_store: StartStore, connect: Connect, worker: Worker
) -> None:
    store = start_store()
    truth = [payload for _, payload in worker.blocks(TOKENS)]
    client = connect(store.target)
    with worker.prefixes(client, PATIENT) as prefixes:
        prefixes.publish(TOKENS, worker.blocks(TOKENS))
        assert prefixes.flush(60)
        assert prefixes.load([*TOKENS, 1]).num_tokens == len(TOKENS)
        # nobody is to find it before the worker does
        assert flip_in_memory(store, truth[ROTTEN]) == 1
        prefix = prefixes.load([*TOKENS, 1])
        assert [payload.data for payload in prefix.payloads] == truth[:ROTTEN]
        assert set(prefixes.counters.misses) <= {"checksum", "absent", "corrupt"}
        assert sum(prefixes.counters.misses.values()) == 1
        corrupt = 'packkv_corrupt_blocks_total{tier="ram"}'
        until(lambda: client.stats().counters[corrupt] == 1)
        assert client.match(worker.hashes(TOKENS)).blocks == ROTTEN
        # put again it is whole
        prefixes.publish(TOKENS, worker.blocks(TOKENS))
        assert prefixes.flush(60)
    with worker.prefixes(client, PATIENT) as again:
        again.publish(TOKENS, worker.blocks(TOKENS))
        assert again.flush(60)
        prefix = again.load([*TOKENS, 1])
        assert [payload.data for payload in prefix.payloads] == truth


def test_rot_on_the_disk_is_never_handed_to_a_worker_and_is_counted_once(
    start_store: StartStore, connect: Connect, worker: Worker
) -> None:
    store = start_store()
    truth = [payload for _, payload in worker.blocks(TOKENS)]
    with Client(store.target) as publisher, worker.prefixes(publisher) as prefixes:
        prefixes.publish(TOKENS, worker.blocks(TOKENS))
        assert prefixes.flush(60)
    store.kill()
    flip_on_disk(store, truth[ROTTEN])
    store.start()
    client = connect(store.target)
    with worker.prefixes(client, PATIENT) as prefixes:
        for _ in range(3):
            prefix = prefixes.load([*TOKENS, 1])
            assert [payload.data for payload in prefix.payloads] == truth[:ROTTEN]
        assert set(prefixes.counters.misses) <= {"absent", "corrupt"}
        counters = client.stats().counters
        assert counters['packkv_corrupt_blocks_total{tier="disk"}'] == 1
        assert client.match(worker.hashes(TOKENS)).blocks == ROTTEN


def flip_on_disk(store: StoreProcess, payload: bytes) -> None:
    path = store.data_dir / "blocks"
    at = path.read_bytes().index(payload) + len(payload) - 20
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([payload[-20] ^ 8]))
        file.flush()
        os.fsync(file.fileno())

"""The client against a real server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from packkv.client import Client, ClientConfig, Fetched, Miss, PutStatus, Span, Tier
from packkv.errors import DeadlineExceeded, InvalidRequest, StoreUnavailable

if TYPE_CHECKING:
    from tests.clients.conftest import StoreProcess, Worker

TOKENS = list(range(64 * 5))
NOWHERE = "127.0.0.1:1"


def contents(blocks: list[Fetched]) -> list[bytes]:
    return [bytes(block.data or b"") for block in blocks]


@pytest.fixture
def stored(client: Client, worker: Worker) -> list[tuple[bytes, bytes]]:
    blocks = list(
        zip(worker.hashes(TOKENS), (payload for _, payload in worker.blocks(TOKENS)), strict=True)
    )
    assert {put.status for put in client.put(blocks)} == {PutStatus.STORED}
    return blocks


def test_what_was_put_is_matched_and_got(client: Client, stored: list[tuple[bytes, bytes]]) -> None:
    hashes = [chain_hash for chain_hash, _ in stored]
    match = client.match([*hashes, b"?" * 32], lease_ms=5000)
    assert match.blocks == 5
    assert match.lengths == tuple(len(payload) for _, payload in stored)
    assert set(match.tiers) <= {Tier.RAM, Tier.DISK}
    assert match.miss is Miss.ABSENT
    assert match.lease_id
    assert 0 < match.lease_ms <= 5000
    got = client.get(hashes, lease_id=match.lease_id)
    assert contents(got) == [payload for _, payload in stored]
    client.release(match.lease_id)


def test_a_miss_is_an_answer_in_its_place(
    client: Client, stored: list[tuple[bytes, bytes]]
) -> None:
    (first, payload), absent = stored[0], b"?" * 32
    got = client.get([absent, first, absent])
    assert [block.miss for block in got] == [Miss.ABSENT, None, Miss.ABSENT]
    assert contents(got)[1] == payload


def test_putting_again_changes_nothing(client: Client, stored: list[tuple[bytes, bytes]]) -> None:
    assert {put.status for put in client.put(stored)} == {PutStatus.ALREADY_PRESENT}


def test_a_payload_that_is_not_what_it_claims_is_rejected_alone(
    client: Client, worker: Worker
) -> None:
    chain_hash, payload = worker.hashes(TOKENS)[0], worker.payload(TOKENS, 0)
    broken = bytearray(payload)
    broken[-1] ^= 1
    first, second = client.put([(chain_hash, broken), (b"x" * 32, payload)])
    assert first.status is second.status is PutStatus.REJECTED
    assert first.reason
    assert client.match([chain_hash]).blocks == 0


def test_one_layer_of_some_heads_comes_alone(
    client: Client, worker: Worker, stored: list[tuple[bytes, bytes]]
) -> None:
    chain_hash, payload = stored[1]
    (block,) = client.get([chain_hash], layers=Span(1, 1), heads=Span(1, 1))
    assert block.data is not None
    assert len(block.data) == len(payload)
    received = sum(length for _, length in block.received)
    assert 0 < received < len(payload)
    for offset, length in block.received:
        assert block.data[offset : offset + length] == payload[offset : offset + length]
    # the last section is layer 1, head 1
    assert block.received[-1][0] + block.received[-1][1] == len(payload)


def test_leases_are_renewed_and_released(client: Client, stored: list[tuple[bytes, bytes]]) -> None:
    match = client.match([stored[0][0]], lease_ms=1000)
    assert 0 < client.renew(match.lease_id, 3000) <= 3000
    client.release(match.lease_id)
    assert client.renew(match.lease_id, 3000) == 0
    assert client.renew(12345, 3000) == 0
    client.release(12345)


def test_a_lease_released_without_waiting_ends_soon(
    client: Client, stored: list[tuple[bytes, bytes]]
) -> None:
    match = client.match([stored[0][0]], lease_ms=60_000)
    client.release(match.lease_id, wait=False)
    ends_at = time.monotonic() + 60
    while client.stats().leases and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert client.stats().leases == 0


def test_the_first_profile_wins(client: Client) -> None:
    digest = time.time_ns().to_bytes(32, "big")
    assert client.get_profile(digest) is None
    assert client.put_profile(digest, b"first") == b"first"
    assert client.put_profile(digest, b"second") == b"first"
    assert client.get_profile(digest) == b"first"


def test_stats_and_clear_tell_what_is_there(
    client: Client, worker: Worker, stored: list[tuple[bytes, bytes]]
) -> None:
    stats = client.stats()
    assert stats.blocks == 5
    assert stats.node
    assert stats.version
    assert {tier.tier for tier in stats.tiers} == {"ram", "disk"}
    assert all(0 < tier.used_bytes <= tier.capacity_bytes for tier in stats.tiers if tier.blocks)
    assert client.clear(b"?" * 32).blocks == 0
    cleared = client.clear(worker.namespace.root_hash())
    assert cleared.blocks == 5
    assert client.stats().blocks == 0


def test_ping_answers_for_a_store_and_fails_for_nobody(client: Client) -> None:
    client.ping()
    with Client(NOWHERE, config=ClientConfig(retries=0)) as nobody, pytest.raises(StoreUnavailable):
        nobody.ping()


def test_a_wrong_call_says_what_is_wrong(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="Match"):
        client.match([b"short"])


def test_many_threads_share_a_client(client: Client, stored: list[tuple[bytes, bytes]]) -> None:
    hashes = [chain_hash for chain_hash, _ in stored]

    def fetch(_: int) -> list[bytes]:
        return contents(client.get(hashes))

    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(fetch, range(40)):
            assert got == [payload for _, payload in stored]


def test_a_stopped_process_costs_the_deadline_and_no_more(own_store: StoreProcess) -> None:
    with Client(own_store.target, config=ClientConfig(deadline_s=0.3)) as client:
        client.ping(deadline_s=60.0)
        own_store.pause()
        # the store itself would never end it
        with pytest.raises(DeadlineExceeded):
            client.match([b"?" * 32])
        own_store.resume()
        assert client.match([b"?" * 32], deadline_s=60.0).blocks == 0

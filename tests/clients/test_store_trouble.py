"""PrefixCache against stores that are gone, hang, lie or rot: fewer blocks, in time, counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import grpc
import pytest

from packkv.client import Client, ClientConfig
from packkv.prefix_cache import PrefixCacheConfig
from packkv_protos.v1 import block_store_pb2 as pb

if TYPE_CHECKING:
    from tests.clients.conftest import PuppetStore, StoreProcess, Worker

TOKENS = list(range(64 * 3))
PROMPT = [*TOKENS, 1]
NOWHERE = "127.0.0.1:1"
DEADLINE_S = 0.8
# how late a busy machine may be: half of what a store that hangs would take
SLACK_S = 30.0
QUICK = PrefixCacheConfig(deadline_s=DEADLINE_S)
PATIENT = PrefixCacheConfig(deadline_s=60)


def timed(load: Callable[[], object]) -> float:
    started = time.monotonic()
    load()
    return time.monotonic() - started


@pytest.fixture
def served(puppet: PuppetStore, worker: Worker) -> PuppetStore:
    """A puppet that has the three blocks of PROMPT."""
    payloads = (payload for _, payload in worker.blocks(TOKENS))
    puppet.blocks = dict(zip(worker.hashes(TOKENS), payloads, strict=True))
    return puppet


def test_a_store_that_was_never_started(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    # once it is open, the circuit stays so: nobody refuses at once
    config = ClientConfig(breaker_pause_s=60, breaker_max_pause_s=60)
    with Client(NOWHERE, config=config) as client, worker.prefixes(client, PATIENT) as prefixes:
        for _ in range(20):
            assert timed(lambda: prefixes.load(PROMPT)) < SLACK_S
        assert prefixes.counters.misses == {"unavailable": 20}
        assert prefixes.counters.hit_blocks == 0
        # most were spared the attempt by the open circuit
        assert prefixes.counters.errors["CircuitOpen"] >= 15
        prefixes.publish(TOKENS, worker.blocks(TOKENS))
        assert prefixes.flush(60)
        assert prefixes.counters.dropped_blocks == {"unavailable": 3}
        # not sent is not known: they are offered again
        assert prefixes.unpublished(TOKENS) == [0, 1, 2]
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 2, "one line for loading, one for publishing"
    assert NOWHERE in lines[0]


def test_a_store_that_is_stopped_before_the_call(own_store: StoreProcess, worker: Worker) -> None:
    with (
        Client(own_store.target) as client,
        worker.prefixes(client, PATIENT) as patient,
        worker.prefixes(client, QUICK) as prefixes,
    ):
        patient.publish(TOKENS, worker.blocks(TOKENS))
        assert patient.flush(60)
        assert patient.load(PROMPT).num_tokens == 192
        own_store.pause()
        assert timed(lambda: prefixes.load(PROMPT)) < DEADLINE_S + SLACK_S
        assert prefixes.counters.misses == {"late": 1}
        own_store.resume()
        _until(lambda: patient.load(PROMPT).num_tokens == 192)


def test_a_store_that_is_killed_and_comes_back(own_store: StoreProcess, worker: Worker) -> None:
    config = ClientConfig(breaker_pause_s=0.1, breaker_max_pause_s=0.2)
    with Client(own_store.target, config=config) as client:
        prefixes = worker.prefixes(client, PATIENT)
        prefixes.publish(TOKENS, worker.blocks(TOKENS))
        assert prefixes.flush(60)
        own_store.kill()
        for _ in range(5):
            assert timed(lambda: prefixes.load(PROMPT)) < SLACK_S
        assert prefixes.counters.hit_blocks == 0
        own_store.start(own_store.target)
        _until(lambda: prefixes.load(PROMPT).num_tokens == 192)
        prefixes.close()


def test_a_store_that_hangs_in_the_middle_of_a_span_keeps_the_spans_before(
    served: PuppetStore, puppet_client: Client, worker: Worker
) -> None:
    over = threading.Event()
    hashes = worker.hashes(TOKENS)

    def hang_at_last(request: pb.GetRequest) -> Iterator[pb.GetFrame]:
        frames = served._honest_frames(request)
        yield next(frames)
        if hashes[2] in request.chain_hashes:
            over.wait(60)
        yield from frames

    served.frames = hang_at_last
    # longer on a machine that has not brought the first two by then
    for deadline_s in (DEADLINE_S, 10 * DEADLINE_S, SLACK_S):
        one_each = PrefixCacheConfig(deadline_s=deadline_s, span_bytes=1, probe_bytes=1)
        with worker.prefixes(puppet_client, one_each) as prefixes:
            prefix = prefixes.load(PROMPT)
        assert prefix.report.stopped_by == "late"
        if prefix.num_tokens == 128:
            break
    assert prefix.num_tokens == 128
    over.set()


def test_a_load_waits_no_longer_than_it_could_save(
    served: PuppetStore, puppet_client: Client, worker: Worker
) -> None:
    over = threading.Event()

    def hang(request: pb.MatchRequest) -> pb.MatchReply:
        over.wait(60)
        return pb.MatchReply()

    served.match_reply = hang
    patient = PrefixCacheConfig(deadline_s=15)
    with worker.prefixes(puppet_client, patient) as prefixes:
        prefixes.observe_prefill(1920, 1)
        # 192 tokens take 0.1 s to compute
        assert timed(lambda: prefixes.load(PROMPT)) < 0.1 + SLACK_S
        assert prefixes.counters.misses == {"late": 1}
    over.set()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "denied"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "limit"),
        (grpc.StatusCode.INTERNAL, "failure"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_refusal_is_a_miss_with_its_reason(
    served: PuppetStore, puppet_client: Client, worker: Worker, status: grpc.StatusCode, reason: str
) -> None:
    with worker.prefixes(puppet_client) as prefixes:
        served.refusals = [status]
        assert prefixes.load(PROMPT).num_tokens == 0
        assert prefixes.counters.misses == {reason: 1}


def flip(position: int, bit: int) -> Callable[[bytes], bytes]:
    def tamper(payload: bytes) -> bytes:
        changed = bytearray(payload)
        changed[position] ^= 1 << bit
        return bytes(changed)

    return tamper


def test_a_flipped_bit_anywhere_is_a_counted_miss(
    served: PuppetStore, puppet_client: Client, worker: Worker
) -> None:
    size = len(worker.payload(TOKENS, 0))
    # every byte of header and table, then a sample of the sections and the last byte
    positions = [*range(304), *range(304, size, 7), size - 1]
    silent = PrefixCacheConfig(deadline_s=30)
    with worker.prefixes(puppet_client, silent) as prefixes:
        for count, position in enumerate(positions, start=1):
            served.tamper = flip(position, position % 8)
            assert prefixes.load(PROMPT).num_tokens == 0, f"byte {position}"
            assert sum(prefixes.counters.misses.values()) == count
        assert set(prefixes.counters.misses) == {
            "magic",
            "version",
            "layout",
            "checksum",
            "truncated",
        }
        served.tamper = bytes
        assert prefixes.load(PROMPT).num_tokens == 192


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (lambda payload: payload[:-16], "truncated"),
        (lambda payload: payload[:100], "truncated"),
        (lambda payload: payload + bytes(16), "layout"),
        (lambda payload: bytes(len(payload)), "magic"),
    ],
    ids=["tail missing", "almost all missing", "longer", "zeros"],
)
def test_a_payload_of_another_length_is_a_counted_miss(
    served: PuppetStore,
    puppet_client: Client,
    worker: Worker,
    tamper: Callable[[bytes], bytes],
    reason: str,
) -> None:
    served.tamper = tamper
    with worker.prefixes(puppet_client) as prefixes:
        assert prefixes.load(PROMPT).num_tokens == 0
        assert prefixes.counters.misses == {reason: 1}


FOREIGN = {
    "another model": {"model": "other"},
    "other weights": {"weights_digest": "33" * 32},
    "an adapter": {"adapter_digest": "33" * 32},
    "another dtype": {"kv_dtype": "bfloat16"},
    "a profile": {"profile_digest": "33" * 32},
    "other positions": {"rope_digest": "33" * 32},
    "another tenant": {"tenant_salt": "b"},
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_sound_payload_of_someone_else_under_our_name_cuts_the_prefix(
    served: PuppetStore, puppet_client: Client, worker: Worker, change: dict[str, str]
) -> None:
    served.blocks[worker.hashes(TOKENS)[1]] = worker.having(**change).payload(TOKENS, 1)
    with worker.prefixes(puppet_client) as prefixes:
        assert prefixes.load(PROMPT).num_tokens == 64
        assert prefixes.counters.misses == {"identity": 1}


def test_blocks_in_another_order_cut_the_prefix(
    served: PuppetStore, puppet_client: Client, worker: Worker
) -> None:
    _, second, third = worker.hashes(TOKENS)
    served.blocks[second], served.blocks[third] = served.blocks[third], served.blocks[second]
    with worker.prefixes(puppet_client) as prefixes:
        assert prefixes.load(PROMPT).num_tokens == 64
        assert prefixes.counters.misses == {"identity": 1}


def test_a_store_that_announces_absurd_lengths_is_not_fetched_from(
    served: PuppetStore, puppet_client: Client, worker: Worker
) -> None:
    served.match_reply = lambda request: pb.MatchReply(blocks=1, lengths=[2**32 - 1])
    with worker.prefixes(puppet_client) as prefixes:
        assert prefixes.load(PROMPT).num_tokens == 0
        assert prefixes.counters.misses == {"protocol": 1}
    assert "Get" not in served.calls


def test_rot_on_the_stores_disk_is_a_miss(own_store: StoreProcess, worker: Worker) -> None:
    with Client(own_store.target) as client, worker.prefixes(client) as prefixes:
        prefixes.publish(TOKENS, worker.blocks(TOKENS))
        assert prefixes.flush(60)
    own_store.stop()
    payload = worker.payload(TOKENS, 1)
    rotten = 0
    for file in own_store.data_dir.rglob("*"):
        if not file.is_file():
            continue
        content = bytearray(file.read_bytes())
        where = content.find(payload)
        if where >= 0:
            content[where + len(payload) // 2] ^= 4
            file.write_bytes(content)
            rotten += 1
    assert rotten
    own_store.start()
    with Client(own_store.target) as client, worker.prefixes(client) as prefixes:
        assert prefixes.load(PROMPT).num_tokens == 64
        assert set(prefixes.counters.misses) <= {"absent", "corrupt"}


def test_a_full_queue_drops_and_counts_and_never_waits(
    puppet: PuppetStore, puppet_client: Client, worker: Worker
) -> None:
    over = threading.Event()
    puppet.before_put = lambda: over.wait(60)  # type: ignore[assignment]
    blocks = worker.blocks(TOKENS)
    size = len(blocks[0][1])
    bounded = PrefixCacheConfig(publish_queue_bytes=2 * size, publish_deadline_s=60)
    prefixes = worker.prefixes(puppet_client, bounded)
    started = time.monotonic()
    assert prefixes.publish(TOKENS, blocks) == 2
    for _ in range(50):
        assert prefixes.publish(TOKENS, blocks) == 0
    assert time.monotonic() - started < SLACK_S
    assert prefixes.counters.dropped_blocks == {"queue": 51}
    assert not prefixes.flush(0.05)
    over.set()
    assert prefixes.flush(60)
    assert prefixes.publish(TOKENS, blocks) == 1
    assert prefixes.close()
    assert prefixes.counters.published_blocks == 3
    assert prefixes.publish(TOKENS[::-1], [(2, b"late")]) == 0
    assert prefixes.counters.dropped_blocks == {"queue": 51, "closed": 1}


def test_closing_does_not_wait_for_a_store_that_hangs(puppet: PuppetStore, worker: Worker) -> None:
    over = threading.Event()
    puppet.before_put = lambda: over.wait(60)  # type: ignore[assignment]
    client = Client(puppet.target)
    prefixes = worker.prefixes(client, PrefixCacheConfig(publish_batch_bytes=1))
    prefixes.publish(TOKENS, worker.blocks(TOKENS))
    started = time.monotonic()
    assert not prefixes.close(0.2)
    assert time.monotonic() - started < 0.2 + SLACK_S
    client.close()
    _until(lambda: prefixes.flush(0.1))
    assert prefixes.counters.dropped_blocks == {"closed": 2, "failure": 1}
    over.set()


def _until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    ends_at = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.05)

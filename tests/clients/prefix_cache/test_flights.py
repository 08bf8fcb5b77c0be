"""Loads at one time fetch a block once: real threads, a real store, and a count of what it sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from packkv.client import Client, ClientConfig
from packkv.prefix_cache import LoadedPrefix, PrefixCache, PrefixCacheConfig
from packkv.prefix_cache.flights import Flight, Flights
from tests.clients.conftest import PuppetStore, StoreProcess, Worker
from tests.clients.prefix_cache.conftest import WAIT_S, GatedClient, until_released

TOKENS = list(range(1000, 1000 + 64 * 5))
PROMPT = [*TOKENS, 1]
LOADS = 8


class Waiting:
    """Counts the loads that wait for another's fetch, and tells when there are enough."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def wait(self, flight: Flight, timeout_s: float) -> bool:
        with self._changed:
            self._count += 1
            self._changed.notify_all()
        return bool(REALLY_WAIT(flight, timeout_s))

    def until(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, WAIT_S)


REALLY_WAIT = Flight.wait


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    waiting = Waiting()
    monkeypatch.setattr(Flight, "wait", lambda flight, left_s: waiting.wait(flight, left_s))
    return waiting


@pytest.fixture
def gated(store: StoreProcess) -> Iterator[GatedClient]:
    with GatedClient(store.target) as client:
        yield client
        until_released(client)


def at_once(loads: list[Callable[[], LoadedPrefix]]) -> list[LoadedPrefix]:
    with ThreadPoolExecutor(len(loads)) as threads:
        return [future.result(WAIT_S) for future in [threads.submit(load) for load in loads]]


def publish(prefixes: PrefixCache, worker: Worker, tokens: list[int]) -> None:
    prefixes.publish(tokens, worker.blocks(tokens))
    assert prefixes.flush(60)


def test_one_prefix_for_many_loads_is_sent_once(
    gated: GatedClient, worker: Worker, waiting: Waiting
) -> None:
    with worker.prefixes(gated, PrefixCacheConfig(deadline_s=WAIT_S)) as prefixes:
        publish(prefixes, worker, TOKENS)
        before = gated.stats().counters["packkv_hits_total"]
        gated.gate = lambda: waiting.until(LOADS - 1)
        found = at_once([lambda: prefixes.load(PROMPT)] * LOADS)
        truth = [payload for _, payload in worker.blocks(TOKENS)]
        assert all([p.data for p in one.payloads] == truth for one in found)
        assert gated.stats().counters["packkv_hits_total"] - before == 5
        assert gated.gets == [5]
        assert prefixes.counters.hit_blocks == 5 * LOADS
        assert prefixes.counters.shared_blocks == 5 * (LOADS - 1)
        # bytes that nobody sent are counted by nobody, and measure nothing
        assert prefixes.counters.fetched_bytes == sum(map(len, truth))
        # what has landed is fetched anew
        gated.gate = lambda: None
        assert prefixes.load(PROMPT).num_tokens == 320
        assert gated.gets == [5, 5]


def test_prompts_that_begin_alike_share_the_fetch_of_what_is_alike(
    gated: GatedClient,
    worker: Worker,
    waiting: Waiting,
    other_prompts: Callable[[list[int], int], list[int]],
) -> None:
    other = other_prompts(TOKENS, 128)
    leads = threading.Event()
    with worker.prefixes(gated, PrefixCacheConfig(deadline_s=WAIT_S)) as prefixes:
        publish(prefixes, worker, TOKENS)
        publish(prefixes, worker, other)

        def gate() -> None:
            leads.set()
            waiting.until(1)

        def follow() -> LoadedPrefix:
            assert leads.wait(WAIT_S)
            return prefixes.load([*other, 1])

        gated.gate = gate
        first, second = at_once([lambda: prefixes.load(PROMPT), follow])
        assert [p.data for p in first.payloads] == [p for _, p in worker.blocks(TOKENS)]
        assert [p.data for p in second.payloads] == [p for _, p in worker.blocks(other)]
        assert gated.gets == [5, 3]
        assert prefixes.counters.shared_blocks == 2


@pytest.fixture
def served(puppet: PuppetStore, worker: Worker) -> PuppetStore:
    payloads = (payload for _, payload in worker.blocks(TOKENS))
    puppet.blocks = dict(zip(worker.hashes(TOKENS), payloads, strict=True))
    return puppet


@pytest.fixture
def gated_puppet(served: PuppetStore) -> Iterator[GatedClient]:
    config = ClientConfig(retries=0, breaker_failures=1000)
    with GatedClient(served.target, config=config) as client:
        yield client


def test_when_the_fetch_fails_one_of_those_that_wait_tries_again_and_the_others_wait_for_it(
    served: PuppetStore, gated_puppet: GatedClient, worker: Worker, waiting: Waiting
) -> None:
    tries = iter([LOADS - 1, LOADS - 1 + LOADS - 2])

    def gate() -> None:
        waiting.until(next(tries))
        if len(gated_puppet.gets) == 1:
            served.refusals = [grpc.StatusCode.UNAVAILABLE]

    gated_puppet.gate = gate
    with worker.prefixes(gated_puppet, PrefixCacheConfig(deadline_s=WAIT_S)) as prefixes:
        found = at_once([lambda: prefixes.load(PROMPT)] * LOADS)
        # the load whose fetch failed has missed, and nobody else
        assert sorted(one.num_tokens for one in found) == [0] + [320] * (LOADS - 1)
        assert served.calls.count("Get") == 2
        assert prefixes.counters.misses == {"unavailable": 1}
        assert prefixes.counters.shared_blocks == 5 * (LOADS - 2)


def test_a_block_that_is_refused_is_refused_for_all_that_wait(
    served: PuppetStore, gated_puppet: GatedClient, worker: Worker, waiting: Waiting
) -> None:
    rotten = worker.hashes(TOKENS)[3]
    served.blocks[rotten] = served.blocks[rotten][:-1] + b"?"
    gated_puppet.gate = lambda: waiting.until(LOADS - 1)
    with worker.prefixes(gated_puppet, PrefixCacheConfig(deadline_s=WAIT_S)) as prefixes:
        found = at_once([lambda: prefixes.load(PROMPT)] * LOADS)
        assert [one.num_tokens for one in found] == [192] * LOADS
        assert served.calls.count("Get") == 1
        assert {one.report.stopped_by for one in found} == {"checksum"}
        assert prefixes.counters.misses == {"checksum": LOADS}


def test_who_waits_waits_no_longer_than_its_own_deadline(
    served: PuppetStore, gated_puppet: GatedClient, worker: Worker
) -> None:
    leads, over = threading.Event(), threading.Event()

    def gate() -> None:
        leads.set()
        assert over.wait(WAIT_S)

    gated_puppet.gate = gate
    with worker.prefixes(gated_puppet, PrefixCacheConfig(deadline_s=WAIT_S)) as prefixes:
        # a block takes 0.2 s to compute: so long its load may take, and five of them a second
        prefixes.observe_prefill(3200, 10)
        with ThreadPoolExecutor(1) as threads:
            leader = threads.submit(prefixes.load, PROMPT)
            assert leads.wait(WAIT_S)
            started = time.monotonic()
            late = prefixes.load([*TOKENS[:64], 1])
            assert late.report.stopped_by == "late"
            assert 0.1 < time.monotonic() - started < WAIT_S / 2
            assert not leader.done()
            over.set()
            leader.result(WAIT_S)
        assert gated_puppet.gets == [5]


def test_a_flight_takes_what_nobody_else_fetches() -> None:
    flights = Flights()
    names = [bytes([number]) for number in range(6)]
    mine, count = flights.board(names[2:4])
    assert count == 2
    assert flights.board(names[3:]) == (mine, 0)
    other, count = flights.board(names)
    assert (other is mine, count) == (False, 2)
    flights.land(mine, names[2:4], [], None)
    assert flights.board(names[2:])[1] == 4
    assert flights.board(names[:1]) == (other, 0)
    # a client that lost its flight cannot end another's
    flights.land(mine, names[2:4], [], None)
    assert flights.board(names[2:3])[1] == 0


def test_a_load_that_cannot_start_leaves_nobody_waiting(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker.prefixes(client) as prefixes:
        publish(prefixes, worker, TOKENS)

        def broken(*arguments: object, **options: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(client, "get", broken)
            assert prefixes.load(PROMPT).report.stopped_by == "failure"
        assert prefixes.load(PROMPT).num_tokens == 320

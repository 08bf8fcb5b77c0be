"""PrefixCache against a store that works."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from packkv.client import Client, ClientConfig, Fleet
from packkv.errors import ConfigError
from packkv.prefix_cache import (
    Counters,
    LoadReport,
    PrefixCache,
    PrefixCacheConfig,
    adopt_profile,
    codec_identity,
    load,
    loader,
)
from packkv_kernels.config import CacheShape, CodecConfig, HybridConfig
from packkv_kernels.errors import ProfileError
from packkv_kernels.profile import Profile
from packkv_protos.v1 import block_store_pb2 as pb
from tests.clients.prefix_cache.conftest import until

if TYPE_CHECKING:
    from tests.clients.conftest import PuppetStore, StoreProcess, Worker

TOKENS = list(range(1000, 1000 + 64 * 5))
NOWHERE = "127.0.0.1:1"


def publish(prefixes: PrefixCache, worker: Worker, token_ids: list[int]) -> None:
    prefixes.publish(token_ids, worker.blocks(token_ids))
    assert prefixes.flush(60)


def test_a_worker_whose_own_node_is_away_shares_through_the_next(
    store: StoreProcess, worker: Worker
) -> None:
    for tokens in (320, 0):
        # the second one, of another process, finds what the first one has published
        with Fleet([NOWHERE, store.target]) as fleet, worker.prefixes(fleet) as prefixes:
            assert prefixes.load([*TOKENS, 1]).num_tokens == 320 - tokens
            publish(prefixes, worker, TOKENS)
            assert prefixes.counters.published_blocks == tokens // 64


def test_one_worker_publishes_and_another_loads(store: StoreProcess, worker: Worker) -> None:
    with Client(store.target) as one, worker.prefixes(one) as prefixes:
        assert prefixes.load([*TOKENS, 1]).num_tokens == 0
        assert prefixes.publish(TOKENS, worker.blocks(TOKENS)) == 5
        assert prefixes.flush(60)
        assert prefixes.counters.published_blocks == 5
    with Client(store.target) as two, worker.prefixes(two) as prefixes:
        prefix = prefixes.load([*TOKENS, 1])
        assert prefix.num_tokens == 320
        expected = [payload for _, payload in worker.blocks(TOKENS)]
        assert [payload.data for payload in prefix.payloads] == expected
        assert prefix.report.stopped_by is None
        assert prefix.report.fetched_bytes == sum(map(len, expected))
        assert prefixes.counters == Counters(
            loads=1,
            asked_blocks=5,
            hit_blocks=5,
            hit_tokens=320,
            fetched_bytes=prefix.report.fetched_bytes,
        )


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "loaded"),
    [
        (320, None, 256),
        (321, None, 320),
        (319, None, 256),
        (321, 320, 320),
        (321, 319, 256),
        (321, 63, 0),
        (321, 0, 0),
        (321, -5, 0),
        (64, None, 0),
        (1, None, 0),
        (0, None, 0),
    ],
)
def test_a_token_is_always_left_to_compute(
    client: Client, worker: Worker, tokens: int, max_tokens: int | None, loaded: int
) -> None:
    with worker.prefixes(client) as prefixes:
        publish(prefixes, worker, TOKENS)
        assert prefixes.load([*TOKENS, 7][:tokens], max_tokens).num_tokens == loaded


def test_prompts_share_exactly_their_common_blocks(client: Client, worker: Worker) -> None:
    with worker.prefixes(client) as prefixes:
        publish(prefixes, worker, TOKENS)
        other = [*TOKENS[:150], 9, *TOKENS[151:], 1]
        prefix = prefixes.load(other)
        assert prefix.num_tokens == 128
        assert prefix.report.stopped_by == "absent"
        assert prefixes.counters.misses == {"absent": 1}


def test_only_what_the_store_lacks_is_worth_compressing(client: Client, worker: Worker) -> None:
    with worker.prefixes(client) as prefixes:
        assert prefixes.unpublished([*TOKENS, 1]) == [0, 1, 2, 3, 4]
        publish(prefixes, worker, TOKENS[:128])
        assert prefixes.unpublished(TOKENS) == [2, 3, 4]
        assert prefixes.publish(TOKENS, worker.blocks(TOKENS)) == 3
        assert prefixes.flush(60)
        assert prefixes.counters.published_blocks == 5
    # another worker learns it by loading
    with worker.prefixes(client) as prefixes:
        assert prefixes.unpublished(TOKENS) == [0, 1, 2, 3, 4]
        prefixes.load([*TOKENS, 1])
        assert prefixes.unpublished(TOKENS) == []


def test_a_block_that_the_store_lost_is_published_again(client: Client, worker: Worker) -> None:
    with worker.prefixes(client) as prefixes:
        publish(prefixes, worker, TOKENS)
        client.clear()
        assert prefixes.load([*TOKENS, 1]).num_tokens == 0
        publish(prefixes, worker, TOKENS)
        assert prefixes.load([*TOKENS, 1]).num_tokens == 320


def test_what_another_worker_published_first_is_no_error(client: Client, worker: Worker) -> None:
    with worker.prefixes(client) as one, worker.prefixes(client) as two:
        publish(one, worker, TOKENS)
        publish(two, worker, TOKENS)
        assert two.counters.already_present == 5
        assert two.counters.dropped_blocks == {}


def test_a_lease_does_not_outlive_its_load(client: Client, worker: Worker) -> None:
    with worker.prefixes(client) as prefixes:
        publish(prefixes, worker, TOKENS)
        prefixes.load([*TOKENS, 1])
        client.ping()
        for _ in range(200):
            if client.stats().leases == 0:
                break
        assert client.stats().leases == 0


def test_a_prefix_comes_in_spans_and_is_the_same(client: Client, worker: Worker) -> None:
    small = PrefixCacheConfig(span_bytes=1, publish_batch_bytes=1)
    with worker.prefixes(client, small) as prefixes:
        publish(prefixes, worker, TOKENS)
        prefix = prefixes.load([*TOKENS, 1])
        expected = [payload for _, payload in worker.blocks(TOKENS)]
        assert [payload.data for payload in prefix.payloads] == expected


def test_threads_share_a_cache(client: Client, worker: Worker) -> None:
    prompts = [[seed, *TOKENS] for seed in range(12)]

    def run(prompt: list[int]) -> int:
        prefixes.publish(prompt, worker.blocks(prompt))
        assert prefixes.flush(60)
        return prefixes.load(prompt).num_tokens

    with worker.prefixes(client) as prefixes, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(run, prompts)) == [320] * 12
        assert prefixes.counters.hit_blocks == 60
        assert prefixes.counters.published_blocks == 60


def test_random_prompts_never_get_another_prompts_block(client: Client, worker: Worker) -> None:
    choices = random.Random(1)
    with worker.prefixes(client) as prefixes:
        for _ in range(30):
            prompt = [choices.randrange(2) for _ in range(64 * choices.randrange(1, 4) + 1)]
            prompt = sorted(prompt) if choices.random() < 0.5 else prompt
            prefix = prefixes.load(prompt)
            for index, payload in enumerate(prefix.payloads):
                assert payload.data == worker.payload(prompt, index)
            prefixes.publish(prompt, worker.blocks(prompt))
            assert prefixes.flush(60)


def test_nonsense_from_the_engine_is_an_empty_answer(client: Client, worker: Worker) -> None:
    with worker.prefixes(client) as prefixes:
        nonsense: Any
        for nonsense in (None, ["a"] * 65, [2**40] * 65, [0.5] * 65):
            assert prefixes.load(nonsense).payloads == []
            assert prefixes.publish(nonsense, [(0, b"x")]) == 0
            assert prefixes.unpublished(nonsense) == []
        assert prefixes.publish(TOKENS, [(99, b"x")]) == 0
        assert sum(prefixes.counters.errors.values()) >= 9
        assert prefixes.load([1]).report == LoadReport()


@pytest.mark.parametrize(
    "change",
    [
        {"codec": {"id": "raw", "extra": 1}},
        {"codec": codec_identity(HybridConfig())},
        {"block_size": 128},
        {"layout_version": 1},
        {"kv_dtype": "int8"},
        {"profile_digest": "not hex"},
        {"profile_digest": "ab"},
    ],
    ids=str,
)
def test_a_namespace_that_contradicts_the_codec_is_refused(
    puppet_client: Client, worker: Worker, change: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        worker.having(**change).prefixes(puppet_client)


def test_a_codec_that_needs_a_profile_needs_its_digest(
    puppet_client: Client, worker: Worker
) -> None:
    codec: CodecConfig = HybridConfig()
    namespace = worker.having(codec=codec_identity(codec)).namespace
    with pytest.raises(ConfigError, match="profile"):
        PrefixCache(puppet_client, namespace, codec, worker.shape)


def test_all_workers_end_with_the_first_profile(client: Client, worker: Worker) -> None:
    worker = worker.having(model="profiled")
    ours = Profile.identity(CacheShape(1, 1, 4)).to_bytes()
    theirs = Profile.identity(CacheShape(1, 1, 8)).to_bytes()
    for profile in (ours, theirs):
        adopted = adopt_profile(client, worker.namespace, profile, check=Profile.from_bytes)
        assert adopted == ours


def test_a_profile_that_is_none_is_not_adopted(client: Client, worker: Worker) -> None:
    worker = worker.having(model="badly profiled")
    client.put_profile(worker.namespace.model_digest(), b"not a profile")
    ours = Profile.identity(CacheShape(1, 1, 4)).to_bytes()
    assert adopt_profile(client, worker.namespace, ours, check=Profile.from_bytes) == ours
    with pytest.raises(ProfileError):
        Profile.from_bytes(client.put_profile(worker.namespace.model_digest(), ours))


def test_without_a_store_a_worker_keeps_its_profile(worker: Worker) -> None:
    with Client(NOWHERE, config=ClientConfig(retries=0)) as nobody:
        assert adopt_profile(nobody, worker.namespace, b"ours") == b"ours"


def test_what_a_block_takes_to_compute_follows_from_the_prefill(
    puppet_client: Client, worker: Worker
) -> None:
    with worker.prefixes(puppet_client) as prefixes:
        assert prefixes.block_compute_ms == 0
        prefixes.observe_prefill(640, 2.0)
        assert prefixes.block_compute_ms == pytest.approx(200)
        # as much as a payload can say
        prefixes.observe_prefill(64, 1e9)
        assert prefixes.block_compute_ms == 65_504


class HandClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """What loads measure with, and how long they may take."""
    clock = HandClock()
    monkeypatch.setattr(loader, "time", clock)
    monkeypatch.setattr(load, "time", clock)
    return clock


def test_a_slow_store_is_left_for_computing_and_looked_at_again(
    puppet: PuppetStore, puppet_client: Client, worker: Worker
) -> None:
    config = PrefixCacheConfig(probe_after_s=0.0, probe_bytes=1, deadline_s=60)
    with worker.prefixes(puppet_client, config) as prefixes:
        publish(prefixes, worker, TOKENS)
        assert prefixes.load([*TOKENS, 1]).num_tokens == 320
        prefixes.observe_prefill(64, 1000)
        assert prefixes.load([*TOKENS, 1]).num_tokens == 320
        # ten million tokens a second: nothing is worth fetching, but one block is a probe
        for _ in range(60):
            prefixes.observe_prefill(10_000_000, 1)
        prefix = prefixes.load([*TOKENS, 1])
        assert prefix.num_tokens == 64
        assert prefix.report.stopped_by == "slower"
    config = PrefixCacheConfig(probe_after_s=600, deadline_s=60)
    with worker.prefixes(puppet_client, config) as prefixes:
        prefixes.load([*TOKENS, 1])
        prefixes.observe_prefill(10_000_000, 1)
        assert prefixes.load([*TOKENS, 1]).num_tokens == 0
        assert prefixes.counters.misses == {"slower": 1}


def test_a_network_that_gets_slow_is_noticed_and_its_recovery_too(
    puppet: PuppetStore, puppet_client: Client, worker: Worker, clock: HandClock
) -> None:
    pause_s = 0.1

    def throttled(request: pb.GetRequest) -> Iterator[pb.GetFrame]:
        for frame in puppet._honest_frames(request):
            clock.now += pause_s if frame.data else 0
            yield frame

    puppet.frames = throttled
    config = PrefixCacheConfig(probe_after_s=0.3, probe_bytes=1, deadline_s=60)
    with worker.prefixes(puppet_client, config) as prefixes:
        publish(prefixes, worker, TOKENS)
        # a block takes 40 ms to compute and 100 ms to fetch: one is fetched to find out
        prefixes.observe_prefill(64, 0.04)
        assert prefixes.load([*TOKENS, 1]).num_tokens == 64
        assert prefixes.load([*TOKENS, 1]).num_tokens == 0
        pause_s = 0.001
        clock.now += 0.5
        assert prefixes.load([*TOKENS, 1]).num_tokens == 320
        assert prefixes.counters.misses == {"slower": 2}


def test_a_fetch_that_is_cut_off_teaches_how_much_fits(
    puppet: PuppetStore, puppet_client: Client, worker: Worker
) -> None:
    def throttled(request: pb.GetRequest) -> Iterator[pb.GetFrame]:
        for frame in puppet._honest_frames(request):
            time.sleep(0.25 if frame.data else 0)
            yield frame

    puppet.frames = throttled
    config = PrefixCacheConfig(deadline_s=1.0)
    with worker.prefixes(puppet_client, config) as prefixes:
        publish(prefixes, worker, TOKENS)
        # five blocks take 1.25 s: all are asked for, none is complete in time
        assert prefixes.load([*TOKENS, 1]).report.stopped_by == "late"
        # four blocks a second, or fewer on a machine that has other work: some fit
        until(lambda: prefixes.load([*TOKENS, 1]).num_tokens in (64, 128, 192))


@pytest.mark.parametrize(
    "fields",
    [{"deadline_s": 0}, {"span_bytes": 0}, {"publish_queue_bytes": -1}],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PrefixCacheConfig(**fields)

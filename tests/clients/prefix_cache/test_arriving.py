"""Prefixes that come layer by layer: the first can be used before the last has been sent, and what
does not come is lost with a word, never replaced by something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from packkv.client import Client, ClientConfig
from packkv.errors import PrefixLost
from packkv.prefix_cache import ArrivingPrefix, PrefixCache, PrefixCacheConfig
from packkv_kernels.format import ResidentSections, read_payload, resident_sections
from packkv_protos.v1 import block_store_pb2 as pb
from tests.clients.conftest import PuppetStore, StoreProcess, StreamBroken
from tests.clients.prefix_cache.conftest import (
    WAIT_S,
    GatedClient,
    RealWorker,
    until,
    until_released,
)

TOKENS = list(range(1000, 1000 + 64 * 5))
PROMPT = [*TOKENS, 1]
LAYERS = 6
LAYERED = PrefixCacheConfig(deadline_s=WAIT_S, group_bytes=1, probe_bytes=1)
# what comes at all has come by then
QUICK = PrefixCacheConfig(deadline_s=3.0, group_bytes=1, probe_bytes=1)


@contextmanager
def learned(
    client: Client, worker: RealWorker, config: PrefixCacheConfig = LAYERED
) -> Iterator[PrefixCache]:
    """A prefix cache that knows how fast the store is: before that, nothing comes in layers."""
    with worker.prefixes(client, config) as prefixes:
        publish(prefixes, worker)
        assert prefixes.load(PROMPT, layerwise=False).num_tokens == 320
        yield prefixes


def publish(prefixes: PrefixCache, worker: RealWorker) -> None:
    prefixes.publish(TOKENS, worker.blocks(TOKENS))
    assert prefixes.flush(60)


def arriving(prefixes: PrefixCache) -> ArrivingPrefix:
    loaded = prefixes.load(PROMPT, layerwise=True)
    assert loaded.arriving is not None, loaded.report
    assert (loaded.num_tokens, loaded.payloads) == (320, [])
    return loaded.arriving


def taken(prefix: ArrivingPrefix) -> dict[int, list[ResidentSections]]:
    """What was taken, by the first layer of each part, when a model asks layer after layer."""
    parts: dict[int, list[ResidentSections]] = {}
    layers = 0
    for layer in range(LAYERS):
        for part in prefix.take(layer):
            assert part.layers.start == layers
            layers = part.layers.stop
            parts[part.layers.start] = part.blocks
        assert layers > layer
    return parts


def words(parts: dict[int, list[ResidentSections]], block: int) -> list[int]:
    return [int(word) for blocks in parts.values() for word in blocks[block].words]


@pytest.fixture(params=["bulk", "grpc"])
def remote(store: StoreProcess, request: pytest.FixtureRequest) -> Iterator[GatedClient]:
    config = ClientConfig(paths=(request.param,))
    with GatedClient(store.target, config=config) as client:
        yield client
        until_released(client)


def test_all_layers_come_in_order_and_are_those_of_the_whole_payloads(
    remote: GatedClient, real_worker: RealWorker
) -> None:
    with learned(remote, real_worker) as prefixes:
        before = prefixes.counters
        prefix = arriving(prefixes)
        parts = taken(prefix)
        if remote.path == "bulk":
            assert len(parts) == LAYERS
        for block, (_, payload) in enumerate(real_worker.blocks(TOKENS)):
            whole = resident_sections(read_payload(payload))
            assert np.array_equal(words(parts, block), whole.words)
            found = [one.descriptors for blocks in parts.values() for one in [blocks[block]]]
            assert np.array_equal(np.concatenate(found), whole.descriptors)
        until(lambda: prefixes.counters.hit_blocks - before.hit_blocks == 5)
        assert prefixes.counters.misses == {}
        size = sum(len(payload) for _, payload in real_worker.blocks(TOKENS))
        assert prefixes.counters.fetched_bytes - before.fetched_bytes == size
        # a prefix that is whole stays so
        prefix.abandon()
        assert prefix.take(LAYERS - 1) == []


def test_what_comes_from_this_host_comes_whole(client: Client, real_worker: RealWorker) -> None:
    with learned(client, real_worker) as prefixes:
        assert client.path == "shared-memory"
        loaded = prefixes.load(PROMPT, layerwise=True)
        assert (loaded.arriving, len(loaded.payloads)) == (None, 5)
        until_released(client)


def test_what_is_too_large_to_be_lost_together_comes_in_spans_first(
    remote: GatedClient, real_worker: RealWorker
) -> None:
    size = len(real_worker.payload(TOKENS, 0))
    config = PrefixCacheConfig(
        deadline_s=WAIT_S,
        group_bytes=1,
        probe_bytes=1,
        layered_bytes=3 * size + size // 2,
        span_bytes=size,
    )
    with learned(remote, real_worker, config) as prefixes:
        loaded = prefixes.load(PROMPT, layerwise=True)
        assert len(loaded.payloads) == 2
        assert loaded.arriving is not None
        assert loaded.arriving.blocks == 3
        assert loaded.num_tokens == 320
        assert taken(loaded.arriving)


def test_loads_meanwhile_take_what_arrives(remote: GatedClient, real_worker: RealWorker) -> None:
    with learned(remote, real_worker) as prefixes:
        gate = threading.Event()
        remote.gate = gate.wait
        remote.gets.clear()
        loads: list[int] = []

        def load(layerwise: bool) -> None:
            loads.append(prefixes.load(PROMPT, layerwise=layerwise).num_tokens)

        threads = [threading.Thread(target=load, args=(yes,)) for yes in (True, False, True)]
        for thread in threads:
            thread.start()
        until(lambda: len(remote.gets) == 1)
        gate.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert loads == [320] * 3


@pytest.fixture
def puppet_client(puppet: PuppetStore) -> Iterator[Client]:
    config = ClientConfig(retries=1, breaker_failures=1000)
    with Client(puppet.target, config=config) as client:
        yield client


class Stream:
    """Serves the payloads of the puppet layer by layer, and stops before one until it may go on."""

    def __init__(self, puppet: PuppetStore) -> None:
        self._puppet = puppet
        self.stops_at = LAYERS + 1
        self.may_go_on = threading.Event()
        self.ended = threading.Event()
        self.breaks: list[grpc.StatusCode] = []
        puppet.frames = self

    def __call__(self, request: pb.GetRequest) -> Iterator[pb.GetFrame]:
        payloads = [read_payload(self._puppet.blocks[name]) for name in request.chain_hashes]
        data = [self._puppet.tamper(bytes(payload.data)) for payload in payloads]
        try:
            yield pb.GetFrame(
                blocks=[pb.BlockAnswer(block=i, length=len(one)) for i, one in enumerate(data)]
            )
            for layer in range(-1, LAYERS):
                if layer == self.stops_at:
                    self.may_go_on.wait(WAIT_S)
                    if self.breaks:
                        raise StreamBroken(self.breaks.pop())
                for block, payload in enumerate(payloads):
                    begin, end = 0, payload.header.head_length
                    if layer >= 0:
                        rows = payload.sections[2 * layer : 2 * layer + 2]
                        begin, end = int(rows[0, 0]), int(rows[-1].sum())
                    extent = pb.Extent(block=block, offset=begin, length=end - begin)
                    yield pb.GetFrame(extents=[extent], data=data[block][begin:end])
        finally:
            self.ended.set()


@pytest.fixture
def stream(puppet: PuppetStore) -> Iterator[Stream]:
    stream = Stream(puppet)
    yield stream
    stream.may_go_on.set()


def test_the_first_layers_can_be_used_before_the_last_is_sent(
    stream: Stream, puppet_client: Client, real_worker: RealWorker
) -> None:
    with learned(puppet_client, real_worker) as prefixes:
        stream.stops_at = 3
        prefix = arriving(prefixes)
        for layer in range(3):
            prefix.take(layer)
        assert not stream.may_go_on.is_set()
        stream.may_go_on.set()
        assert prefix.take(LAYERS - 1)[-1].layers.stop == LAYERS


def test_layers_that_do_not_come_in_time_are_lost(
    stream: Stream, puppet_client: Client, real_worker: RealWorker
) -> None:
    with learned(puppet_client, real_worker, QUICK) as prefixes:
        stream.stops_at = 3
        prefix = arriving(prefixes)
        prefix.take(2)
        with pytest.raises(PrefixLost, match="late"):
            prefix.take(3)
        assert not stream.may_go_on.is_set()
        # lost is lost, also what had come
        with pytest.raises(PrefixLost):
            prefix.take(0)
        until(lambda: prefixes.counters.misses == {"late": 1})
        stream.may_go_on.set()


def test_heads_that_do_not_come_are_a_miss_and_no_loss(
    stream: Stream, puppet_client: Client, real_worker: RealWorker
) -> None:
    with learned(puppet_client, real_worker, QUICK) as prefixes:
        stream.stops_at = -1
        loaded = prefixes.load(PROMPT, layerwise=True)
        assert (loaded.num_tokens, loaded.arriving) == (0, None)
        assert loaded.report.stopped_by == "late"
        until(lambda: prefixes.counters.misses == {"late": 1})


@pytest.mark.parametrize("layer", [0, 3, LAYERS - 1])
def test_a_layer_that_is_not_what_its_digest_says_is_lost_and_those_before_are_right(
    stream: Stream,
    puppet: PuppetStore,
    puppet_client: Client,
    real_worker: RealWorker,
    layer: int,
) -> None:
    with learned(puppet_client, real_worker) as prefixes:
        at = int(read_payload(real_worker.payload(TOKENS, 2)).sections[2 * layer + 1, 0]) + 5
        rotten = real_worker.payload(TOKENS, 2)
        puppet.tamper = lambda data: (
            data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] if data == rotten else data
        )
        stream.stops_at = layer
        loaded = prefixes.load(PROMPT, layerwise=True)
        prefix = loaded.arriving
        assert prefix is not None
        if layer:
            parts = [part for before in range(layer) for part in prefix.take(before)]
            whole = resident_sections(read_payload(rotten), range(layer))
            found = np.concatenate([part.blocks[2].words for part in parts])
            assert np.array_equal(found, whole.words)
        stream.may_go_on.set()
        with pytest.raises(PrefixLost, match="checksum"):
            prefix.take(layer)
        until(lambda: prefixes.counters.misses == {"checksum": 1})
        # the refused block is offered again
        assert prefixes.unpublished(TOKENS) == [2]


def test_who_waits_for_a_prefix_that_is_lost_fetches_what_is_sound_of_it(
    stream: Stream,
    puppet: PuppetStore,
    puppet_client: Client,
    real_worker: RealWorker,
) -> None:
    with learned(puppet_client, real_worker) as prefixes:
        rotten = real_worker.payload(TOKENS, 3)
        puppet.tamper = lambda data: data[:-1] + b"?" if data == rotten else data
        stream.stops_at = 2
        prefix = arriving(prefixes)
        waiting: list[int] = []
        load = threading.Thread(target=lambda: waiting.append(prefixes.load(PROMPT).num_tokens))
        load.start()
        until(lambda: puppet.calls.count("Match") == 3)
        stream.may_go_on.set()
        load.join(WAIT_S)
        assert waiting == [192]
        with pytest.raises(PrefixLost, match="checksum"):
            prefix.take(LAYERS - 1)


def test_a_stream_that_breaks_is_begun_again_and_goes_on_where_it_was(
    stream: Stream, puppet: PuppetStore, puppet_client: Client, real_worker: RealWorker
) -> None:
    with learned(puppet_client, real_worker) as prefixes:
        stream.stops_at = 4
        prefix = arriving(prefixes)
        parts = [part for layer in range(4) for part in prefix.take(layer)]
        before = puppet.calls.count("Get")
        # the server is gone in the middle; the same call to the next one begins at layer 0
        refuse_rest(stream, puppet)
        parts += [part for layer in (4, 5) for part in prefix.take(layer)]
        assert [layer for part in parts for layer in part.layers] == list(range(LAYERS))
        assert puppet.calls.count("Get") == before + 1
        whole = resident_sections(read_payload(real_worker.payload(TOKENS, 1)))
        assert np.array_equal(np.concatenate([part.blocks[1].words for part in parts]), whole.words)


def test_another_payload_by_the_same_name_in_the_middle_is_a_loss(
    stream: Stream, puppet: PuppetStore, puppet_client: Client, real_worker: RealWorker
) -> None:
    with learned(puppet_client, real_worker) as prefixes:
        stream.stops_at = 4
        prefix = arriving(prefixes)
        prefix.take(3)
        # as sound as the other, and as right; but half of one and half of the other is neither
        name = real_worker.hashes(TOKENS)[0]
        puppet.blocks[name] = real_worker.otherwise(TOKENS, 0)
        refuse_rest(stream, puppet)
        with pytest.raises(PrefixLost, match="identity"):
            prefix.take(4)


def refuse_rest(stream: Stream, puppet: PuppetStore) -> None:
    """Ends the stream that has stopped as a server that goes away does; the next is served."""
    stream.breaks.append(grpc.StatusCode.UNAVAILABLE)
    stream.may_go_on.set()


def test_a_prefix_that_nobody_wants_any_more_is_not_fetched_to_its_end(
    stream: Stream, puppet_client: Client, real_worker: RealWorker
) -> None:
    with learned(puppet_client, real_worker) as prefixes:
        stream.stops_at = 3
        stream.ended.clear()
        prefix = arriving(prefixes)
        prefix.take(0)
        prefix.abandon()
        stream.may_go_on.set()
        assert stream.ended.wait(WAIT_S)
        with pytest.raises(PrefixLost, match="abandoned"):
            prefix.take(1)
        assert prefixes.counters.misses == {}
        # and others can have it
        stream.stops_at = LAYERS + 1
        assert prefixes.load(PROMPT).num_tokens == 320


def test_a_few_prefixes_arrive_at_one_time_and_the_next_comes_whole(
    stream: Stream, puppet_client: Client, real_worker: RealWorker
) -> None:
    prompts = [[first, *TOKENS[1:], 1] for first in range(5)]
    with learned(puppet_client, real_worker) as prefixes:
        for prompt in prompts:
            prefixes.publish(prompt, real_worker.blocks(prompt[:-1]))
        assert prefixes.flush(60)
        stream.stops_at = 2
        few = [prefixes.load(prompt, layerwise=True).arriving for prompt in prompts[:4]]
        stream.stops_at = LAYERS + 1
        last = prefixes.load(prompts[4], layerwise=True)
        assert (last.arriving, len(last.payloads)) == (None, 5)
        stream.may_go_on.set()
        for prefix in few:
            assert prefix is not None
            prefix.take(LAYERS - 1)
        # and when these are over there is room again
        until(lambda: prefixes.load(prompts[4], layerwise=True).arriving is not None)


def test_a_block_that_has_gone_since_the_match_is_a_miss(
    stream: Stream, puppet: PuppetStore, puppet_client: Client, real_worker: RealWorker
) -> None:
    with learned(puppet_client, real_worker) as prefixes:
        honest = puppet._honest_frames

        def gone(request: pb.GetRequest) -> Iterator[pb.GetFrame]:
            del puppet.blocks[request.chain_hashes[3]]
            return honest(request)

        puppet.frames = gone
        loaded = prefixes.load(PROMPT, layerwise=True)
        assert (loaded.num_tokens, loaded.report.stopped_by) == (0, "absent")
        assert prefixes.unpublished(TOKENS) == [3]

"""Bytes that change, and connections that end, between a store and a worker."""

from __future__ import annotations

import random

import numpy as np
import pytest

from packkv.client import Client, PutStatus
from packkv.errors import PackKVError, PrefixLost
from packkv.prefix_cache import PrefixCacheConfig
from packkv_kernels.config import CacheShape
from packkv_kernels.format import read_payload, resident_sections
from tests.clients.conftest import StoreProcess, Worker
from tests.clients.prefix_cache.conftest import RealWorker
from tests.e2e.faults.conftest import Connect, Fault, Network, contents, named, names, until
from tests.store.conftest import build_prefix

# what is shared has no wire: its faults are in test_bytes.py
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.parametrize("path", ["bulk", "grpc"], indirect=True),
]

TOKENS = list(range(64 * 8))
PATIENT = PrefixCacheConfig(deadline_s=5, probe_bytes=1 << 20)
LAYERED = PrefixCacheConfig(deadline_s=5, group_bytes=1)
STRIKES = 25


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_what_breaks_on_the_way_to_a_worker_is_fewer_tokens_and_never_other_bytes(
    networked: tuple[StoreProcess, Network],
    connect: Connect,
    worker: Worker,
    path: str,
    kind: str,
) -> None:
    store, network = networked
    truth = [payload for _, payload in worker.blocks(TOKENS)]
    size = sum(map(len, truth))
    rng = random.Random(f"{path} {kind}")
    struck = counted = 0
    with (
        Client(store.target) as direct,
        connect(network.target, retries=0) as client,
        worker.prefixes(direct) as publisher,
        worker.prefixes(client, PATIENT) as prefixes,
    ):
        publisher.publish(TOKENS, worker.blocks(TOKENS))
        assert publisher.flush(60)
        for _ in range(STRIKES):
            before = sum(prefixes.counters.misses.values())
            fault = Fault(kind, is_up=False, at=rng.randrange(size))
            network.strike(fault)
            prefix = prefixes.load([*TOKENS, 1])
            network.strike(None)
            got = [payload.data for payload in prefix.payloads]
            assert got == truth[: len(got)]
            misses = sum(prefixes.counters.misses.values()) - before
            # what is less than all of it has a reason, and it is counted
            assert len(got) == len(truth) or misses
            struck += fault.has_struck
            counted += misses
        assert struck > STRIKES // 2
        assert counted
        # and when nothing breaks any more all of it comes
        until(lambda: prefixes.load([*TOKENS, 1]).num_tokens == len(TOKENS), "all of it comes")
    with Client(store.target) as direct:
        # the store was never at fault
        assert contents(direct.get(worker.hashes(TOKENS))) == truth


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_what_breaks_while_layers_arrive_is_a_loss_and_never_other_words(
    networked: tuple[StoreProcess, Network],
    connect: Connect,
    worker: Worker,
    path: str,
    kind: str,
) -> None:
    store, network = networked
    real = RealWorker(worker.namespace, worker.codec, CacheShape(layers=8, heads=4, head_dim=64))
    payloads = [payload for _, payload in real.blocks(TOKENS)]
    truth = [resident_sections(read_payload(payload)) for payload in payloads]
    rng = random.Random(f"{path} {kind} layers")
    lost = whole = 0
    with (
        Client(store.target) as direct,
        connect(network.target, retries=0) as client,
        real.prefixes(direct) as publisher,
        real.prefixes(client, LAYERED) as prefixes,
    ):
        publisher.publish(TOKENS, real.blocks(TOKENS))
        assert publisher.flush(60)
        for _ in range(STRIKES):
            network.strike(None)
            # a load that goes well keeps the rate that layers need to be worth while
            until(lambda: prefixes.load([*TOKENS, 1]).num_tokens == len(TOKENS))
            network.strike(Fault(kind, is_up=False, at=rng.randrange(sum(map(len, payloads)))))
            prefix = prefixes.load([*TOKENS, 1], layerwise=True).arriving
            if prefix is None:
                continue
            taken = [0] * len(truth)
            try:
                for part in (part for layer in range(8) for part in prefix.take(layer)):
                    for block, sections in enumerate(part.blocks):
                        begin, taken[block] = taken[block], taken[block] + len(sections.words)
                        right = truth[block].words[begin : taken[block]]
                        assert np.array_equal(sections.words, right)
            except PrefixLost:
                lost += 1
            else:
                assert taken == [len(one.words) for one in truth]
                whole += 1
        assert lost > STRIKES // 4, f"{lost} lost, {whole} whole"


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_what_breaks_on_the_way_to_the_store_is_refused_and_leaves_nothing(
    networked: tuple[StoreProcess, Network], connect: Connect, path: str, kind: str
) -> None:
    store, network = networked
    rng = random.Random(f"{path} {kind}")
    refused = broken = 0
    with Client(store.target) as direct, connect(network.target, retries=0) as client:
        for number in range(STRIKES):
            prefix = build_prefix(f"{path} {kind} {number}", 4, section_bytes=4_000)
            fault = Fault(kind, is_up=True, at=rng.randrange(sum(len(b.data) for b in prefix)))
            network.strike(fault)
            stored: set[bytes] = set()
            try:
                results = client.put(named(prefix), deadline_s=10)
            except PackKVError:
                broken += 1
            else:
                stored = {r.chain_hash for r in results if r.status is PutStatus.STORED}
                refused += len(prefix) - len(stored)
            network.strike(None)
            for block, data in zip(prefix, contents(direct.get(names(prefix))), strict=True):
                assert (
                    data == block.data
                    if block.chain_hash in stored
                    else data
                    in (
                        None,
                        block.data,
                    )
                )
        assert broken if kind == "cut" else refused
        direct.clear()
        assert [tier.used_bytes for tier in direct.stats().tiers] == [0, 0]

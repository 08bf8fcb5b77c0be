"""A worker whose tenant is held to a rate: it is slower, and does not take the store for dead."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from packkv.client import Client, ClientConfig
from packkv.client.config import PATHS
from packkv.prefix_cache import PrefixCacheConfig
from packkv.prefix_cache.batch_size import BatchSize
from packkv_kernels.config import CacheShape
from tests.clients.conftest import StoreProcess

if TYPE_CHECKING:
    from tests.clients.conftest import PuppetStore, Worker

TOKENS = list(range(64 * 10))
# at this rate the prefix takes six seconds, and no stream may take more than two
LINES = 'get_rate = "64KiB"'
# nothing here depends on how long anything takes
PATIENT = PrefixCacheConfig(deadline_s=60.0, probe_after_s=3600.0, group_bytes=4096)


@pytest.fixture(scope="module")
def slow_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    folder = tmp_path_factory.mktemp("slow")
    tokens: Path = folder / "tokens.toml"
    tokens.write_text(
        f'[tenants.red]\ntoken_sha256 = "{hashlib.sha256(b"red").hexdigest()}"\n{LINES}\n'
    )
    flags = ("--tokens-file", str(tokens), "--stream-seconds", "2")
    store = StoreProcess(folder / "store", flags).start()
    yield store
    store.kill()


@pytest.fixture
def sized(worker: Worker) -> Worker:
    """One whose blocks have about 40 KiB."""
    return replace(worker, shape=CacheShape(layers=8, heads=8, head_dim=16))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layerwise", [False, True], ids=["whole", "layerwise"])
def test_what_is_refused_for_its_rate_is_computed_and_not_asked_for_again(
    slow_store: StoreProcess, sized: Worker, path: str, layerwise: bool
) -> None:
    config = ClientConfig(token="red", paths=(path,))
    with Client(slow_store.target, config=config) as client:
        with sized.prefixes(client, PATIENT) as prefixes:
            prefixes.publish(TOKENS, sized.blocks(TOKENS))
            assert prefixes.flush(60)
        [before] = client.quotas()
        with sized.prefixes(client, PATIENT) as prefixes:
            if layerwise:
                # nothing comes so before the rate has been measured
                prefixes._loader.fetching.observe(1, 1e-6)
            reports = [prefixes.load([*TOKENS, 1], layerwise=layerwise).report for _ in range(4)]
            assert prefixes.counters.fetched_bytes == 0
        assert [one.stopped_by for one in reports] == ["limit", "slower", "slower", "slower"]
        assert {one.matched_blocks for one in reports} == {10}
        [after] = client.quotas()
        assert after.get.refused == before.get.refused + 1
        assert client.breaker.is_closed


def test_batches_that_are_too_much_get_smaller(puppet: PuppetStore, sized: Worker) -> None:
    puppet.refusals = [grpc.StatusCode.RESOURCE_EXHAUSTED]
    others = [number + 1 for number in TOKENS]
    config = ClientConfig(paths=("grpc",))
    with Client(puppet.target, config=config) as client, sized.prefixes(client) as prefixes:
        prefixes.publish(TOKENS, sized.blocks(TOKENS))
        assert prefixes.flush(60)
        assert prefixes.counters.dropped_blocks == {"limit": 10}
        prefixes.publish(others, sized.blocks(others))
        assert prefixes.flush(60)
        assert prefixes.counters.published_blocks == 10
        assert client.breaker.is_closed
    # all of the first in one, of the others a quarter at first
    assert puppet.calls.count("Put") >= 3


def test_a_batch_takes_half_of_its_deadline() -> None:
    size = BatchSize(most=1000, deadline_s=10.0)
    assert size.bytes == 1000
    size.was_late(900)
    assert size.bytes == 225
    size.took(225, 9.0)
    assert size.bytes == 125
    size.took(100, 2.0)
    assert size.bytes == 250


def test_quick_batches_grow_to_the_most_and_late_ones_never_shrink_to_nothing() -> None:
    size = BatchSize(most=1000, deadline_s=10.0)
    for _ in range(10):
        size.was_late(size.bytes)
    assert size.bytes == 1
    for _ in range(12):
        size.took(size.bytes, 0.01)
    assert size.bytes == 1000

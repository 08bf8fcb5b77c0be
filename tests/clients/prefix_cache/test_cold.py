"""Cold payloads through a real store: every path, both tiers, and no other token than without."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray
from typer.testing import CliRunner

from packkv.cli import app
from packkv.client import Client, ClientConfig, Span
from packkv.client.config import PATHS
from packkv.prefix_cache import PrefixCache, PrefixCacheConfig, codec_identity
from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.entropy import ColdHead, from_cold, to_cold
from packkv_kernels.format import (
    Form,
    Payload,
    open_payload,
    read_payload,
    resident_sections,
)
from packkv_kernels.format.header import CHECKSUM_AT, HEADER_BYTES
from packkv_kernels.testing import encode_payloads, random_kv, random_profile
from tests.clients.conftest import PuppetStore, StoreProcess, Worker
from tests.clients.prefix_cache.conftest import until

pytestmark = pytest.mark.usefixtures("compiled_cold")

TOKENS = list(range(64 * 4))
SHAPE = CacheShape(layers=3, heads=2, head_dim=64)
PROFILE = random_profile(SHAPE)


class CodingWorker(Worker):
    """One whose payloads a codec has made."""

    def payload(self, token_ids: list[int], index: int) -> bytes:
        keys, values = random_kv(SHAPE, 64, seed=index, first_token=64 * index)
        (data,) = encode_payloads(
            keys,
            values,
            self.codec,
            PROFILE,
            first_token=64 * index,
            root_hash=self.namespace.root_hash(),
            chain_hash=self.hashes(token_ids)[index],
        )
        return bytes(data)


@pytest.fixture(params=["packkv", "hybrid:delta=1.4,v_levels=4"])
def coding_worker(small_worker: Worker, request: pytest.FixtureRequest) -> CodingWorker:
    codec = CodecConfig.parse(request.param)
    return worker_of(small_worker, codec, request.node.name)


@pytest.fixture
def packkv_worker(small_worker: Worker, request: pytest.FixtureRequest) -> CodingWorker:
    return worker_of(small_worker, CodecConfig.parse("packkv"), request.node.name)


def worker_of(other: Worker, codec: CodecConfig, model: str) -> CodingWorker:
    """Of a model that no other test has: what is stored already keeps its form."""
    profile = PROFILE.digest.hex() if codec.needs_profile else None
    fields = {"model": model, "codec": codec_identity(codec), "profile_digest": profile}
    return CodingWorker(other.having(**fields).namespace, codec, SHAPE)


def cold_form(data: bytes) -> Payload:
    cold = read_payload(to_cold(read_payload(data)))
    assert cold.header.form is Form.COLD
    return cold


def config(cold: str, **settings: float) -> PrefixCacheConfig:
    return PrefixCacheConfig(cold=cold, deadline_s=60, **settings)  # type: ignore[arg-type]


def publish(prefixes: PrefixCache, worker: Worker, token_ids: list[int] = TOKENS) -> list[bytes]:
    blocks = worker.blocks(token_ids)
    assert prefixes.publish(token_ids, blocks) == len(blocks)
    assert prefixes.flush(60)
    return [data for _, data in blocks]


@pytest.mark.parametrize("cold", ["always", "never"])
def test_either_form_loads_the_same(
    store: StoreProcess, coding_worker: CodingWorker, cold: str
) -> None:
    with Client(store.target) as client, coding_worker.prefixes(client, config(cold)) as prefixes:
        published = publish(prefixes, coding_worker)
        sent = prefixes.counters
    with Client(store.target) as client, coding_worker.prefixes(client, config("never")) as other:
        prefix = other.load([*TOKENS, 1])
        found = other.counters
    assert [payload.data for payload in prefix.payloads] == published
    assert {payload.header.form for payload in prefix.payloads} == {Form.RESIDENT}
    assert sent.published_bytes == found.fetched_bytes
    if cold == "always":
        assert sent.published_cold == found.loaded_cold == 4
        assert found.fetched_bytes < 0.97 * sum(map(len, published))
    else:
        assert sent.published_cold == found.loaded_cold == 0
        assert found.fetched_bytes == sum(map(len, published))


def test_a_load_may_mix_forms(client: Client, packkv_worker: CodingWorker) -> None:
    blocks = packkv_worker.blocks(TOKENS)
    names = packkv_worker.hashes(TOKENS)
    forms = [cold_form(data).data if i % 2 else data for i, data in blocks]
    client.put(list(zip(names, forms, strict=True)))
    with packkv_worker.prefixes(client, config("never")) as prefixes:
        prefix = prefixes.load([*TOKENS, 1])
        assert prefixes.counters.loaded_cold == 2
    assert [payload.data for payload in prefix.payloads] == [data for _, data in blocks]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_moves_cold_payloads(
    store: StoreProcess, packkv_worker: CodingWorker, path: str
) -> None:
    resident = [data for _, data in packkv_worker.blocks(TOKENS)]
    cold, names = [cold_form(data) for data in resident], packkv_worker.hashes(TOKENS)
    with Client(store.target, config=ClientConfig(paths=(path,))) as client:
        client.put([(name, block.data) for name, block in zip(names, cold, strict=True)])
        whole = client.get(names)
        assert [block.data for block in whole] == [block.data for block in cold]
        one_layer = client.get(names, layers=Span(1, 1))
        one_head = client.get(names, heads=Span(1, 1))
        assert client.transfers == {path: 4}
    for block, layer, head, data in zip(cold, one_layer, one_head, resident, strict=True):
        assert layer.data is not None
        check_layer(open_payload(layer.data), read_payload(data), 1)
        assert head.data is not None
        for number in range(SHAPE.layers):
            part = Payload(block.header, head.data, block.sections).section(number, 1)
            assert part == block.section(number, 1)


def check_layer(some: Payload, resident: Payload, layer: int) -> None:
    """That a layer comes back of a cold payload of which no other has come."""
    head = ColdHead.of(some)
    words = np.zeros(head.payload_length // 4, np.uint32)
    head.decode(some.data, words, range(layer, layer + 1))
    found = Payload(head.header, words.data.cast("B"), head.sections)
    for number in range(SHAPE.heads):
        assert found.section(layer, number) == resident.section(layer, number)


@pytest.mark.parametrize("path", ["bulk", "grpc"])
def test_cold_blocks_are_decoded_layer_by_layer(
    store: StoreProcess, coding_worker: CodingWorker, path: str
) -> None:
    settings = config("always", group_bytes=1, probe_bytes=1)
    with (
        Client(store.target, config=ClientConfig(paths=(path,))) as client,
        coding_worker.prefixes(client, settings) as prefixes,
    ):
        published = publish(prefixes, coding_worker)
        # nothing comes in layers before the link is known
        assert prefixes.load([*TOKENS, 1]).num_tokens == 256
        arriving = prefixes.load([*TOKENS, 1], layerwise=True).arriving
        assert arriving is not None
        parts = [part for layer in range(SHAPE.layers) for part in arriving.take(layer)]
        for block, data in enumerate(published):
            found = [part.blocks[block].words for part in parts]
            assert np.array_equal(
                np.concatenate(found), resident_sections(read_payload(data)).words
            )
        until(lambda: prefixes.counters.loaded_cold == 8)


def test_who_decodes_decodes_whole_loads_and_layers(
    store: StoreProcess, packkv_worker: CodingWorker
) -> None:
    asked: list[range | None] = []

    def decode(
        head: ColdHead, cold: memoryview, out: NDArray[np.uint32], layers: range | None = None
    ) -> None:
        asked.append(layers)
        head.decode(cold, out, layers)

    settings = config("always", group_bytes=1, probe_bytes=1)
    with (
        Client(store.target, config=ClientConfig(paths=("bulk",))) as client,
        PrefixCache(
            client,
            packkv_worker.namespace,
            packkv_worker.codec,
            SHAPE,
            config=settings,
            decode=decode,
        ) as prefixes,
    ):
        publish(prefixes, packkv_worker)
        assert prefixes.load([*TOKENS, 1]).num_tokens == 256
        assert set(asked) == {None}
        asked.clear()
        arriving = prefixes.load([*TOKENS, 1], layerwise=True).arriving
        assert arriving is not None
        arriving.take(SHAPE.layers - 1)
    layers = [layer for some in asked if some is not None for layer in some]
    assert sorted(layers) == sorted([*range(SHAPE.layers)] * 4)


def test_cold_blocks_survive_a_restart_on_disk(
    own_store: StoreProcess, packkv_worker: CodingWorker
) -> None:
    with Client(own_store.target) as client:
        with packkv_worker.prefixes(client, config("always")) as prefixes:
            published = publish(prefixes, packkv_worker)
        used = client.stats().tiers[0].used_bytes
    own_store.kill()
    own_store.start()
    found = CliRunner().invoke(app, ["verify", "--target", own_store.target, "--json"])
    assert [json.loads(found.stdout)[key] for key in ("blocks", "cold", "sound")] == [4, 4, True]
    with Client(own_store.target) as client:
        with packkv_worker.prefixes(client, config("never")) as prefixes:
            prefix = prefixes.load([*TOKENS, 1])
            assert prefixes.counters.loaded_cold == 4
        assert [payload.data for payload in prefix.payloads] == published
        assert used < 0.9 * sum(map(len, published))


def reseal(data: bytes, place: int) -> bytes:
    """The payload with a byte of its first section changed, and checksums that are right."""
    payload, changed = read_payload(data), bytearray(data)
    offset, length = payload.sections[0].tolist()
    changed[offset + place] ^= 1
    digest = xxhash.xxh3_128_digest(bytes(changed[offset : offset + length]))
    changed[HEADER_BYTES + 8 : HEADER_BYTES + 24] = digest
    changed[CHECKSUM_AT:HEADER_BYTES] = bytes(16)
    head = bytes(changed[: payload.header.head_length])
    changed[CHECKSUM_AT:HEADER_BYTES] = xxhash.xxh3_128_digest(head)
    return bytes(changed)


def test_cold_bytes_that_changed_are_a_miss_with_its_reason(
    puppet: PuppetStore, puppet_client: Client, packkv_worker: CodingWorker
) -> None:
    names = packkv_worker.hashes(TOKENS)
    for name, (_, data) in zip(names, packkv_worker.blocks(TOKENS), strict=True):
        puppet.blocks[name] = bytes(cold_form(data).data)
    third, sound = names[2], puppet.blocks[names[2]]
    offset = int(read_payload(sound).sections[0, 0])
    flipped = bytearray(sound)
    flipped[offset + 900] ^= 1
    lies = {"checksum": (bytes(flipped), reseal(sound, 900)), "truncated": (sound[:-16],)}
    for reason, damaged in lies.items():
        for data in damaged:
            puppet.blocks[third] = data
            with packkv_worker.prefixes(puppet_client, config("never")) as prefixes:
                assert prefixes.load([*TOKENS, 1]).num_tokens == 128
                # what decodes to another payload, or to none
                wanted = {reason, "section"} if reason == "checksum" else {reason}
                assert set(prefixes.counters.misses) <= wanted
                assert sum(prefixes.counters.misses.values()) == 1
    puppet.blocks[third] = sound
    assert from_cold(read_payload(sound)).data == packkv_worker.payload(TOKENS, 2)


@contextmanager
def slow_link(target: str, bytes_per_s: int) -> Iterator[str]:
    """An address behind a link of that bandwidth."""
    port = target.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "packkv.bench.ttft.shaped_link", str(8 * bytes_per_s)]
    with subprocess.Popen(
        [*command, "127.0.0.2", "127.0.0.1", port], stdout=subprocess.PIPE, text=True
    ) as link:
        try:
            assert link.stdout is not None
            assert link.stdout.readline() == "listening\n"
            yield f"127.0.0.2:{port}"
        finally:
            link.kill()


def test_auto_goes_cold_behind_a_slow_link_once_it_has_measured_it(
    store: StoreProcess, packkv_worker: CodingWorker
) -> None:
    over_grpc = ClientConfig(paths=("grpc",), insecure=True)
    with (
        slow_link(store.target, 200_000) as target,
        Client(target, config=over_grpc) as client,
        packkv_worker.prefixes(client, config("auto")) as prefixes,
    ):
        # nobody knows the link yet
        publish(prefixes, packkv_worker)
        assert prefixes.counters.published_cold == 0
        assert prefixes.load([*TOKENS, 1]).num_tokens == 256
        publish(prefixes, packkv_worker, TOKENS[::-1])
        assert prefixes.counters.published_cold == 4

"""Cold coding: any payload comes back to the byte, and no bytes do harm."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.entropy import from_cold, to_cold
from packkv_kernels.entropy.cold import MAGIC
from packkv_kernels.entropy.cold_side import side_start, side_words
from packkv_kernels.entropy.tables import new_tables, read_tables, tables_bytes
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import Payload, describe_sections, read_payload, tile, write_payload
from packkv_kernels.testing import encode_payloads, random_kv, random_profile

CODECS = [
    "hybrid",
    "hybrid:delta=1.4,v_levels=4",
    "hybrid:delta=0.3,v_levels=16",
    "hybrid:delta=0.03",
    "packkv",
    "packkv:rel_k=0.004,rel_v=0.02",
]
DIMS = [4, 64, 80, 96, 128, 256, 512]


def payloads_of(
    codec: str, shape: CacheShape, tokens: int, seed: int = 0, first_token: int = 0
) -> list[Payload]:
    config = CodecConfig.parse(codec)
    keys, values = random_kv(shape, tokens, seed=seed, first_token=first_token)
    profile = random_profile(shape) if config.needs_profile else None
    found = encode_payloads(keys, values, config, profile, first_token=first_token)
    return [read_payload(data) for data in found]


def with_random_codes(payload: Payload, rng: np.random.Generator) -> Payload:
    """The payload with other codes in its planes, sometimes skewed: as valid as before."""
    descriptors = describe_sections(payload)
    sections = []
    for index, row in enumerate(descriptors):
        layer, head = divmod(index, payload.header.heads)
        words = np.frombuffer(payload.section(layer, head), np.uint32).copy()
        raw = row[tile.FLAGS] >> tile.RAW_SHIFT
        for side, bit in ((tile.K_SIDE, 1), (tile.V_SIDE, 2)):
            if raw & bit:
                continue
            start = row[side + tile.PLANE_A]
            stop = side_start(row, side) + side_words(row, side)
            noise = rng.integers(0, 2**32, (4, stop - start), dtype=np.uint32)
            words[start:stop] = np.bitwise_and.reduce(noise[: rng.integers(1, 5)])
        sections.append(words.tobytes())
    return read_payload(write_payload(payload.header, sections))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("codec", [*CODECS, "raw"])
def test_every_payload_comes_back_to_the_byte(codec: str, dim: int) -> None:
    for payload in payloads_of(codec, CacheShape(2, 3, dim), 200):
        cold = to_cold(payload)
        assert len(cold) <= len(payload.data)
        assert from_cold(cold) == payload.data


@pytest.mark.parametrize("codec", [codec for codec in CODECS if "0.03" not in codec])
def test_cold_payloads_are_smaller(codec: str) -> None:
    payload = payloads_of(codec, CacheShape(8, 8, 128), 64, first_token=64)[0]
    assert len(to_cold(payload)) < 0.93 * len(payload.data)


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 63])
@pytest.mark.parametrize("codec", CODECS)
def test_partial_blocks_come_back(codec: str, tokens: int) -> None:
    for first_token in (0, 64):
        payload = payloads_of(codec, CacheShape(1, 2, 64), tokens, first_token=first_token)[0]
        assert from_cold(to_cold(payload)) == payload.data


@pytest.mark.parametrize("codec", CODECS)
def test_random_tiles_come_back(codec: str) -> None:
    rng = np.random.default_rng(7)
    coded = 0
    # without sinks every token has codes; 37 tokens get codes where none belong
    for dim, tokens in ((64, 64), (64, 37), (128, 64), (4, 64)):
        payload = payloads_of(codec, CacheShape(12, 16, dim), tokens, first_token=64)[0]
        for _ in range(4):
            changed = with_random_codes(payload, rng)
            cold = to_cold(changed)
            assert from_cold(cold) == changed.data
            coded += coded_sides(cold, 12 * 16)
    assert coded > 1000


def coded_sides(cold: bytes, sections: int) -> int:
    if cold[:8] != MAGIC:
        return 0
    sizes = np.frombuffer(cold[208 : 208 + 4 * sections], "<u4")
    return int((sizes >> 30 & 1).sum() + (sizes >> 31).sum())


def test_tiles_of_values_come_back() -> None:
    shape = CacheShape(2, 2, 64)
    keys, values = random_kv(shape, 64, dtype=torch.float32)
    keys[0, 9, 0, 3] = 60_000.0
    values[1, 20, 1] *= 1e5
    config, profile = CodecConfig.parse("hybrid:delta=0.01"), random_profile(shape)
    payload = read_payload(encode_payloads(keys, values, config, profile)[0])
    flags = describe_sections(payload)[:, tile.FLAGS]
    assert (flags >> tile.RAW_SHIFT & 1).any()
    assert from_cold(to_cold(payload)) == payload.data


def test_every_backend_reads_what_came_back(cold_payload: Payload) -> None:
    describe_sections(read_payload(from_cold(to_cold(cold_payload))))


@pytest.fixture(scope="module")
def cold_payload() -> Payload:
    payload = payloads_of("hybrid", CacheShape(4, 4, 64), 64)[0]
    assert to_cold(payload)[:8] == MAGIC
    return payload


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_changed_bytes_are_refused_or_mean_the_same(
    cold_payload: Payload, data: st.DataObject
) -> None:
    cold = bytearray(to_cold(cold_payload))
    places = st.one_of(st.integers(0, 300), st.integers(200, 700), st.integers(0, len(cold) - 1))
    changes = st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=8)
    for place, value in data.draw(changes):
        cold[place] ^= value
    changed = bytes(cold[: data.draw(st.one_of(st.just(len(cold)), st.integers(0, len(cold))))])
    # a codeword that nothing uses may change without a trace
    with suppress(PayloadError):
        assert from_cold(changed) == cold_payload.data


@pytest.mark.parametrize("place", [0, 9, 12, 20, 100, 209, 500])
def test_a_changed_byte_is_refused(cold_payload: Payload, place: int) -> None:
    cold = bytearray(to_cold(cold_payload))
    cold[place] ^= 1
    with pytest.raises(PayloadError):
        from_cold(cold)


@given(words=st.lists(st.integers(0, 2**32 - 1), max_size=300))
@settings(max_examples=100, deadline=None)
def test_wild_sections_are_refused_or_mean_the_same(
    cold_payload: Payload, words: list[int]
) -> None:
    cold = bytearray(to_cold(cold_payload))
    tail = np.array(words, np.uint32).tobytes()
    cold[len(cold) - len(tail) :] = tail
    with suppress(PayloadError):
        assert from_cold(cold) == cold_payload.data


@given(data=st.binary(max_size=400))
@settings(max_examples=200)
def test_tables_are_complete_or_refused(data: bytes) -> None:
    with suppress(PayloadError):
        tables, end = read_tables(memoryview(data))
        assert tables_bytes(tables) == data[:end]


def test_no_tables_take_four_bytes() -> None:
    assert tables_bytes(new_tables()) == bytes(4)

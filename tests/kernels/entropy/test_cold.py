"""Cold coding: any payload comes back to the byte, and no bytes do harm."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packkv_kernels.compress.section import Side, new_side, side_flags, write_section
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig, CodecId
from packkv_kernels.entropy import from_cold, to_cold
from packkv_kernels.entropy.cold import MAGIC
from packkv_kernels.entropy.tables import ROWS, build_tables, new_counts, read_tables, tables_bytes
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import (
    KVDtype,
    Payload,
    PayloadHeader,
    describe_sections,
    read_payload,
    tile,
    write_payload,
)
from packkv_kernels.format.layout import unit_of
from packkv_kernels.testing import encode_payloads, random_kv, random_profile

GOLDEN = Path(__file__).parents[1] / "golden"
CODECS = [
    "hybrid",
    "hybrid:delta=1.4,v_levels=4",
    "hybrid:delta=2.0,v_levels=2",
    "hybrid:delta=0.3,v_levels=16",
    "hybrid:delta=0.03",
    "packkv",
    "packkv:rel_k=0.004,rel_v=0.02",
]
DIMS = [4, 64, 80, 96, 128, 256, 512]
WIDTHS = np.array([0, 1, 2, 3, 4, 6, 8], np.uint8)


def payloads_of(
    codec: str, shape: CacheShape, tokens: int, seed: int = 0, first_token: int = 0
) -> list[Payload]:
    config = CodecConfig.parse(codec)
    keys, values = random_kv(shape, tokens, seed=seed, first_token=first_token)
    profile = random_profile(shape) if config.needs_profile else None
    found = encode_payloads(keys, values, config, profile, first_token=first_token)
    return [read_payload(data) for data in found]


def random_side(
    rng: np.random.Generator, which: int, dim: int, inexact: slice, widths: np.ndarray
) -> Side:
    """Integers of any kind, sometimes skewed, for units of these widths."""
    side = new_side(dim, which)
    side.widths[:] = widths
    channels = np.repeat(widths, dim // len(widths)).astype(np.uint32)
    noise = rng.integers(0, 256, (rng.integers(1, 4), BLOCK_TOKENS, dim))
    for part in (side.codes, side.log_scales, side.scale, side.zero):
        part[:] = 0
    codes = np.bitwise_and.reduce(noise) & ((1 << channels) - 1)
    side.codes[inexact] = codes[inexact]
    limit = rng.choice([8, 128, 32_768])
    side.minima[:] = rng.integers(-limit, limit, dim)
    side.steps[:] = rng.integers(-8, 8, dim)
    tokens = side.codes[inexact].shape[0]
    side.log_scales[inexact] = rng.integers(0, rng.choice([2, 20, 256]), tokens)
    side.scale[inexact] = rng.exponential(1, tokens)
    side.zero[inexact] = rng.integers(-32_768, 32_768, tokens)
    return side


def random_section(
    rng: np.random.Generator, codec: CodecId, dim: int, tokens: int, sinks: int
) -> bytes:
    """A section that a payload may have, whether or not any encoder would write it."""
    inexact = slice(sinks, tokens)
    flags, sides = 0, []
    for which in (tile.K_SIDE, tile.V_SIDE):
        widths = np.sort(rng.choice(WIDTHS[: rng.integers(1, 8)], dim // unit_of(dim, which)))[::-1]
        rotated = codec is CodecId.HYBRID and which == tile.V_SIDE
        if rotated:
            widths = np.full(len(widths), rng.integers(1, 5), np.uint8)
        side = random_side(rng, which, dim, inexact, widths)
        scales = tile.CHANNEL_STEPS if codec is CodecId.HYBRID else tile.FLOAT_SCALES
        fits = rng.random() < 0.95
        of_side = side_flags(which, side, fits, not rotated, tile.LOG_SCALES if rotated else scales)
        if fits and not rotated and rng.random() < 0.3:
            of_side = with_sparse_planes(of_side)
        flags |= of_side
        sides.append(side)
    exact = rng.standard_normal((2, tokens, dim)).astype(np.float32)
    words = np.zeros(tokens * dim * 2 + 4096, np.uint32)
    length = write_section(words, flags, sinks, exact[0], exact[1], sides[0], sides[1])
    return words[:length].tobytes()


def with_sparse_planes(flags: int) -> int:
    """Flags whose planes of all units have bitmaps, which say no more than before."""
    for shift in (*range(0, tile.MINIMA_SHIFT, 2), tile.PLANE_A_SHIFT, tile.PLANE_A_SHIFT + 2):
        if flags >> shift & 3 == tile.DENSE:
            flags += (tile.SPARSE - tile.DENSE) << shift
    return flags


def random_payload(
    rng: np.random.Generator, codec: CodecId, shape: CacheShape, tokens: int = 64, sinks: int = 0
) -> Payload:
    header = PayloadHeader(
        codec=codec,
        kv_dtype=KVDtype.FLOAT16,
        tokens=tokens,
        sinks=sinks,
        layers=shape.layers,
        first_head=0,
        heads=shape.heads,
        head_dim=shape.head_dim,
        root_hash=rng.bytes(32),
        chain_hash=rng.bytes(32),
        codec_digest=bytes(32),
        profile_digest=bytes(32),
        first_token=0,
    )
    sections = [
        random_section(rng, codec, shape.head_dim, tokens, sinks)
        for _ in range(header.section_count)
    ]
    return read_payload(write_payload(header, sections))


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


def test_token_scales_that_heads_share_travel_once() -> None:
    rng = np.random.default_rng(3)
    lone = random_payload(rng, CodecId.PACKKV, CacheShape(1, 1, 64))
    section = lone.section(0, 0)
    header = replace(lone.header, heads=9)
    shared = read_payload(write_payload(header, [section] * 9))
    more = len(to_cold(shared)) - len(to_cold(lone))
    scales = 2 * BLOCK_TOKENS * 6
    assert more < 8 * (len(to_cold(lone)) - scales)
    assert from_cold(to_cold(shared)) == shared.data


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 63])
@pytest.mark.parametrize("codec", CODECS)
def test_partial_blocks_come_back(codec: str, tokens: int) -> None:
    for first_token in (0, 64):
        payload = payloads_of(codec, CacheShape(1, 2, 64), tokens, first_token=first_token)[0]
        assert from_cold(to_cold(payload)) == payload.data


@pytest.mark.parametrize("codec", [CodecId.HYBRID, CodecId.PACKKV])
def test_random_tiles_come_back(codec: CodecId) -> None:
    rng = np.random.default_rng(7)
    coded = 0
    for dim, tokens, sinks in (
        *((64, 64, 0), (64, 37, 4), (128, 64, 1), (256, 64, 0), (512, 64, 63)),
        *((4, 64, 3), (12, 64, 64), (80, 1, 0), (96, 62, 2)),
    ):
        for _ in range(4):
            payload = random_payload(rng, codec, CacheShape(5, 5, dim), tokens, sinks)
            describe_sections(payload)
            cold = to_cold(payload)
            assert from_cold(cold) == payload.data
            coded += cold[:8] == MAGIC
    assert coded > 12


@pytest.mark.parametrize("codec", ["hybrid", "packkv"])
def test_codes_where_no_token_is_come_back(codec: str) -> None:
    payload = payloads_of(codec, CacheShape(1, 2, 64), 37, first_token=64)[0]
    sections = []
    for head, row in enumerate(describe_sections(payload)):
        words = np.frombuffer(payload.section(0, head), np.uint32).copy()
        words[row[tile.V_SIDE + tile.PLANE_A] :] = 2**32 - 1
        sections.append(words.tobytes())
    changed = read_payload(write_payload(payload.header, sections))
    describe_sections(changed)
    assert from_cold(to_cold(changed)) == changed.data


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.payload")), ids=lambda path: path.stem)
def test_golden_payloads_come_back(path: Path) -> None:
    data = path.read_bytes()
    assert from_cold(to_cold(read_payload(data))) == data


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


@pytest.fixture(scope="module", params=["hybrid", "packkv"])
def cold_payload(request: pytest.FixtureRequest) -> Payload:
    payload = payloads_of(request.param, CacheShape(4, 4, 64), 64)[0]
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


@pytest.mark.parametrize("side", [0, 1])
@given(data=st.binary(max_size=400))
@settings(max_examples=200)
def test_tables_are_complete_or_refused(side: int, data: bytes) -> None:
    with suppress(PayloadError):
        tables, end = read_tables(memoryview(data), side)
        assert tables_bytes(tables, side) == data[:end]


@pytest.mark.parametrize("side", [0, 1])
def test_tables_come_back(side: int) -> None:
    rng = np.random.default_rng(side)
    counts = new_counts()
    counts[rng.random(ROWS) < 0.3] = rng.geometric(1e-3, counts.shape[1])
    tables = build_tables(counts, side)
    data = tables_bytes(tables, side)
    found, end = read_tables(memoryview(data), side)
    assert end == len(data)
    assert (found == tables).all()


def test_no_tables_take_a_bit_each() -> None:
    assert not any(tables_bytes(build_tables(new_counts(), 0), 0))

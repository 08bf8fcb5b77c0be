"""Cold coding: any payload comes back to the byte."""

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
from packkv_kernels.entropy import ColdHead, from_cold, to_cold
from packkv_kernels.entropy.section_heads import HEAD_ROOM
from packkv_kernels.entropy.tables import ROWS, build_tables, new_counts, read_tables, tables_bytes
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format import (
    Form,
    KVDtype,
    Payload,
    PayloadHeader,
    describe_sections,
    open_payload,
    read_payload,
    resident_sections,
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


def there_and_back(payload: Payload) -> Payload:
    """A payload's cold form; fails unless the payload comes back from it."""
    cold = read_payload(to_cold(payload))
    back = from_cold(cold)
    assert back.data == payload.data
    assert back.header == payload.header
    assert (back.sections == payload.sections).all()
    return cold


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("codec", [*CODECS, "raw"])
def test_every_payload_comes_back_to_the_byte(codec: str, dim: int) -> None:
    for payload in payloads_of(codec, CacheShape(2, 3, dim), 200):
        cold = there_and_back(payload)
        assert len(cold.data) <= len(payload.data)
        assert (cold.header.form is Form.COLD) == (len(cold.data) < len(payload.data))


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
    more = len(there_and_back(shared).data) - len(to_cold(lone))
    scales = 2 * BLOCK_TOKENS * 6
    assert more < 8 * (len(to_cold(lone)) - scales)


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 63])
@pytest.mark.parametrize("codec", CODECS)
def test_partial_blocks_come_back(codec: str, tokens: int) -> None:
    for first_token in (0, 64):
        payload = payloads_of(codec, CacheShape(1, 2, 64), tokens, first_token=first_token)[0]
        there_and_back(payload)


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
            coded += there_and_back(payload).header.form is Form.COLD
    assert coded > 12


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("codec", [CodecId.HYBRID, CodecId.PACKKV])
def test_very_many_random_tiles_come_back(codec: CodecId, soak_rounds: int) -> None:
    """`make soak` says 300 rounds: with both codecs a million tiles of K and V, and a few more."""
    for seed in range(soak_rounds):
        rng = np.random.default_rng((seed, codec))
        shape = CacheShape(28, 30, int(rng.choice([4, 16, 64, 80, 128])))
        tokens = 64 if rng.random() < 0.5 else int(rng.integers(1, 65))
        sinks = min(4, tokens) if rng.random() < 0.5 else int(rng.integers(0, tokens + 1))
        there_and_back(random_payload(rng, codec, shape, tokens, sinks))


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
    there_and_back(changed)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.payload")), ids=lambda path: path.stem)
def test_golden_payloads_come_back(path: Path) -> None:
    there_and_back(from_cold(read_payload(path.read_bytes())))


def test_tiles_of_values_come_back() -> None:
    shape = CacheShape(2, 2, 64)
    keys, values = random_kv(shape, 64, dtype=torch.float32)
    keys[0, 9, 0, 3] = 60_000.0
    values[1, 20, 1] *= 1e5
    config, profile = CodecConfig.parse("hybrid:delta=0.01"), random_profile(shape)
    payload = read_payload(encode_payloads(keys, values, config, profile)[0])
    flags = describe_sections(payload)[:, tile.FLAGS]
    assert (flags >> tile.RAW_SHIFT & 1).any()
    there_and_back(payload)


def test_what_came_back_is_sound_and_reads_as_a_payload(resident: Payload, cold: Payload) -> None:
    describe_sections(from_cold(cold))
    assert read_payload(from_cold(cold).data).header == resident.header


def test_a_payload_has_each_form_once(resident: Payload, cold: Payload) -> None:
    assert bytes(to_cold(cold)) == bytes(cold.data)
    assert from_cold(resident) is resident
    with pytest.raises(InvalidInput, match="resident"):
        ColdHead.of(resident)


def test_cold_sections_are_not_taken_for_tiles(cold: Payload) -> None:
    with pytest.raises(InvalidInput, match="from_cold"):
        describe_sections(cold)
    with pytest.raises(InvalidInput, match="from_cold"):
        resident_sections(cold)


def test_one_thread_or_many_make_the_same(resident: Payload) -> None:
    cold = read_payload(to_cold(resident, threads=1))
    assert bytes(cold.data) == bytes(to_cold(resident))
    assert from_cold(cold, threads=1).data == resident.data


def test_the_head_alone_says_where_sections_go(resident: Payload, cold: Payload) -> None:
    arriving = bytearray(len(cold.data))
    arriving[: cold.header.head_length] = cold.data[: cold.header.head_length]
    head = ColdHead.of(open_payload(arriving))
    assert head.header == resident.header
    assert head.payload_length == len(resident.data)
    assert (head.sections == resident.sections).all()


def test_layers_come_back_one_by_one_from_their_own_bytes(resident: Payload, cold: Payload) -> None:
    head = ColdHead.of(cold)
    words = np.zeros(len(resident.data) // 4, np.uint32)
    for layer in (2, 0, 3, 1):
        rows = slice(4 * layer, 4 * layer + 4)
        lonely = bytearray(len(cold.data))
        start, end = head.cold_sections[rows][0, 0], head.cold_sections[rows][-1].sum()
        lonely[start:end] = cold.data[start:end]
        head.decode(memoryview(lonely), words, range(layer, layer + 1))
        start, end = head.sections[rows][0, 0], head.sections[rows][-1].sum()
        assert words.data.cast("B")[start:end] == resident.data[start:end]
    assert head.finish(words).data == resident.data


def test_layers_that_are_missing_are_noticed(cold: Payload) -> None:
    head = ColdHead.of(cold)
    words = np.zeros(head.payload_length // 4, np.uint32)
    head.decode(cold.data, words, range(0))
    assert not words.any()
    head.decode(cold.data, words, range(3))
    with pytest.raises(PayloadError) as caught:
        head.finish(words)
    assert caught.value.reason == "checksum"


def test_no_preamble_is_longer_than_a_reader_takes() -> None:
    tables = [tables_bytes(build_tables(new_counts() + 1, side), side) for side in range(2)]
    lanes, head = 4 * 4, 4 * HEAD_ROOM
    assert 32 + sum(map(len, tables)) + 16 <= 4096
    assert lanes + head <= 512


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

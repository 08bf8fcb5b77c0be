"""The validator: whatever bytes a section has, no kernel reads past its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from packkv_kernels.compress.unpack import unpack_k_tile, unpack_v_tile
from packkv_kernels.config import CacheShape, CodecConfig, CodecId
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format import (
    Payload,
    describe_sections,
    read_payload,
    resident_sections,
    tile,
    write_payload,
)
from packkv_kernels.testing import encode_payloads, random_kv, random_profile

HEAD_DIM = 8
SHAPE = CacheShape(1, 1, HEAD_DIM)
CODECS = [
    *("hybrid", "hybrid:v_levels=4", "hybrid:delta=4,v_levels=2", "hybrid:delta=0.02"),
    *("packkv", "packkv:rel_k=0.004"),
]


def payload_of(text: str, tokens: int = 64, seed: int = 0) -> Payload:
    config = CodecConfig.parse(text)
    keys, values = random_kv(SHAPE, tokens, seed=seed)
    profile = random_profile(SHAPE) if config.needs_profile else None
    return read_payload(encode_payloads(keys, values, config, profile)[0])


def with_section(payload: Payload, words: Sequence[int]) -> Payload:
    """The payload with its one section replaced and all checksums right again."""
    section = np.array(words, np.uint32).tobytes()
    return read_payload(write_payload(payload.header, [section + bytes(-len(section) % 16)]))


def unpacked(payload: Payload, surrounding: int) -> NDArray[np.float32]:
    """Packed K and V of the one section, read out of memory filled with `surrounding`."""
    resident = resident_sections(payload)
    margin = 4096
    words = np.full(len(resident.words) + 2 * margin, surrounding, np.uint32)
    words[margin:-margin] = resident.words
    out = np.full((2, 64, HEAD_DIM), np.nan, np.float32)
    order = np.arange(HEAD_DIM, dtype=np.int16)
    levels = 8 if payload.header.codec is CodecId.HYBRID else 0
    row = resident.descriptors[0]
    unpack_k_tile(words, margin, row, order, np.ones(HEAD_DIM, np.float32), out[0])
    unpack_v_tile(words, margin, row, levels, out[1])
    return out


def refused(payload: Payload) -> bool:
    try:
        resident_sections(payload)
    except PayloadError as error:
        return error.reason == "section"
    return False


def assert_refused_or_contained(payload: Payload) -> None:
    if refused(payload):
        return
    # what lies around a section must not reach the result
    found = unpacked(payload, 0)
    assert np.isfinite(found).all()
    assert np.array_equal(found, unpacked(payload, 0x7F7F7F7F))


@pytest.mark.parametrize("text", CODECS)
@given(data=st.data())
@settings(max_examples=60)
def test_a_forged_section_is_refused_or_stays_within_itself(text: str, data: st.DataObject) -> None:
    payload = payload_of(text)
    words = np.frombuffer(payload.section(0, 0), np.uint32).tolist()
    places = st.one_of(st.integers(0, 8), st.integers(0, len(words) - 1))
    values = st.one_of(
        st.integers(0, 2**32 - 1), st.integers(0, 31).map(lambda bit: 1 << bit), st.just(0)
    )
    for place, value in data.draw(st.lists(st.tuples(places, values), min_size=1, max_size=6)):
        words[place] = value if data.draw(st.booleans()) else words[place] ^ value
    length = data.draw(st.one_of(st.just(len(words)), st.integers(4, len(words))))
    assert_refused_or_contained(with_section(payload, words[:length]))


@pytest.mark.parametrize("text", ["hybrid", "packkv"])
@given(words=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=400))
@settings(max_examples=60)
def test_a_wild_section_is_refused_or_stays_within_itself(text: str, words: list[int]) -> None:
    assert_refused_or_contained(with_section(payload_of(text), words))


def planes(a: int = 1, c: int = 0, b: int = 0, h1: int = 0, h2: int = 0) -> int:
    return a | c << 2 | b << 4 | h1 << 6 | h2 << 8


def section_with(flags: int, *bitmaps: int, length: int = 1024) -> list[int]:
    words = [0] * length
    words[:2] = [flags, 64]
    words[2 : 2 + len(bitmaps)] = bitmaps
    return words


MINIMA, SCALES = (tile.INT8_MINIMA, tile.NO_MINIMA), (tile.CHANNEL_STEPS, tile.LOG_SCALES)
FOUR = planes()  # V of 4 levels
FORGERIES = [
    ("flags have unknown bits", section_with(1 << tile.FLAG_BITS)),
    ("flags have unknown bits", section_with(tile.flag_bits(planes(a=3), FOUR, MINIMA, SCALES))),
    ("flags have unknown bits", section_with(tile.flag_bits(planes(c=3), FOUR, MINIMA, SCALES))),
    ("tokens or sinks differ", [tile.flag_bits(0, FOUR, MINIMA, SCALES), 63] + [0] * 1022),
    ("does not use these parts", section_with(tile.flag_bits(0, FOUR, MINIMA, (2, 1)))),
    ("does not use these parts", section_with(tile.flag_bits(0, FOUR, MINIMA, (3, 3)))),
    ("does not use these parts", section_with(tile.flag_bits(0, 0, MINIMA, SCALES))),
    ("does not use these parts", section_with(tile.flag_bits(0, planes(c=2), MINIMA, SCALES))),
    ("does not use these parts", section_with(1 << tile.RAW_SHIFT | 1)),
    ("past its units", section_with(tile.flag_bits(planes(c=2), FOUR, MINIMA, SCALES), 0b100)),
    ("C and B", section_with(tile.flag_bits(planes(1, 2, 2), FOUR, MINIMA, SCALES), 1, 1)),
    ("B is outside A", section_with(tile.flag_bits(planes(2, 0, 2), FOUR, MINIMA, SCALES), 1, 2)),
    ("H1 outside B", section_with(tile.flag_bits(planes(b=2, h1=2), FOUR, MINIMA, SCALES), 1, 2)),
    (
        "H2 outside H1",
        section_with(tile.flag_bits(planes(1, 0, 1, 2, 2), FOUR, MINIMA, SCALES), 1, 2),
    ),
    ("do not add up", section_with(tile.flag_bits(planes(), FOUR, MINIMA, SCALES))),
]


@pytest.mark.parametrize(("message", "words"), FORGERIES, ids=[name for name, _ in FORGERIES])
def test_each_forgery_is_refused_for_its_own_reason(message: str, words: list[int]) -> None:
    keys, values = random_kv(SHAPE, 64, first_token=64)
    payload = read_payload(
        encode_payloads(
            keys, values, CodecConfig.preset("hybrid"), random_profile(SHAPE), first_token=64
        )[0]
    )
    with pytest.raises(PayloadError, match=message):
        describe_sections(with_section(payload, words))


@pytest.mark.parametrize("part", ["header", "minima", "steps", "exact"])
def test_padding_and_infinities_are_refused(part: str) -> None:
    # with every unit of the same width there is no bitmap, and the head is padded
    payload = payload_of("hybrid:delta=0.02" if part == "header" else "hybrid")
    row = describe_sections(payload)[0]
    words = np.frombuffer(payload.section(0, 0), np.uint32).copy()
    if part == "header":
        words[row[tile.K_EXACT] - 1] |= 1 << 31
    elif part == "minima":
        words[row[tile.K_SIDE + tile.MINIMA] + 3] |= 1
    elif part == "steps":
        words[row[tile.K_SIDE + tile.SCALES] + 1] |= 1
    else:
        words[row[tile.V_EXACT]] = 0x7C00
    wanted = "not finite" if part == "exact" else "padding is not 0"
    with pytest.raises(PayloadError, match=wanted):
        describe_sections(with_section(payload, words.tolist()))


@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_rows_past_the_tokens_are_zero_and_all_rows_are_written(tokens: int) -> None:
    for text in CODECS:
        out = unpacked(payload_of(text, tokens), 0)
        assert np.isfinite(out).all()
        assert (out[:, tokens:] == 0).all()


def test_a_raw_payload_is_described_as_values_only() -> None:
    with pytest.raises(InvalidInput):
        describe_sections(payload_of("raw"))
    resident = resident_sections(payload_of("raw", tokens=5))
    assert resident.descriptors[0, tile.STORAGE] == tile.FLOAT16
    keys, values = random_kv(SHAPE, 5)
    halves = resident.words.view(np.float16)[: 2 * 5 * HEAD_DIM].reshape(2, 5, HEAD_DIM)
    assert np.array_equal(halves[0], keys[0, :, 0].numpy())
    assert np.array_equal(halves[1], values[0, :, 0].numpy())


@given(damage=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1))
@settings(max_examples=60)
def test_a_forged_raw_section_is_refused_or_has_all_its_values(
    damage: list[tuple[int, int]],
) -> None:
    payload = payload_of("raw", tokens=9)
    section = bytearray(payload.section(0, 0))
    for place, value in damage:
        section[place % len(section)] = value
    forged = read_payload(write_payload(payload.header, [bytes(section)]))
    if not refused(forged):
        resident = resident_sections(forged)
        assert len(resident.words) == resident.descriptors[0, tile.WORDS]


def test_a_raw_frame_never_expands_beyond_its_values() -> None:
    import zstandard

    payload = payload_of("raw", tokens=9)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    section = len(bomb).to_bytes(4, "little") + bytes(12) + bomb
    forged = write_payload(payload.header, [section + bytes(-len(section) % 16)])
    with pytest.raises(PayloadError, match="16777216"):
        resident_sections(read_payload(forged))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nan_in_a_raw_payload_is_refused(dtype: torch.dtype) -> None:
    from packkv_kernels.format.raw import compress_values

    keys, values = random_kv(SHAPE, 9, dtype=dtype)
    payload = read_payload(encode_payloads(keys, values, CodecConfig.preset("raw"))[0])
    keys[0, 3, 0, 5] = torch.nan
    both = torch.stack([keys[0, :, 0], values[0, :, 0]])
    section = compress_values(both.view(torch.uint8).numpy().tobytes(), both.itemsize)
    with pytest.raises(PayloadError, match="NaN"):
        resident_sections(read_payload(write_payload(payload.header, [section])))


def test_with_every_index_checked_no_read_leaves_a_section(tmp_path: Path) -> None:
    # without numba each access is NumPy's, which raises where machine code would read on
    script = tmp_path / "forge.py"
    script.write_text(EVERY_INDEX_CHECKED)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sound, refused = (int(count) for count in done.stdout.split())
    assert sound >= 10
    assert refused >= 10


EVERY_INDEX_CHECKED = """
import random
import numpy as np
from packkv_kernels.compress.unpack import unpack_k_tile, unpack_v_tile
from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import read_payload, resident_sections, write_payload
from packkv_kernels.testing import encode_payloads, random_kv, random_profile

np.seterr(all="ignore")
random.seed(1)
shape = CacheShape(1, 1, 8)
counts = [0, 0]
for spec in ("hybrid:delta=0.1", "packkv:rel_k=0.01"):
    config = CodecConfig.parse(spec)
    keys, values = random_kv(shape, 64)
    profile = random_profile(shape)
    data = encode_payloads(keys, values, config, profile, backend="reference")[0]
    payload = read_payload(data)
    for attempt in range(60):
        words = np.frombuffer(payload.section(0, 0), np.uint32).copy()
        if attempt:
            place = random.choice([0, 2, 3, 4, random.randrange(len(words))])
            words[place] ^= np.uint32(1 << random.randrange(32))
        forged = read_payload(write_payload(payload.header, [words.tobytes()]))
        try:
            resident = resident_sections(forged)
        except PayloadError:
            counts[1] += 1
            continue
        counts[0] += 1
        out = np.empty((64, 8), np.float32)
        row = resident.descriptors[0]
        order, ones = np.arange(8, dtype=np.int16), np.ones(8, np.float32)
        unpack_k_tile(resident.words, 0, row, order, ones, out)
        unpack_v_tile(resident.words, 0, row, 8 if spec[0] == "h" else 0, out)
print(*counts)
"""

"""The compiled core of the validator: what must hold of a section before a kernel may read it."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import CodecId
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import (
    all_units,
    bitmap_words,
    is_raw,
    lay_out,
    lay_out_bitmaps,
    plane_mode,
    plane_word,
    side_bits,
    unit_of,
)

__all__ = ["FAULTS", "prove_head", "prove_sections"]

# What `prove_sections` found, by number; 0 is "sound".
FAULTS: Final = (
    "sound",
    "flags have unknown bits or values",
    "tokens or sinks differ from the header's",
    "the codec does not use these parts",
    "a bitmap has bits past its units",
    "planes do not nest: C and B overlap, or B is outside A, H1 outside B, or H2 outside H1",
    "the parts do not add up to the section's length",
    "padding is not 0",
    "an exact value or a token scale is not finite",
)
_SOUND, _FLAGS, _EXTENT, _PARTS, _UNITS, _NESTING, _LENGTH, _PADDING, _FINITE = range(len(FAULTS))

_HYBRID: Final = int(CodecId.HYBRID)
_K_SIDE, _V_SIDE = tile.K_SIDE, tile.V_SIDE


@compiled
def _check_flags(flags: int) -> int:
    if flags >> tile.FLAG_BITS:
        return _FLAGS
    for shift in range(0, tile.FLAG_BITS, 2):
        # scales have a fourth kind, and the raw bits are two of their own
        three_is_known = tile.SCALES_SHIFT <= shift <= tile.RAW_SHIFT
        if (flags >> shift) & 3 == 3 and not three_is_known:
            return _FLAGS
    return _SOUND


@compiled
def _check_parts(flags: int, codec: int, side: int) -> int:
    """Whether a side has just the parts that its codec writes."""
    planes = (flags >> (tile.PLANES_V if side == _V_SIDE else 0)) & 255
    plane_a = side_bits(flags, side, tile.PLANE_A_SHIFT)
    minima = side_bits(flags, side, tile.MINIMA_SHIFT)
    scales = side_bits(flags, side, tile.SCALES_SHIFT)
    if is_raw(flags, side):
        return _SOUND if planes | plane_a | minima | scales == 0 else _PARTS
    if codec != _HYBRID:
        sound = minima != tile.NO_MINIMA and scales == tile.FLOAT_SCALES
    elif side == _K_SIDE:
        sound = minima != tile.NO_MINIMA and scales == tile.CHANNEL_STEPS
    else:
        # 2, 4, 8 or 16 levels: plane C alone, A alone, A with C, or A with B, for every unit
        fixed = planes == tile.DENSE and plane_a == tile.ABSENT
        fixed |= plane_a == tile.DENSE and planes in (0, tile.DENSE, tile.DENSE << 2)
        sound = minima == tile.NO_MINIMA and scales == tile.LOG_SCALES and fixed
    return _SOUND if sound else _PARTS


@compiled
def _check_bitmaps(words: NDArray[np.uint32], base: int, row: NDArray[np.int32], side: int) -> int:
    flags, head_dim = row[tile.FLAGS], row[tile.HEAD_DIM]
    units = head_dim // unit_of(head_dim, side)
    span = bitmap_words(units)
    present = np.zeros(5, np.int64)
    for i in range(span):
        at = row[side + tile.BITMAPS]
        for p in range(5):
            mode = plane_mode(flags, side, tile.PLANE_A + p)
            present[p] = plane_word(words, base, mode, at, units, i)
            if mode == tile.SPARSE:
                at += span
            if present[p] & ~all_units(units, i):
                return _UNITS
        a, c, b, h1, h2 = present
        if c & b or b & ~a or h1 & ~b or h2 & ~h1:
            return _NESTING
    return _SOUND


@compiled
def _finite_halves(words: NDArray[np.uint32], start: int, count: int) -> bool:
    """Whether `count` words of fp16 pairs hold no NaN and no infinity."""
    wrong = False
    for i in range(start, start + count):
        wrong |= (words[i] & 0x7C00) == 0x7C00 or (words[i] & 0x7C000000) == 0x7C000000
    return not wrong


@compiled
def _zero_padding(words: NDArray[np.uint32], base: int, start: int, end: int) -> bool:
    """Whether the words of a section from `start` to the next 16 bytes after `end` are 0."""
    clean = True
    for i in range(start, (end + 3) // 4 * 4):
        clean &= words[base + i] == 0
    return clean


@compiled
def _zero_steps_padding(words: NDArray[np.uint32], at: int, head_dim: int) -> bool:
    """Whether the 4-bit steps from word `at` on are followed by zeros only."""
    used = head_dim // 8
    clean = True
    if head_dim % 8:
        clean = words[at + used] >> np.uint32(16) == 0
        used += 1
    for i in range(used, (used + 3) // 4 * 4):
        clean &= words[at + i] == 0
    return clean


@compiled
def _check_side(words: NDArray[np.uint32], base: int, row: NDArray[np.int32], side: int) -> int:
    head_dim = row[tile.HEAD_DIM]
    values = row[side + tile.PLANE_A]
    if is_raw(row[tile.FLAGS], side):
        count = row[tile.TOKENS] * head_dim // 2
        if not _zero_padding(words, base, values + count, values + count):
            return _PADDING
        return _SOUND if _finite_halves(words, base + values, count) else _FINITE
    minima = side_bits(row[tile.FLAGS], side, tile.MINIMA_SHIFT)
    end = row[side + tile.MINIMA] + head_dim * minima // 4
    if not _zero_padding(words, base, end, end):
        return _PADDING
    scales = side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT)
    at = row[side + tile.SCALES]
    if scales == tile.CHANNEL_STEPS and not _zero_steps_padding(words, base + at, head_dim):
        return _PADDING
    if scales == tile.FLOAT_SCALES:
        for i in range(base + at, base + at + 64):
            # exponent of all ones is NaN or infinity; a sign bit is no scale either
            if words[i] >= 0x7F800000:
                return _FINITE
    return _SOUND


@compiled
def prove_head(
    words: NDArray[np.uint32], base: int, length: int, codec: int, row: NDArray[np.int32]
) -> int:
    """Proves flags, extent and bitmaps; returns the number of the fault.

    Args:
        words, base: where the section begins.
        length: how many of its words may be read.
        codec: HYBRID or PACKKV.
        row: its descriptor: TOKENS, SINKS and HEAD_DIM are given, the rest is filled in.
    """
    if length < 4:
        return _LENGTH
    flags = int(np.int64(words[base]))
    fault = _check_flags(flags)
    if fault:
        return fault
    if words[base + 1] != row[tile.TOKENS] | row[tile.SINKS] << 8:
        return _EXTENT
    for side in (_K_SIDE, _V_SIDE):
        fault = _check_parts(flags, codec, side)
        if fault:
            return fault
    row[tile.FLAGS] = flags
    # the bitmaps may be read only when they are there
    if lay_out_bitmaps(row) > length:
        return _LENGTH
    for side in (_K_SIDE, _V_SIDE):
        fault = _check_bitmaps(words, base, row, side)
        if fault:
            return fault
    lay_out(words, base, row)
    return _SOUND


@compiled
def _prove(
    words: NDArray[np.uint32], base: int, length: int, codec: int, row: NDArray[np.int32]
) -> int:
    """Proves one section; fills in its descriptor. `row` has TOKENS, SINKS, HEAD_DIM."""
    fault = prove_head(words, base, length, codec, row)
    if fault:
        return fault
    if row[tile.WORDS] != length:
        return _LENGTH
    return _check_contents(words, base, row, lay_out_bitmaps(row))


@compiled
def _check_contents(
    words: NDArray[np.uint32], base: int, row: NDArray[np.int32], bitmaps_end: int
) -> int:
    if not _zero_padding(words, base, bitmaps_end, bitmaps_end):
        return _PADDING
    exact = row[tile.SINKS] * row[tile.HEAD_DIM] // 2
    for rows in (row[tile.K_EXACT], row[tile.V_EXACT]):
        if not _zero_padding(words, base, rows + exact, rows + exact):
            return _PADDING
        if not _finite_halves(words, base + rows, exact):
            return _FINITE
    for side in (_K_SIDE, _V_SIDE):
        fault = _check_side(words, base, row, side)
        if fault:
            return fault
    return _SOUND


@compiled
def prove_sections(
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    lengths: NDArray[np.int64],
    codec: int,
    extent: NDArray[np.int32],
    descriptors: NDArray[np.int32],
) -> tuple[int, int]:
    """Proves sections in order until one is unsound.

    Args:
        words: the u32 words that hold all sections.
        bases, lengths: in words, inside `words`.
        codec: HYBRID or PACKKV.
        extent: int32 [3], tokens, sinks and head_dim that the header has.
        descriptors: int32 [sections, DESCRIPTOR_WORDS], overwritten.

    Returns:
        (number of the fault, section it is in); fault 0: all are sound.
    """
    for i in range(len(bases)):
        row = descriptors[i]
        row[:] = 0
        row[tile.TOKENS], row[tile.SINKS], row[tile.HEAD_DIM] = extent
        fault = _prove(words, bases[i], lengths[i], codec, row)
        if fault:
            return fault, i
    return _SOUND, 0

"""One tile section, written by compiled code from the integers of its two sides."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.pack_codes import planes_of, write_bitmaps, write_planes
from packkv_kernels.compress.unpack import holds_values
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import lay_out, side_bits, unit_of

__all__ = ["Side", "new_side", "side_flags", "write_section"]

_K_SIDE, _V_SIDE = tile.K_SIDE, tile.V_SIDE


class Side(NamedTuple):
    """Integers of K or V of one section; memory that is used again for the next.

    Attributes:
        integers: float32 [64, head_dim], before minima are taken off, natural channel order.
        codes: uint8 [64, head_dim], stored channel order; 0 where no inexact token is.
        minima, widest: int32 [head_dim], least integer and largest code of each stored channel.
        widths: uint8 [units], bits of each unit.
        log_scales: uint8 [64], scale codes of rotated V.
        scale, zero: float32 [64], PackKV's.
        steps: int8 [head_dim], hybrid's of K, by stored channel.
    """

    integers: NDArray[np.float32]
    codes: NDArray[np.uint8]
    minima: NDArray[np.int32]
    widest: NDArray[np.int32]
    widths: NDArray[np.uint8]
    log_scales: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.float32]
    steps: NDArray[np.int8]


@compiled
def new_side(head_dim: int, side: int) -> Side:
    """Memory for one side."""
    return Side(
        np.empty((BLOCK_TOKENS, head_dim), np.float32),
        np.empty((BLOCK_TOKENS, head_dim), np.uint8),
        np.empty(head_dim, np.int32),
        np.empty(head_dim, np.int32),
        np.empty(head_dim // unit_of(head_dim, side), np.uint8),
        np.empty(BLOCK_TOKENS, np.uint8),
        np.empty(BLOCK_TOKENS, np.float32),
        np.empty(BLOCK_TOKENS, np.float32),
        np.empty(head_dim, np.int8),
    )


@compiled
def side_flags(which: int, side: Side, fits: bool, has_minima: bool, scales: int) -> int:
    """A side's share of the section's flags.

    Args:
        which: K_SIDE or V_SIDE.
        side: its integers; `widths` and, if it has any, `minima` are read.
        fits: if not, the tile is raw.
        has_minima: whether minima are stored.
        scales: LOG_SCALES, FLOAT_SCALES or CHANNEL_STEPS.
    """
    higher = 1 if which == _V_SIDE else 0
    if not fits:
        return 1 << tile.RAW_SHIFT + higher
    minima = tile.NO_MINIMA
    if has_minima:
        small = side.minima.min() >= -128 and side.minima.max() <= 127
        minima = tile.INT8_MINIMA if small else tile.INT16_MINIMA
    planes = planes_of(side.widths)
    flags = planes >> 2 << tile.PLANES_V * higher
    flags |= (planes & 3) << tile.PLANE_A_SHIFT + 2 * higher
    flags |= minima << tile.MINIMA_SHIFT + 2 * higher
    return flags | scales << tile.SCALES_SHIFT + 2 * higher


@compiled
def write_section(
    words: NDArray[np.uint32],
    flags: int,
    sinks: int,
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    k_side: Side,
    v_side: Side,
) -> int:
    """Writes a section from the start of `words`; returns its length in words.

    Args:
        words: more than the section can need.
        flags: of both sides.
        sinks: leading tokens that are stored exactly.
        keys, values: [tokens, head_dim], natural channel order.
        k_side, v_side: the integers; not read for a raw tile.
    """
    row = np.zeros(tile.DESCRIPTOR_WORDS, np.int32)
    row[tile.FLAGS], row[tile.TOKENS] = flags, len(keys)
    row[tile.SINKS], row[tile.HEAD_DIM] = sinks, keys.shape[1]
    words[0] = flags
    words[1] = len(keys) | sinks << 8
    end = write_bitmaps(words, 2, flags, _K_SIDE, k_side.widths)
    end = write_bitmaps(words, end, flags, _V_SIDE, v_side.widths)
    length = lay_out(words, 0, row)
    words[end:length] = 0
    write_halves(words, row[tile.K_EXACT], keys[:sinks])
    write_halves(words, row[tile.V_EXACT], values[:sinks])
    _write_side(words, row, _K_SIDE, keys, k_side)
    _write_side(words, row, _V_SIDE, values, v_side)
    return length


@compiled
def _write_side(
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    which: int,
    values: NDArray[np.float32],
    side: Side,
) -> None:
    if holds_values(row, which):
        write_halves(words, row[which + tile.PLANE_A], values)
        return
    minima = side_bits(row[tile.FLAGS], which, tile.MINIMA_SHIFT)
    if minima != tile.NO_MINIMA:
        _write_minima(words, row[which + tile.MINIMA], side.minima, minima)
    scales = side_bits(row[tile.FLAGS], which, tile.SCALES_SHIFT)
    start = row[which + tile.SCALES]
    if scales == tile.LOG_SCALES:
        words[start : start + BLOCK_TOKENS // 4] = side.log_scales.view(np.uint32)
    elif scales == tile.FLOAT_SCALES:
        _write_float_scales(words, start, side.scale, side.zero)
    elif scales == tile.CHANNEL_STEPS:
        _write_steps(words, start, side.steps)
    write_planes(words, row, which, side.codes, side.widths)


@compiled
def _write_float_scales(
    words: NDArray[np.uint32], start: int, scale: NDArray[np.float32], zero: NDArray[np.float32]
) -> None:
    """64 float32 scales, then 64 int16 zeros."""
    words[start : start + BLOCK_TOKENS] = scale.view(np.uint32)
    for t in range(BLOCK_TOKENS):
        bits = np.uint32(np.int32(zero[t])) & np.uint32(0xFFFF)
        words[start + BLOCK_TOKENS + t // 2] |= bits << np.uint32(16 * (t % 2))


@compiled
def _write_steps(words: NDArray[np.uint32], start: int, steps: NDArray[np.int8]) -> None:
    """4 bits a channel, over zeros."""
    for c in range(len(steps)):
        words[start + c // 8] |= (np.uint32(steps[c]) & np.uint32(15)) << np.uint32(4 * (c % 8))


@compiled
def _write_minima(
    words: NDArray[np.uint32], start: int, minima: NDArray[np.int32], kind: int
) -> None:
    """Writes int8 or int16 minima from word `start` on, over zeros."""
    width = 8 * kind
    each = 32 // width
    mask = np.uint32((1 << width) - 1)
    for c in range(len(minima)):
        words[start + c // each] |= (np.uint32(minima[c]) & mask) << np.uint32(width * (c % each))


@compiled
def write_halves(words: NDArray[np.uint32], start: int, rows: NDArray[np.float32]) -> None:
    """Writes values [tokens, head_dim] as fp16 from word `start` on."""
    at = start
    for t in range(len(rows)):
        bits = rows[t].view(np.uint32)
        for i in range(0, len(bits), 2):
            words[at] = _narrow(bits[i]) | _narrow(bits[i + 1]) << np.uint32(16)
            at += 1


@compiled
def _narrow(bits: np.uint32) -> np.uint32:
    """A float32 within ±65,504, as bits, to the nearest fp16, ties to even."""
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude < np.uint32(0x38800000):
        # below the least normal fp16: adding 0.5 shifts and rounds to the subnormals' spacing
        value = np.uint32(magnitude).view(np.float32) + np.float32(0.5)
        return sign | (np.float32(value).view(np.uint32) - np.uint32(0x3F000000))
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    rebiased = magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd
    return sign | rebiased >> np.uint32(13)

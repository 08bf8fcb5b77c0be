"""Codes of one tile, from planes to float32, a token to a row.

Planes are read as whole words. The planes of a unit merge into words of eight 4-bit fields, which
go to `fields` [e, lane, column], turned so that the codes of one token lie next to each other; a
token is then one shift and one mask away, the same for a whole row of words. With the names of
docs/codec.md: K has lane = tl and a column per channel pair (its halves are the channels), V has
lane = l4 and a column per channel (its halves are neighbouring tokens); field j is nibble j.
"""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.scales import SCALES, STEPS
from packkv_kernels.compress.unpack_wide import add_wide_units
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import (
    bitmap_of,
    piece_words,
    plane_mode,
    plane_word,
    side_bits,
    unit_of,
)

__all__ = ["unpack_codes"]

_K_SIDE = tile.K_SIDE

# Masks of the low pair, the high pair and the lowest bit of each 4-bit field.
_LOW = np.uint32(0x33333333)
_HIGH = np.uint32(0xCCCCCCCC)
_ONES = np.uint32(0x11111111)
_TWO = np.uint32(2)


@compiled
def unpack_codes(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    side: int,
    levels: int,
    out: NDArray[np.float32],
) -> None:
    """Writes (code + minimum + zero) · scale of one side to out [64, head_dim]."""
    head_dim = descriptor[tile.HEAD_DIM]
    low, step = np.empty(head_dim, np.float32), np.ones(head_dim, np.float32)
    zero = np.empty(BLOCK_TOKENS, np.float32)
    scale = np.empty(BLOCK_TOKENS, np.float32)
    _read_minima(words, base, descriptor, side, low)
    _read_scales(words, base, descriptor, side, levels, zero, scale)
    if side_bits(descriptor[tile.FLAGS], side, tile.SCALES_SHIFT) == tile.CHANNEL_STEPS:
        _read_steps(words, base, descriptor, side, low, step)
    lanes = 8 if side == _K_SIDE else 4
    fields = np.empty((2, lanes, 8 * head_dim // (2 * lanes)), np.uint32)
    _merge_planes(words, base, descriptor, side, fields)
    if plane_mode(descriptor[tile.FLAGS], side, tile.PLANE_H1) == tile.ABSENT:
        _spread(fields, side, low, step, zero, scale, out)
        return
    # codes and minima add up exactly, before the one rounding of the scale
    ones = np.ones(max(head_dim, BLOCK_TOKENS), np.float32)
    _spread(fields, side, low, ones, zero, ones, out)
    add_wide_units(words, base, descriptor, side, out)
    for t in range(BLOCK_TOKENS):
        line = out[t]
        for c in range(head_dim):
            line[c] *= scale[t] * step[c]


@compiled
def _read_minima(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    side: int,
    low: NDArray[np.float32],
) -> None:
    kind = side_bits(descriptor[tile.FLAGS], side, tile.MINIMA_SHIFT)
    if kind == tile.NO_MINIMA:
        low[:] = 0
        return
    width = 8 * kind
    each = 32 // width
    start = base + descriptor[side + tile.MINIMA]
    for c in range(len(low)):
        # the field moves to the top of the word, and comes down with its sign
        word = np.int32(words[start + c // each] << np.uint32(32 - width * (c % each + 1)))
        low[c] = word >> np.int32(32 - width)


@compiled
def _read_scales(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    side: int,
    levels: int,
    zero: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> None:
    kind = side_bits(descriptor[tile.FLAGS], side, tile.SCALES_SHIFT)
    start = base + descriptor[side + tile.SCALES]
    if kind == tile.NO_SCALES or kind == tile.CHANNEL_STEPS:
        zero[:] = 0
        scale[:] = 1
    elif kind == tile.LOG_SCALES:
        # 2, 4, 8, 16 levels have their table at row 1, 2, 3, 4
        table = SCALES[4 if levels == 16 else levels // 4 + 1]
        for t in range(BLOCK_TOKENS):
            code = (words[start + t // 4] >> np.uint32(8 * (t % 4))) & np.uint32(255)
            scale[t] = table[code]
            zero[t] = -np.float32(levels - 1) / 2
    else:
        scale.view(np.uint32)[:] = words[start : start + BLOCK_TOKENS]
        for t in range(BLOCK_TOKENS):
            word = words[start + BLOCK_TOKENS + t // 2]
            zero[t] = np.int32(word << np.uint32(16 - 16 * (t % 2))) >> np.int32(16)


@compiled
def _read_steps(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    side: int,
    low: NDArray[np.float32],
    step: NDArray[np.float32],
) -> None:
    """Reads the steps of all channels; their minima turn from quarter steps to steps."""
    start = base + descriptor[side + tile.SCALES]
    unit_channels = unit_of(len(step), side)
    units = len(step) // unit_channels
    in_b = plane_mode(descriptor[tile.FLAGS], side, tile.PLANE_B)
    bitmap = bitmap_of(descriptor, side, tile.PLANE_B)
    for c in range(len(step)):
        # the four bits move to the top of the word, and come down with their sign
        bits = np.int32(words[start + c // 8] << np.uint32(28 - 4 * (c % 8))) >> np.int32(28)
        step[c] = STEPS[bits + 8]
        unit = c // unit_channels
        if not (plane_word(words, base, in_b, bitmap, units, unit // 32) >> unit % 32) & 1:
            low[c] *= np.float32(0.25)


@compiled
def _merge_planes(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    side: int,
    fields: NDArray[np.uint32],
) -> None:
    """Bits 0-3 of all codes: planes A, C and B, as 4-bit fields [e, lane, column]."""
    flags, head_dim = descriptor[tile.FLAGS], descriptor[tile.HEAD_DIM]
    units = head_dim // unit_of(head_dim, side)
    piece = piece_words(head_dim, side, tile.PLANE_A)
    a = base + descriptor[side + tile.PLANE_A]
    b = base + descriptor[side + tile.PLANE_B]
    c = base + descriptor[side + tile.PLANE_C]
    modes = (
        plane_mode(flags, side, tile.PLANE_A),
        plane_mode(flags, side, tile.PLANE_C),
        plane_mode(flags, side, tile.PLANE_B),
    )
    bitmap_a = bitmap_of(descriptor, side, tile.PLANE_A)
    bitmap_c = bitmap_of(descriptor, side, tile.PLANE_C)
    bitmap_b = bitmap_of(descriptor, side, tile.PLANE_B)
    for unit in range(units):
        word, bit = unit // 32, unit % 32
        has_a = (plane_word(words, base, modes[0], bitmap_a, units, word) >> bit) & 1
        has_c = (plane_word(words, base, modes[1], bitmap_c, units, word) >> bit) & 1
        has_b = (plane_word(words, base, modes[2], bitmap_b, units, word) >> bit) & 1
        if has_a and has_c:
            _merge_three_bits(words[a : a + piece], words[c : c + piece // 2], unit, fields)
        elif has_b:
            _merge_four_bits(words[a : a + piece], words[b : b + piece], unit, fields)
        elif has_a:
            _merge_two_bits(words[a : a + piece], unit, fields)
        elif has_c:
            _merge_one_bit(words[c : c + piece // 2], unit, fields)
        else:
            columns = piece // fields.shape[1]
            fields[:, :, unit * columns : (unit + 1) * columns] = 0
        a += piece if has_a else 0
        b += piece if has_b else 0
        c += piece // 2 if has_c else 0


@compiled
def _merge_one_bit(c: NDArray[np.uint32], unit: int, fields: NDArray[np.uint32]) -> None:
    lanes = fields.shape[1]
    columns = 2 * len(c) // lanes
    for lane in range(lanes):
        for i in range(columns):
            at = 2 * lane + (i >> 1) if columns == 4 else (3 * lane) & (lanes - 1)
            word = c[at] >> np.uint32(2 * (i & 1))
            fields[0, lane, unit * columns + i] = word & _ONES
            fields[1, lane, unit * columns + i] = (word >> np.uint32(1)) & _ONES


@compiled
def _merge_two_bits(a: NDArray[np.uint32], unit: int, fields: NDArray[np.uint32]) -> None:
    lanes = fields.shape[1]
    columns = len(a) // lanes
    for lane in range(lanes):
        for i in range(columns):
            word = a[lane * columns + i]
            fields[0, lane, unit * columns + i] = word & _LOW
            fields[1, lane, unit * columns + i] = (word >> _TWO) & _LOW


@compiled
def _merge_three_bits(
    a: NDArray[np.uint32], c: NDArray[np.uint32], unit: int, fields: NDArray[np.uint32]
) -> None:
    lanes = fields.shape[1]
    columns = len(a) // lanes
    for lane in range(lanes):
        for i in range(columns):
            at = 2 * lane + (i >> 1) if columns == 4 else (3 * lane) & (lanes - 1)
            third = c[at] >> np.uint32(2 * (i & 1))
            word = a[lane * columns + i]
            even = (third & _ONES) << _TWO
            odd = ((third >> np.uint32(1)) & _ONES) << _TWO
            fields[0, lane, unit * columns + i] = (word & _LOW) | even
            fields[1, lane, unit * columns + i] = ((word >> _TWO) & _LOW) | odd


@compiled
def _merge_four_bits(
    a: NDArray[np.uint32], b: NDArray[np.uint32], unit: int, fields: NDArray[np.uint32]
) -> None:
    lanes = fields.shape[1]
    columns = len(a) // lanes
    for lane in range(lanes):
        for i in range(columns):
            word, high = a[lane * columns + i], b[lane * columns + i]
            fields[0, lane, unit * columns + i] = (word & _LOW) | ((high << _TWO) & _HIGH)
            fields[1, lane, unit * columns + i] = ((word >> _TWO) & _LOW) | (high & _HIGH)


@compiled
def _spread(
    fields: NDArray[np.uint32],
    side: int,
    low: NDArray[np.float32],
    step: NDArray[np.float32],
    zero: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """From 4-bit fields to (code + low + zero) · scale; K also · step."""
    for e in range(2):
        for lane in range(fields.shape[1]):
            row = fields[e, lane]
            for j in range(4):
                shift = np.uint32(4 * j)
                if side == _K_SIDE:
                    t = 32 * e + 16 * (j >> 1) + 8 * (j & 1) + lane
                    _spread_channel_pairs(row, shift, low, step, zero[t], scale[t], out[t])
                else:
                    t = 32 * e + 16 * (j >> 1) + 4 * lane + 2 * (j & 1)
                    _spread_channels(row, shift, low, zero[t], scale[t], out[t])
                    shift += np.uint32(16)
                    _spread_channels(row, shift, low, zero[t + 1], scale[t + 1], out[t + 1])


@compiled
def _spread_channels(
    row: NDArray[np.uint32],
    shift: np.uint32,
    low: NDArray[np.float32],
    zero: np.float32,
    scale: np.float32,
    line: NDArray[np.float32],
) -> None:
    for c in range(len(row)):
        code = np.int32((row[c] >> shift) & np.uint32(15))
        line[c] = (np.float32(code) + low[c] + zero) * scale


@compiled
def _spread_channel_pairs(
    row: NDArray[np.uint32],
    shift: np.uint32,
    low: NDArray[np.float32],
    step: NDArray[np.float32],
    zero: np.float32,
    scale: np.float32,
    line: NDArray[np.float32],
) -> None:
    for i in range(len(row)):
        word = row[i] >> shift
        first = np.int32(word & np.uint32(15))
        second = np.int32((word >> np.uint32(16)) & np.uint32(15))
        line[2 * i] = (np.float32(first) + low[2 * i] + zero) * (scale * step[2 * i])
        upper = np.float32(second) + low[2 * i + 1] + zero
        line[2 * i + 1] = upper * (scale * step[2 * i + 1])

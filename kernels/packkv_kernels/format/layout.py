"""Where the parts of a tile section lie: computed in one place, for encoder and validator alike."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled

__all__ = ["bitmap_of", "bitmap_words", "lay_out", "piece_words", "plane_mode", "plane_word"]

_K_SIDE = tile.K_SIDE
_V_SIDE = tile.V_SIDE


@compiled
def unit_of(head_dim: int, side: int) -> int:
    """Channels per unit on the K or V side."""
    return 4 if side == _K_SIDE or head_dim > 64 else 2


@compiled
def piece_words(head_dim: int, side: int, plane: int) -> int:
    """u32 words of one unit's piece: 4 tokens' worth of 2 bits a word, half of that in plane C."""
    words = 4 * unit_of(head_dim, side)
    return words // 2 if plane == tile.PLANE_C else words


@compiled
def side_bits(flags: Any, side: int, shift: int) -> int:
    """The two bits of minima, of scales or of plane A of a side."""
    return int((np.int64(flags) >> (shift + (2 if side == _V_SIDE else 0))) & 3)


@compiled
def plane_mode(flags: Any, side: int, plane: int) -> int:
    """ABSENT, DENSE or SPARSE for PLANE_A … PLANE_H2 of a side."""
    if plane == tile.PLANE_A:
        return side_bits(flags, side, tile.PLANE_A_SHIFT)
    shift = 2 * (plane - tile.PLANE_C) + (tile.PLANES_V if side == _V_SIDE else 0)
    return int((np.int64(flags) >> shift) & 3)


@compiled
def is_raw(flags: Any, side: int) -> bool:
    """Whether a side holds fp16 values instead of codes."""
    return bool((np.int64(flags) >> (tile.RAW_SHIFT + (1 if side == _V_SIDE else 0))) & 1)


@compiled
def bitmap_words(units: int) -> int:
    """Words of one plane's bitmap."""
    return (units + 31) // 32


@compiled
def all_units(units: int, word: int) -> int:
    """The bitmap word of a plane that every unit has."""
    present = min(max(units - 32 * word, 0), 32)
    return (1 << present) - 1


@compiled
def bitmap_of(row: NDArray[np.int32], side: int, plane: int) -> int:
    """Where a plane's bitmap lies, if it is sparse: after those of the sparse planes before it."""
    span = bitmap_words(row[tile.HEAD_DIM] // unit_of(row[tile.HEAD_DIM], side))
    at = row[side + tile.BITMAPS]
    for before in range(tile.PLANE_A, plane):
        if plane_mode(row[tile.FLAGS], side, before) == tile.SPARSE:
            at += span
    return int(at)


@compiled
def plane_word(words: NDArray[np.uint32], base: int, mode: int, at: int, units: int, i: int) -> int:
    """Bitmap word `i` of a plane in any mode; `at` is where its bitmap lies if it is sparse."""
    if mode == tile.ABSENT:
        return 0
    if mode == tile.DENSE:
        return all_units(units, i)
    return int(np.int64(words[base + at + i]))


@compiled
def count_units(words: NDArray[np.uint32], base: int, mode: int, at: int, units: int) -> int:
    """How many units a plane has."""
    total = 0
    for i in range(bitmap_words(units)):
        bits = plane_word(words, base, mode, at, units, i)
        while bits:
            bits &= bits - 1
            total += 1
    return total


@compiled
def _aligned(words: int) -> int:
    return (words + 3) // 4 * 4


@compiled
def scales_words(scales: int, head_dim: int) -> int:
    """Words of the scales of a side, padding included."""
    if scales == tile.CHANNEL_STEPS:
        return _aligned((head_dim + 7) // 8)
    return BLOCK_TOKENS // 4 if scales == tile.LOG_SCALES else BLOCK_TOKENS * 3 // 2


@compiled
def _lay_out_side(
    words: NDArray[np.uint32], base: int, side: int, start: int, row: NDArray[np.int32]
) -> int:
    """Minima, scales and planes (or the values of a raw tile) of one side; returns their end."""
    flags, head_dim = row[tile.FLAGS], row[tile.HEAD_DIM]
    at = start
    if is_raw(flags, side):
        row[side + tile.PLANE_A] = at
        return at + _aligned(row[tile.TOKENS] * head_dim // 2)
    minima = side_bits(flags, side, tile.MINIMA_SHIFT)
    if minima != tile.NO_MINIMA:
        row[side + tile.MINIMA] = at
        at += _aligned(head_dim * minima // 4)
    scales = side_bits(flags, side, tile.SCALES_SHIFT)
    if scales != tile.NO_SCALES:
        row[side + tile.SCALES] = at
        at += scales_words(scales, head_dim)
    units = head_dim // unit_of(head_dim, side)
    bitmap = row[side + tile.BITMAPS]
    for plane in range(tile.PLANE_A, tile.PLANE_H2 + 1):
        mode = plane_mode(flags, side, plane)
        if mode != tile.ABSENT:
            row[side + plane] = at
            pieces = count_units(words, base, mode, bitmap, units)
            at += pieces * piece_words(head_dim, side, plane)
        if mode == tile.SPARSE:
            bitmap += bitmap_words(units)
    return int(at)


@compiled
def lay_out_bitmaps(row: NDArray[np.int32]) -> int:
    """Fills in where the bitmaps of both sides lie; returns the end of the last.

    Args:
        row: int32 [DESCRIPTOR_WORDS] with FLAGS and HEAD_DIM.
    """
    at = 2
    for side in (_K_SIDE, _V_SIDE):
        row[side + tile.BITMAPS] = at
        units = row[tile.HEAD_DIM] // unit_of(row[tile.HEAD_DIM], side)
        for plane in range(tile.PLANE_A, tile.PLANE_H2 + 1):
            if plane_mode(row[tile.FLAGS], side, plane) == tile.SPARSE:
                at += bitmap_words(units)
    return at


@compiled
def lay_out(words: NDArray[np.uint32], base: int, row: NDArray[np.int32]) -> int:
    """Fills in every offset of a descriptor; returns (and stores) the section's length in words.

    Args:
        words: u32 words that hold the section's flags and bitmaps; nothing else is read.
        base: word where the section begins.
        row: int32 [DESCRIPTOR_WORDS], zeros but for FLAGS, TOKENS, SINKS and HEAD_DIM.
    """
    at = _aligned(lay_out_bitmaps(row))
    exact = _aligned(row[tile.SINKS] * row[tile.HEAD_DIM] // 2)
    row[tile.K_EXACT] = at
    row[tile.V_EXACT] = at + exact
    at = _lay_out_side(words, base, _K_SIDE, at + 2 * exact, row)
    at = _lay_out_side(words, base, _V_SIDE, at, row)
    row[tile.WORDS] = at
    return int(at)

"""Bits 4-7 of the few units whose codes are that wide, added to what is unpacked already."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import (
    bitmap_of,
    piece_words,
    plane_mode,
    plane_word,
    unit_of,
)

__all__ = ["add_wide_units"]

_K_SIDE = tile.K_SIDE


@compiled
def add_wide_units(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    side: int,
    out: NDArray[np.float32],
) -> None:
    """Adds planes H1 and H2 of a side to out [64, head_dim], which holds unscaled integers."""
    flags, head_dim = descriptor[tile.FLAGS], descriptor[tile.HEAD_DIM]
    unit_channels = unit_of(head_dim, side)
    units = head_dim // unit_channels
    piece = piece_words(head_dim, side, tile.PLANE_A)
    h1 = base + descriptor[side + tile.PLANE_H1]
    h2 = base + descriptor[side + tile.PLANE_H2]
    in_h1 = plane_mode(flags, side, tile.PLANE_H1)
    in_h2 = plane_mode(flags, side, tile.PLANE_H2)
    bitmap = bitmap_of(descriptor, side, tile.PLANE_H1)
    bitmap_h2 = bitmap_of(descriptor, side, tile.PLANE_H2)
    for unit in range(units):
        bit = unit % 32
        lines = out[:, unit * unit_channels : (unit + 1) * unit_channels]
        if (plane_word(words, base, in_h1, bitmap, units, unit // 32) >> bit) & 1:
            _add_plane(words[h1 : h1 + piece], side, np.float32(16), lines)
            h1 += piece
        if (plane_word(words, base, in_h2, bitmap_h2, units, unit // 32) >> bit) & 1:
            _add_plane(words[h2 : h2 + piece], side, np.float32(64), lines)
            h2 += piece


@compiled
def _add_plane(
    piece: NDArray[np.uint32], side: int, weight: np.float32, lines: NDArray[np.float32]
) -> None:
    """Adds weight · 2-bit fields of one piece to lines [64, channels of the unit]."""
    lanes = 8 if side == _K_SIDE else 4
    columns = len(piece) // lanes
    for at in range(len(piece)):
        lane, i = at // columns, at % columns
        for f in range(8):
            first = 32 * (f & 1) + 16 * (f >> 2)
            k0 = (f >> 1) & 1
            for h in range(2):
                code = np.int32((piece[at] >> np.uint32(16 * h + 2 * f)) & np.uint32(3))
                if side == _K_SIDE:
                    lines[first + 8 * k0 + lane, 2 * i + h] += weight * np.float32(code)
                else:
                    lines[first + 4 * lane + 2 * k0 + h, i] += weight * np.float32(code)

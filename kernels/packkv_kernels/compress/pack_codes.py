"""Codes of one tile to planes, compiled: the inverse of `unpack_codes`, through the same fields."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import bitmap_words, piece_words, plane_mode

__all__ = ["planes_of", "unit_widths", "write_bitmaps", "write_planes"]

_K_SIDE = tile.K_SIDE
_LOW = np.uint32(0x33333333)
_HIGH = np.uint32(0xCCCCCCCC)
_ONES = np.uint32(0x11111111)
_TWO = np.uint32(2)


@compiled
def unit_widths(widest: NDArray[np.int32], widths: NDArray[np.uint8]) -> None:
    """Bits of each unit's codes, from the largest code of each channel."""
    unit = len(widest) // len(widths)
    for u in range(len(widths)):
        code = np.int32(0)
        for i in range(unit):
            code = max(code, widest[u * unit + i])
        if code < 16:
            widths[u] = (code > 0) + (code > 1) + (code > 3) + (code > 7)
        else:
            widths[u] = 6 if code < 64 else 8


@compiled
def _has_plane(width: int, plane: int) -> bool:
    if plane == tile.PLANE_A:
        return width >= 2
    if plane == tile.PLANE_C:
        return width == 1 or width == 3
    # B from 4 bits on, H1 from 6, H2 from 8
    return width >= 4 + 2 * (plane - tile.PLANE_B)


@compiled
def planes_of(widths: NDArray[np.uint8]) -> int:
    """The modes of one side's planes: 2 bits for each of A, C, B, H1, H2, A lowest."""
    field = 0
    for plane in range(tile.PLANE_A, tile.PLANE_H2 + 1):
        count = 0
        for u in range(len(widths)):
            count += _has_plane(widths[u], plane)
        if count:
            mode = tile.DENSE if count == len(widths) else tile.SPARSE
            field |= mode << 2 * (plane - tile.PLANE_A)
    return field


@compiled
def write_bitmaps(
    words: NDArray[np.uint32], at: int, flags: int, side: int, widths: NDArray[np.uint8]
) -> int:
    """Writes the bitmaps of one side's sparse planes from word `at` on; returns their end."""
    for plane in range(tile.PLANE_A, tile.PLANE_H2 + 1):
        if plane_mode(flags, side, plane) == tile.SPARSE:
            span = bitmap_words(len(widths))
            words[at : at + span] = 0
            for u in range(len(widths)):
                if _has_plane(widths[u], plane):
                    words[at + u // 32] |= np.uint32(1) << np.uint32(u % 32)
            at += span
    return at


@compiled
def write_planes(
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    side: int,
    codes: NDArray[np.uint8],
    widths: NDArray[np.uint8],
) -> None:
    """Writes the planes of codes [64, head_dim]; `widths` holds every code."""
    head_dim = codes.shape[1]
    lanes = 8 if side == _K_SIDE else 4
    fields = np.empty((2, lanes, 8 * head_dim // (2 * lanes)), np.uint32)
    _gather(codes, side, 0, fields)
    _write_low_planes(words, row, side, fields, widths)
    if widths.max() > 4:
        _gather(codes, side, 4, fields)
        _write_wide_planes(words, row, side, fields, widths)


@compiled
def _gather(codes: NDArray[np.uint8], side: int, low: int, fields: NDArray[np.uint32]) -> None:
    """Bits low … low+3 of all codes as 4-bit fields [e, lane, column]; see `unpack_codes`."""
    for e in range(2):
        for lane in range(fields.shape[1]):
            target = fields[e, lane]
            target[:] = 0
            for j in range(4):
                shift = np.uint32(4 * j)
                if side == _K_SIDE:
                    source = codes[32 * e + 16 * (j >> 1) + 8 * (j & 1) + lane]
                    for i in range(len(target)):
                        first = np.uint32((source[2 * i] >> low) & 15)
                        second = np.uint32((source[2 * i + 1] >> low) & 15)
                        target[i] |= (first | second << np.uint32(16)) << shift
                else:
                    t = 32 * e + 16 * (j >> 1) + 4 * lane + 2 * (j & 1)
                    source, after = codes[t], codes[t + 1]
                    for i in range(len(target)):
                        first = np.uint32((source[i] >> low) & 15)
                        second = np.uint32((after[i] >> low) & 15)
                        target[i] |= (first | second << np.uint32(16)) << shift


@compiled
def _write_low_planes(
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    side: int,
    fields: NDArray[np.uint32],
    widths: NDArray[np.uint8],
) -> None:
    """Planes A, C and B."""
    piece = piece_words(row[tile.HEAD_DIM], side, tile.PLANE_A)
    a, b = row[side + tile.PLANE_A], row[side + tile.PLANE_B]
    c = row[side + tile.PLANE_C]
    for u in range(len(widths)):
        if widths[u] > 1:
            _write_pairs(words[a : a + piece], u, fields, False)
            a += piece
        if widths[u] == 1 or widths[u] == 3:
            _write_singles(words[c : c + piece // 2], u, fields, np.uint32(widths[u] - 1))
            c += piece // 2
        elif widths[u] > 3:
            _write_pairs(words[b : b + piece], u, fields, True)
            b += piece


@compiled
def _write_wide_planes(
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    side: int,
    fields: NDArray[np.uint32],
    widths: NDArray[np.uint8],
) -> None:
    """Planes H1 and H2, from fields of bits 4-7."""
    piece = piece_words(row[tile.HEAD_DIM], side, tile.PLANE_A)
    h1, h2 = row[side + tile.PLANE_H1], row[side + tile.PLANE_H2]
    for u in range(len(widths)):
        if widths[u] >= 6:
            _write_pairs(words[h1 : h1 + piece], u, fields, False)
            h1 += piece
        if widths[u] == 8:
            _write_pairs(words[h2 : h2 + piece], u, fields, True)
            h2 += piece


@compiled
def _write_pairs(
    piece: NDArray[np.uint32], unit: int, fields: NDArray[np.uint32], upper: bool
) -> None:
    """One unit's piece of a 2-bit plane: the lower or the upper pair of each field."""
    lanes = fields.shape[1]
    columns = len(piece) // lanes
    for lane in range(lanes):
        for i in range(columns):
            even = fields[0, lane, unit * columns + i]
            odd = fields[1, lane, unit * columns + i]
            if upper:
                piece[lane * columns + i] = ((even & _HIGH) >> _TWO) | (odd & _HIGH)
            else:
                piece[lane * columns + i] = (even & _LOW) | ((odd & _LOW) << _TWO)


@compiled
def _write_singles(
    piece: NDArray[np.uint32], unit: int, fields: NDArray[np.uint32], bit: np.uint32
) -> None:
    """One unit's piece of plane C, that bit of each field, over zeros: two columns share a word."""
    lanes = fields.shape[1]
    columns = 2 * len(piece) // lanes
    for lane in range(lanes):
        for i in range(columns):
            even = (fields[0, lane, unit * columns + i] >> bit) & _ONES
            odd = (fields[1, lane, unit * columns + i] >> bit) & _ONES
            at = 2 * lane + (i >> 1) if columns == 4 else (3 * lane) & (lanes - 1)
            piece[at] |= (even | odd << np.uint32(1)) << np.uint32(2 * (i & 1))

"""The heads of cold sections, compiled: what says where the parts of a section lie, in few bits.

A head is, bit after bit: whether its flags are those of the section before; if not, its flags;
whether K and V are coded; of each coded side with token scales of four bytes, whether they are
those of the section before; and of each side with sparse planes the widths of its units.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.pack_codes import write_bitmaps
from packkv_kernels.entropy.bits import peek, put
from packkv_kernels.entropy.channels import (
    WIDTHS,
    has_sparse_planes,
    read_widths,
    width_number,
    width_of,
)
from packkv_kernels.entropy.cold_side import SIDES, has_float_scales
from packkv_kernels.entropy.tables import SYMBOL_MASK, TABLE_BITS, WIDTH_ROWS
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import is_raw, unit_of

__all__ = ["HEAD_ROOM", "HEAD_WORDS", "count_widths", "read_head", "read_parts", "write_heads"]

_MAX_UNITS: Final = 128

# What a section may begin with: flags, tokens and sinks, and five bitmaps on each side.
HEAD_WORDS: Final = 2 + 2 * 5 * _MAX_UNITS // 32

# What a head may take: its flags, and a codeword for each unit.
HEAD_ROOM: Final = 2 + 2 * _MAX_UNITS * TABLE_BITS // 32

# The width "before" the first unit: the widest units come first.
_BEFORE_ALL: Final = WIDTHS - 1


@compiled
def _tells_widths(row: NDArray[np.int32], side: int) -> bool:
    """Whether a head has the widths of a side."""
    return not is_raw(row[tile.FLAGS], side) and has_sparse_planes(row, side)


@compiled
def _units(row: NDArray[np.int32], side: int) -> int:
    return int(row[tile.HEAD_DIM] // unit_of(row[tile.HEAD_DIM], side))


@compiled
def count_widths(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    counts: NDArray[np.int64],
) -> None:
    """Counts the widths that a head will have, among the symbols of the side."""
    if not _tells_widths(row, side):
        return
    widths = np.empty(_units(row, side), np.uint8)
    read_widths(words, base, row, side, widths)
    before = _BEFORE_ALL
    for width in widths:
        number = width_number(int(width))
        counts[WIDTH_ROWS + before, number] += 1
        before = number


@compiled
def write_heads(
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    coded: NDArray[np.bool_],
    shared: NDArray[np.bool_],
    k_tables: NDArray[np.uint32],
    v_tables: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> int:
    """Writes the heads of all sections over zeros; returns their bits.

    Args:
        words, bases, descriptors: proven sections.
        coded: [sections, 2], whether a side is coded.
        shared: [sections, 2], whether its scales are those of the section before.
        k_tables, v_tables: codeword | length << 16 of all symbols.
        out: HEAD_ROOM words for each section.
    """
    at = 0
    flags = 0
    for i in range(len(bases)):
        row = descriptors[i]
        at = put(out, at, row[tile.FLAGS] == flags, 1)
        if row[tile.FLAGS] != flags:
            flags = int(np.int64(row[tile.FLAGS]))
            at = put(out, at, flags, 32)
        for s in range(2):
            at = put(out, at, coded[i, s], 1)
        for s in range(2):
            if coded[i, s] and has_float_scales(row, SIDES[s]):
                at = put(out, at, shared[i, s], 1)
        for s in range(2):
            tables = k_tables if s == 0 else v_tables
            at = _put_widths(words, bases[i], row, SIDES[s], tables, out, at)
    return at


@compiled
def _put_widths(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    tables: NDArray[np.uint32],
    out: NDArray[np.uint32],
    at: int,
) -> int:
    if not _tells_widths(row, side):
        return at
    widths = np.empty(_units(row, side), np.uint8)
    read_widths(words, base, row, side, widths)
    before = _BEFORE_ALL
    for width in widths:
        number = width_number(int(width))
        codeword = int(np.int64(tables[WIDTH_ROWS + before, number]))
        at = put(out, at, codeword & 0xFFFF, codeword >> 16)
        before = number
    return at


@compiled
def read_parts(
    cold: NDArray[np.uint32], at: int, row: NDArray[np.int32], parts: NDArray[np.int64]
) -> int:
    """Reads a head but for its widths; returns the next bit.

    Args:
        cold: words, and SLACK_WORDS more.
        at: first bit.
        row: FLAGS are those of the section before, overwritten.
        parts: int64 [4], overwritten: K is coded, V is; K shares its scales, V does.
    """
    bits = peek(cold, at)
    at += 1
    if not bits & np.uint64(1):
        row[tile.FLAGS] = np.int32(np.uint32((bits >> np.uint64(1)) & np.uint64(0xFFFFFFFF)))
        at += 32
    bits = peek(cold, at)
    parts[0], parts[1] = bits & np.uint64(1), (bits >> np.uint64(1)) & np.uint64(1)
    at += 2
    for s in range(2):
        parts[2 + s] = 0
        if parts[s] and has_float_scales(row, SIDES[s]):
            parts[2 + s] = peek(cold, at) & np.uint64(1)
            at += 1
    return at


@compiled
def read_head(
    cold: NDArray[np.uint32],
    at: int,
    row: NDArray[np.int32],
    k_tables: NDArray[np.uint16],
    v_tables: NDArray[np.uint16],
    head: NDArray[np.uint32],
) -> int:
    """Writes the head that a section begins with: flags, tokens and sinks, bitmaps.

    Args:
        cold: words, and SLACK_WORDS more.
        at: first bit of the widths.
        row: with FLAGS, TOKENS, SINKS and HEAD_DIM.
        k_tables, v_tables: decode tables.
        head: [HEAD_WORDS], overwritten as far as it goes.

    Returns:
        The next bit. What the head says is not proven.
    """
    head[0] = np.uint32(row[tile.FLAGS])
    head[1] = np.uint32(row[tile.TOKENS] | row[tile.SINKS] << 8)
    widths = np.empty(_MAX_UNITS, np.uint8)
    end = 2
    for s in range(2):
        if not _tells_widths(row, SIDES[s]):
            continue
        tables = k_tables if s == 0 else v_tables
        before = _BEFORE_ALL
        units = _units(row, SIDES[s])
        for unit in range(units):
            found = int(np.int64(tables[WIDTH_ROWS + before, _next_bits(cold, at)]))
            before = found & SYMBOL_MASK
            at += found >> 12
            widths[unit] = width_of(before)
        end = write_bitmaps(head, end, int(row[tile.FLAGS]), SIDES[s], widths[:units])
    return at


@compiled
def _next_bits(cold: NDArray[np.uint32], at: int) -> int:
    return int(np.int64(peek(cold, at))) & ((1 << TABLE_BITS) - 1)

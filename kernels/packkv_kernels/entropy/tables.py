"""The code tables of one side of a cold payload: counted, built, written in a few hundred bytes.

A table is a row of symbols. All tables of a side lie in one array [ROWS, MAX_SYMBOLS] of counts,
lengths or codewords, and where a row begins says what it is for. Nothing but the lengths travels:
each table is a canonical code, given by its lengths of 1 to 8 bits.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.canonical import codewords, decode_table, is_complete, limit_lengths
from packkv_kernels.entropy.channels import CLASSES, SMALL, WIDTHS, class_count
from packkv_kernels.entropy.places import LEVELS, MAX_PLACES, NEXT_PLACE, PLACES, top_of
from packkv_kernels.errors import PayloadError
from packkv_kernels.format.compiled import compiled

__all__ = [
    "CLASS_ROWS",
    "MAX_SYMBOLS",
    "MINIMUM_ROWS",
    "PLACE_SHIFT",
    "ROWS",
    "SCALE_ROW",
    "STEP_ROWS",
    "SYMBOL_MASK",
    "TABLE_BITS",
    "WIDTH_ROWS",
    "build_tables",
    "code_row",
    "decode_tables",
    "encode_tables",
    "new_counts",
    "read_tables",
    "tables_bytes",
]

# Longest codeword, and so the index of a decode table: all of a side's tables stay in the cache.
TABLE_BITS: Final = 8

# Rows: codes by level and place, then by a unit's width (or the width of the unit before).
CLASS_ROWS: Final = LEVELS * MAX_PLACES
WIDTH_ROWS: Final = CLASS_ROWS + WIDTHS
MINIMUM_ROWS: Final = WIDTH_ROWS + WIDTHS
STEP_ROWS: Final = MINIMUM_ROWS + WIDTHS
SCALE_ROW: Final = STEP_ROWS + WIDTHS
ROWS: Final = SCALE_ROW + 1
MAX_SYMBOLS: Final = CLASSES

# An entry of a decode table: symbol | place after it << 6 | length << 12.
PLACE_SHIFT: Final = 6
SYMBOL_MASK: Final = (1 << PLACE_SHIFT) - 1


@compiled
def code_row(level: int, place: int) -> int:
    """The row of a level's codes at a place."""
    return level * MAX_PLACES + place


def _sizes(side: int) -> NDArray[np.int64]:
    """How many symbols each row has, [ROWS]; 0 for what is not there or mirrors another row."""
    sizes = np.zeros(ROWS, np.int64)
    for level in (1, *range(3, LEVELS)):
        start = code_row(level, 0)
        sizes[start : start + PLACES[side] // 2 + 1] = top_of(level) + 1
    for number in range(WIDTHS):
        # a unit of width 0 has one class only
        sizes[CLASS_ROWS + number] = class_count(number) if number else 0
    sizes[WIDTH_ROWS : WIDTH_ROWS + WIDTHS] = WIDTHS
    sizes[MINIMUM_ROWS : MINIMUM_ROWS + WIDTHS] = SMALL
    sizes[STEP_ROWS : STEP_ROWS + WIDTHS] = 16
    sizes[SCALE_ROW] = SMALL
    return sizes


_SIZES: Final = (_sizes(0), _sizes(1))


def new_counts() -> NDArray[np.int64]:
    """Zeros."""
    return np.zeros((ROWS, MAX_SYMBOLS), np.int64)


def build_tables(counts: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """Lengths [ROWS, MAX_SYMBOLS] from counts of K (side 0) or V (1); unused rows are zeros.

    Every symbol of a used row gets a codeword. The tables of a level are mirror images, as codes
    are: P(symbol at place p) = P(top − symbol at place P − 1 − p).
    """
    lengths = np.zeros((ROWS, MAX_SYMBOLS), np.uint8)
    _build(counts, _SIZES[side], PLACES[side], lengths)
    return lengths


@compiled
def _build(
    counts: NDArray[np.int64], sizes: NDArray[np.int64], places: int, lengths: NDArray[np.uint8]
) -> None:
    for row in range(ROWS):
        size = sizes[row]
        if size == 0:
            continue
        found = counts[row, :size].copy()
        if row < CLASS_ROWS and row % MAX_PLACES != places // 2:
            found += counts[_mirror_row(row, places), :size][::-1]
        if found.any():
            limit_lengths(found + 1, TABLE_BITS, lengths[row, :size])
    _mirror(sizes, places, lengths)


@compiled
def _mirror_row(row: int, places: int) -> int:
    return row - row % MAX_PLACES + places - 1 - row % MAX_PLACES


@compiled
def _mirror(sizes: NDArray[np.int64], places: int, lengths: NDArray[np.uint8]) -> None:
    """Fills in the tables that are mirror images."""
    for row in range(CLASS_ROWS):
        size = sizes[row]
        if size and row % MAX_PLACES != places // 2:
            lengths[_mirror_row(row, places), :size] = lengths[row, :size][::-1]


@compiled
def encode_tables(lengths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """codeword | length << 16 of each symbol, the codeword's first bit lowest."""
    codes = np.zeros((ROWS, MAX_SYMBOLS), np.uint32)
    found = np.empty(MAX_SYMBOLS, np.uint16)
    for row in range(ROWS):
        if lengths[row, 0]:
            codewords(lengths[row], found)
            for symbol in range(MAX_SYMBOLS):
                length = np.uint32(lengths[row, symbol])
                codes[row, symbol] = np.uint32(found[symbol]) | length << np.uint32(16)
    return codes


@compiled
def decode_tables(lengths: NDArray[np.uint8], side: int) -> NDArray[np.uint16]:
    """[ROWS, next 8 bits] to symbol | place after it << 6 | length << 12.

    The row of level 0 takes no bits and gives 0, and so do rows without a code.
    """
    tables = np.zeros((ROWS, 1 << TABLE_BITS), np.uint16)
    symbols = np.arange(MAX_SYMBOLS).astype(np.uint16)
    values = np.empty(MAX_SYMBOLS, np.uint16)
    for row in range(ROWS):
        if lengths[row, 0] == 0:
            continue
        values[:] = symbols
        if row < CLASS_ROWS:
            after = NEXT_PLACE[side, row // MAX_PLACES, row % MAX_PLACES]
            for symbol in range(len(after)):
                values[symbol] |= np.uint16(after[symbol]) << np.uint16(PLACE_SHIFT)
        decode_table(lengths[row], TABLE_BITS, values, tables[row])
    return tables


def tables_bytes(lengths: NDArray[np.uint8], side: int) -> bytes:
    """A bit for each row that may travel, then 4 bits for each length; zeros to 4 bytes each."""
    rows = np.flatnonzero(_SIZES[side])
    used = lengths[rows, 0] > 0
    travels = np.arange(MAX_SYMBOLS) < _SIZES[side][rows[used], None]
    nibbles = lengths[rows[used]][travels]
    nibbles = np.pad(nibbles, (0, -len(nibbles) % 8))
    bits = np.packbits(np.pad(used, (0, -len(used) % 32)), bitorder="little")
    return bytes(bits) + bytes(nibbles[::2] | nibbles[1::2] << 4)


def read_tables(data: memoryview, side: int) -> tuple[NDArray[np.uint8], int]:
    """Reads what `tables_bytes` wrote from the start of `data`; also how many bytes it took.

    Raises:
        PayloadError: reason "section"; not what it wrote, or a code that is not complete.
    """
    sizes = _SIZES[side]
    rows = np.flatnonzero(sizes)
    start = -(-len(rows) // 32) * 4
    bits = np.unpackbits(np.frombuffer(data[:start], np.uint8), bitorder="little")
    if len(data) < start or bits[len(rows) :].any():
        raise PayloadError("section", "which code tables there are is cut off or unknown")
    rows = rows[np.flatnonzero(bits[: len(rows)])]
    count = int(sizes[rows].sum())
    end = start + -(-count // 8) * 4
    packed = np.frombuffer(data[start:end], np.uint8)
    if len(packed) != end - start:
        raise PayloadError("section", "code tables are cut off")
    nibbles = np.stack([packed & 15, packed >> 4], 1).reshape(-1)
    if nibbles[count:].any():
        raise PayloadError("section", "padding of the code tables is not 0")
    lengths = np.zeros((ROWS, MAX_SYMBOLS), np.uint8)
    if not _fill(nibbles, rows, sizes, lengths):
        raise PayloadError("section", "a code table is not a complete code")
    _mirror(sizes, PLACES[side], lengths)
    return lengths, end


@compiled
def _fill(
    nibbles: NDArray[np.uint8],
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    lengths: NDArray[np.uint8],
) -> bool:
    """Spreads lengths over their rows; False if one of them is no complete code."""
    at = 0
    for row in rows:
        found = nibbles[at : at + sizes[row]]
        if not found.all() or not is_complete(found, TABLE_BITS):
            return False
        lengths[row, : len(found)] = found
        at += len(found)
    return True

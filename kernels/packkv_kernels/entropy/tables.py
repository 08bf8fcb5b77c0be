"""The code tables of one side of a cold payload: counted, built, written in a few hundred bytes.

Nothing else is needed to read them: each is a canonical code, given by its lengths of 1 to 8 bits.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.canonical import codewords, decode_table, is_complete, limit_lengths
from packkv_kernels.entropy.channels import CLASSES, LEVELS, SMALL, WIDTHS, class_count
from packkv_kernels.errors import PayloadError
from packkv_kernels.format.compiled import compiled

__all__ = [
    "TABLE_BITS",
    "DecodeTables",
    "SideTables",
    "build_tables",
    "decode_tables",
    "encode_tables",
    "new_tables",
    "read_tables",
    "tables_bytes",
]

# Longest codeword, and so the index of a decode table: all of a side's tables stay in the cache.
TABLE_BITS: Final = 8


class SideTables(NamedTuple):
    """Counts, lengths or codewords of all symbols of K or V.

    Attributes:
        codes: [level, code before, code].
        classes: [number of the unit's width, class].
        minima, scales: [small integer], the last the escape.
    """

    codes: NDArray[np.int64]
    classes: NDArray[np.int64]
    minima: NDArray[np.int64]
    scales: NDArray[np.int64]


class DecodeTables(NamedTuple):
    """The next 8 bits of a stream to symbol | length << 12, for each table of a side."""

    codes: NDArray[np.uint16]
    classes: NDArray[np.uint16]
    minima: NDArray[np.uint16]
    scales: NDArray[np.uint16]


def new_tables() -> SideTables:
    """Zeros."""
    return SideTables(
        np.zeros((LEVELS, LEVELS, LEVELS), np.int64),
        np.zeros((WIDTHS, CLASSES), np.int64),
        np.zeros(SMALL, np.int64),
        np.zeros(SMALL, np.int64),
    )


@compiled
def build_tables(counts: SideTables, lengths: SideTables) -> None:
    """Lengths from counts; tables that were never used stay zeros.

    Every symbol of a used table gets a codeword, so that any section can be coded with it. The
    tables of a level are mirror images, as codes are: P(c after b) = P(m − c after m − b).
    """
    for level in range(1, LEVELS):
        if not counts.codes[level].any():
            continue
        n = level + 1
        for before in range(level // 2 + 1):
            mirrored = counts.codes[level, level - before, :n][::-1]
            both = counts.codes[level, before, :n] + mirrored
            _fit(both, lengths.codes[level, before, :n])
            _mirror(lengths, level, before)
    for width in range(WIDTHS):
        if counts.classes[width].any():
            n = class_count(width)
            _fit(counts.classes[width, :n], lengths.classes[width, :n])
    if counts.minima.any():
        _fit(counts.minima, lengths.minima)
    if counts.scales.any():
        _fit(counts.scales, lengths.scales)


@compiled
def _fit(counts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
    found = np.empty(len(counts), np.uint8)
    limit_lengths(counts + 1, TABLE_BITS, found)
    lengths[:] = found


@compiled
def _mirror(lengths: SideTables, level: int, before: int) -> None:
    """Fills in the table that is the mirror image; the one in the middle is nobody's."""
    if 2 * before != level:
        n = level + 1
        lengths.codes[level, level - before, :n] = lengths.codes[level, before, :n][::-1]


def encode_tables(lengths: SideTables) -> SideTables:
    """codeword | length << 16 of each symbol, the codeword's first bit lowest."""
    codes = new_tables()
    for of, target in zip(lengths, codes, strict=True):
        rows = of.reshape(-1, of.shape[-1])
        _encode_rows(rows, target.reshape(rows.shape))
    return codes


@compiled
def _encode_rows(lengths: NDArray[np.int64], codes: NDArray[np.int64]) -> None:
    found = np.empty(lengths.shape[1], np.uint16)
    for row in range(len(lengths)):
        if lengths[row].any():
            codewords(lengths[row].astype(np.uint8), found)
            codes[row] = found | lengths[row] << 16


def decode_tables(lengths: SideTables) -> DecodeTables:
    """Decode tables; index [..., next 8 bits]. Level 0 takes no bits and gives 0."""
    size = 1 << TABLE_BITS
    tables = DecodeTables(
        np.zeros((LEVELS, LEVELS, size), np.uint16),
        np.zeros((WIDTHS, size), np.uint16),
        np.zeros(size, np.uint16),
        np.zeros(size, np.uint16),
    )
    _fill_tables(lengths, tables)
    return tables


@compiled
def _fill_tables(lengths: SideTables, tables: DecodeTables) -> None:
    for level in range(1, LEVELS):
        if lengths.codes[level, 0, 0]:
            for before in range(level + 1):
                row = lengths.codes[level, before, : level + 1].astype(np.uint8)
                decode_table(row, TABLE_BITS, tables.codes[level, before])
    for width in range(WIDTHS):
        if lengths.classes[width, 0]:
            row = lengths.classes[width].astype(np.uint8)
            decode_table(row, TABLE_BITS, tables.classes[width])
    decode_table(lengths.minima.astype(np.uint8), TABLE_BITS, tables.minima)
    decode_table(lengths.scales.astype(np.uint8), TABLE_BITS, tables.scales)


def _parts(lengths: SideTables, used: int) -> list[NDArray[np.int64]]:
    """The tables that travel, in order, as views; `used` has a bit for each group of them."""
    parts = [
        lengths.codes[level, before, : level + 1]
        for level in range(1, LEVELS)
        if used >> level & 1
        for before in range(level // 2 + 1)
    ]
    for width in range(WIDTHS):
        if used >> LEVELS + width & 1:
            parts.append(lengths.classes[width, : class_count(width)])
    for bit, small in enumerate((lengths.minima, lengths.scales), LEVELS + WIDTHS):
        if used >> bit & 1:
            parts.append(small)
    return parts


def tables_bytes(lengths: SideTables) -> bytes:
    """u32 of which tables there are, then 4 bits for each of their lengths; zeros to 4 bytes."""
    flags = [False, *(lengths.codes[level, 0, 0] > 0 for level in range(1, LEVELS))]
    flags += [lengths.classes[width, 0] > 0 for width in range(WIDTHS)]
    flags += [lengths.minima[0] > 0, lengths.scales[0] > 0]
    used = sum(1 << bit for bit, flag in enumerate(flags) if flag)
    nibbles = np.concatenate([np.empty(0, np.int64), *_parts(lengths, used)])
    nibbles = np.pad(nibbles, (0, -len(nibbles) % 8)).astype(np.uint8)
    packed = nibbles[::2] | nibbles[1::2] << 4
    return used.to_bytes(4, "little") + bytes(packed)


def read_tables(data: memoryview) -> tuple[SideTables, int]:
    """Reads what `tables_bytes` wrote from the start of `data`; also how many bytes it took.

    Raises:
        PayloadError: reason "section"; not what it wrote, or a code that is not complete.
    """
    used = int.from_bytes(data[:4], "little")
    if len(data) < 4 or used & 1 or used >> LEVELS + WIDTHS + 2:
        raise PayloadError("section", f"code tables {used:#x} are unknown")
    lengths = new_tables()
    parts = _parts(lengths, used)
    count = sum(map(len, parts))
    end = 4 + -(-count // 8) * 4
    packed = np.frombuffer(data[4:end], np.uint8)
    if len(packed) != end - 4:
        raise PayloadError("section", "code tables are cut off")
    nibbles = np.stack([packed & 15, packed >> 4], 1).reshape(-1)
    if nibbles[count:].any():
        raise PayloadError("section", "padding of the code tables is not 0")
    at = 0
    for part in parts:
        row = nibbles[at : at + len(part)]
        if not row.all() or not is_complete(row, TABLE_BITS):
            raise PayloadError("section", "a code table is not a complete code")
        part[:] = row
        at += len(part)
    for level in range(1, LEVELS):
        for before in range(level // 2 + 1):
            _mirror(lengths, level, before)
    return lengths, end

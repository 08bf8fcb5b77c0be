"""One side of a section to its cold words, compiled: its symbols are counted, then written."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.bits import put
from packkv_kernels.entropy.channels import (
    ESCAPE,
    class_of,
    fold,
    level_of,
    low_bits,
    read_widths,
)
from packkv_kernels.entropy.cold_side import (
    FLOAT_SCALE_WORDS,
    LANES,
    mean_scale,
    predicted_minimum,
    read_minima,
    read_scales,
    side_words,
    width_number,
)
from packkv_kernels.entropy.tables import SideTables
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import side_bits, unit_of

__all__ = ["code_side", "count_side"]


@compiled
def count_side(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    codes: NDArray[np.uint8],
    counts: SideTables,
) -> None:
    """Counts all symbols of a side; arguments like `code_side`."""
    first, last, head_dim = row[tile.SINKS], row[tile.TOKENS], row[tile.HEAD_DIM]
    minima, scales = np.empty(head_dim, np.int32), np.empty(BLOCK_TOKENS, np.int32)
    has_minima = read_minima(words, base, row, side, minima)
    if read_scales(words, base, row, side, scales):
        mean = mean_scale(scales[first:last])
        for t in range(first, last):
            counts.scales[min(fold(scales[t] - mean), ESCAPE)] += 1
    unit = unit_of(head_dim, side)
    widths = np.empty(head_dim // unit, np.uint8)
    read_widths(words, base, row, side, widths)
    for c in range(head_dim):
        line = codes[c, first:last]
        channel = class_of(_largest(line))
        counts.classes[width_number(widths[c // unit]), channel] += 1
        if has_minima:
            difference = minima[c] - predicted_minimum(channel)
            counts.minima[min(fold(difference), ESCAPE)] += 1
        low, level = low_bits(channel), level_of(channel)
        table = counts.codes[level]
        before = level // 2
        for t in range(len(line)):
            symbol = int(np.int64(line[t])) >> low
            table[before, symbol] += 1
            before = symbol


@compiled
def _largest(codes: NDArray[np.uint8]) -> int:
    """The largest of the codes; 0 without any."""
    largest = np.uint8(0)
    for t in range(len(codes)):
        largest = max(largest, codes[t])
    return int(largest)


@compiled
def code_side(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    codes: NDArray[np.uint8],
    tables: SideTables,
    out: NDArray[np.uint32],
) -> int:
    """Writes a side's cold words; returns how many, 0 if they would be no fewer than it has.

    Args:
        words, base, row: a proven section.
        side: K_SIDE or V_SIDE.
        codes: [head_dim, 64], of the side.
        tables: codeword | length << 16 of all symbols of the side.
        out: overwritten, from its start; as long as the side and MARGIN_WORDS.
    """
    out[:] = 0
    begin = LANES // 2
    if side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT) == tile.FLOAT_SCALES:
        start, begin = base + row[side + tile.SCALES], begin + FLOAT_SCALE_WORDS
        out[LANES // 2 : begin] = words[start : start + FLOAT_SCALE_WORDS]
    at = _put_scales(words, base, row, side, tables, out, 32 * begin)
    if at < 0:
        return 0
    minima = np.empty(row[tile.HEAD_DIM], np.int32)
    has_minima = read_minima(words, base, row, side, minima)
    unit = unit_of(row[tile.HEAD_DIM], side)
    widths = np.empty(row[tile.HEAD_DIM] // unit, np.uint8)
    read_widths(words, base, row, side, widths)
    limit = side_words(row, side)
    lane_start = 32 * begin
    for lane in range(LANES):
        for c in range(lane, row[tile.HEAD_DIM], LANES):
            width = width_number(widths[c // unit])
            line = codes[c, row[tile.SINKS] : row[tile.TOKENS]]
            at = _put_channel(line, width, has_minima, minima[c], tables, out, at)
            if at > 32 * limit:
                return 0
        if at - lane_start > 0xFFFF:
            return 0
        put(out, 16 * lane, at - lane_start, 16)
        lane_start = at
    used = (at + 31) // 32
    return used if used < limit else 0


@compiled
def _put_small(
    out: NDArray[np.uint32],
    at: int,
    difference: int,
    value: int,
    bits: int,
    table: NDArray[np.int64],
) -> int:
    """A small integer as its difference from what was expected, or as it is after the escape."""
    symbol = min(fold(difference), ESCAPE)
    at = _put_symbol(out, at, table[symbol])
    if symbol == ESCAPE:
        at = put(out, at, value & ((1 << bits) - 1), bits)
    return at


@compiled
def _put_scales(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    tables: SideTables,
    out: NDArray[np.uint32],
    at: int,
) -> int:
    """Scales of one byte, if the side has any: their mean, then each; −1 if they cannot be told."""
    scales = np.empty(BLOCK_TOKENS, np.int32)
    if not read_scales(words, base, row, side, scales):
        return at
    first, last = row[tile.SINKS], row[tile.TOKENS]
    if scales[:first].any() or scales[last:].any():
        return -1
    mean = mean_scale(scales[first:last])
    at = put(out, at, mean, 8)
    for t in range(first, last):
        at = _put_small(out, at, scales[t] - mean, scales[t], 8, tables.scales)
    return at


@compiled
def _put_symbol(out: NDArray[np.uint32], at: int, codeword: int) -> int:
    return put(out, at, codeword & 0xFFFF, codeword >> 16)


@compiled
def _put_channel(
    codes: NDArray[np.uint8],
    width: int,
    has_minima: bool,
    minimum: int,
    tables: SideTables,
    out: NDArray[np.uint32],
    at: int,
) -> int:
    """Class, minimum and codes [tokens] of one channel; returns the next bit."""
    channel = class_of(_largest(codes))
    at = _put_symbol(out, at, tables.classes[width, channel])
    if has_minima:
        difference = minimum - predicted_minimum(channel)
        at = _put_small(out, at, difference, minimum, 16, tables.minima)
    low, level = low_bits(channel), level_of(channel)
    table, mask = tables.codes[level], (1 << low) - 1
    before = level // 2
    # bits gather in `gathered` and leave by the word
    word, filled = at >> 5, at & 31
    gathered = np.uint64(out[word])
    for t in range(len(codes)):
        code = int(np.int64(codes[t]))
        codeword = int(table[before, code >> low])
        length = codeword >> 16
        bits = (codeword & 0xFFFF) | (code & mask) << length
        gathered |= np.uint64(bits) << np.uint64(filled)
        filled += length + low
        if filled >= 32:
            out[word] = np.uint32(gathered & np.uint64(0xFFFFFFFF))
            gathered >>= np.uint64(32)
            word += 1
            filled -= 32
        before = code >> low
    out[word] = np.uint32(gathered & np.uint64(0xFFFFFFFF))
    return 32 * word + filled

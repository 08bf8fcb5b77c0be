"""Cold words back to one side of a section, compiled; any words decode to something in bounds."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.pack_codes import write_planes
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.bits import peek, put
from packkv_kernels.entropy.channels import ESCAPE, level_of, low_bits, read_widths, unfold
from packkv_kernels.entropy.cold_side import (
    FLOAT_SCALE_WORDS,
    LANES,
    predicted_minimum,
    width_number,
)
from packkv_kernels.entropy.tables import TABLE_BITS, DecodeTables
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import side_bits, unit_of

__all__ = ["SLACK_WORDS", "coded_words", "decode_side"]

# A channel has at most 64 codes of 8 + 4 bits, its class and its minimum; it is read before the
# end of its lane is looked at, and may start in the last word.
SLACK_WORDS: Final = 4 * (64 * 12 // 32 + 4)

_INDEX: Final = np.uint64((1 << TABLE_BITS) - 1)
_SYMBOL: Final = 0xFFF


@compiled
def _lanes_start(at: int, row: NDArray[np.int32], side: int) -> int:
    """Where the lanes of a coded side begin: after their lengths and scales of four bytes."""
    scales = side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT)
    return at + 2 + (FLOAT_SCALE_WORDS if scales == tile.FLOAT_SCALES else 0)


@compiled
def _lane_bits(cold: NDArray[np.uint32], at: int, lane: int) -> int:
    return int(np.int64(cold[at + lane // 2] >> np.uint32(16 * (lane % 2))) & 0xFFFF)


@compiled
def coded_words(cold: NDArray[np.uint32], at: int, row: NDArray[np.int32], side: int) -> int:
    """How many words a coded side takes by what it says itself."""
    bits = 0
    for lane in range(LANES):
        bits += _lane_bits(cold, at, lane)
    return _lanes_start(at, row, side) - at + (bits + 31) // 32


@compiled
def decode_side(
    cold: NDArray[np.uint32],
    start: int,
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    side: int,
    tables: DecodeTables,
) -> bool:
    """Decodes one side into its section; False if the lanes are not filled to the bit.

    Args:
        cold: cold words, with SLACK_WORDS more at their end.
        start: where the side begins in `cold`; its lanes lie inside.
        words: the section, zeros but for its head.
        row: its descriptor, of a proven head.
        side: K_SIDE or V_SIDE.
        tables: of the side.
    """
    begin = _lanes_start(start, row, side)
    scales = side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT)
    if scales == tile.FLOAT_SCALES:
        words[row[side + tile.SCALES] :][:FLOAT_SCALE_WORDS] = cold[start + 2 : begin]
    at, ends = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    bit = 32 * begin
    for lane in range(LANES):
        at[lane] = bit
        bit += _lane_bits(cold, start, lane)
        ends[lane] = bit
    if bit & 31 and cold[bit >> 5] >> np.uint32(bit & 31):
        return False  # what fills the last word is not 0
    if scales == tile.LOG_SCALES:
        at[0] = _read_scales(cold, at[0], words, row, side, tables.scales)
    codes = np.zeros((BLOCK_TOKENS, row[tile.HEAD_DIM]), np.uint8)
    widths = np.empty(row[tile.HEAD_DIM] // unit_of(row[tile.HEAD_DIM], side), np.uint8)
    read_widths(words, 0, row, side, widths)
    if not _read_channels(cold, at, ends, words, row, side, widths, tables, codes):
        return False
    write_planes(words, row, side, codes, widths)
    return True


@compiled
def _read_small(cold: NDArray[np.uint32], at: int, table: NDArray[np.uint16]) -> tuple[int, int]:
    """Symbol of a small integer, and the next bit; what follows an escape is the caller's."""
    found = int(np.int64(table[peek(cold, at) & _INDEX]))
    return found & _SYMBOL, at + (found >> 12)


@compiled
def _read_scales(
    cold: NDArray[np.uint32],
    at: int,
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    side: int,
    table: NDArray[np.uint16],
) -> int:
    start = row[side + tile.SCALES]
    mean = int(np.int64(peek(cold, at) & np.uint64(255)))
    at += 8
    for t in range(row[tile.SINKS], row[tile.TOKENS]):
        symbol, at = _read_small(cold, at, table)
        scale = mean + unfold(symbol)
        if symbol == ESCAPE:
            scale = int(np.int64(peek(cold, at) & np.uint64(255)))
            at += 8
        words[start + t // 4] |= np.uint32((scale & 255) << 8 * (t % 4))
    return at


@compiled
def _read_channels(
    cold: NDArray[np.uint32],
    at: NDArray[np.int64],
    ends: NDArray[np.int64],
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    side: int,
    widths: NDArray[np.uint8],
    tables: DecodeTables,
    codes: NDArray[np.uint8],
) -> bool:
    """Minima and codes of all channels, a channel from each lane at a time."""
    head_dim = row[tile.HEAD_DIM]
    unit = unit_of(head_dim, side)
    classes = np.empty(LANES, np.int64)
    flat = tables.codes.reshape(-1)
    for c in range(0, head_dim, LANES):
        if (at > ends).any():
            return False
        cut = 0
        for lane in range(LANES):
            width = width_number(widths[(c + lane) // unit])
            symbol, at[lane] = _read_small(cold, at[lane], tables.classes[width])
            classes[lane] = symbol
            cut |= low_bits(symbol)
            at[lane] = _read_minimum(
                cold, at[lane], words, row, side, c + lane, symbol, tables.minima
            )
        target = codes[row[tile.SINKS] : row[tile.TOKENS], c : c + LANES]
        if cut:
            for lane in range(LANES):
                at[lane] = _read_wide(cold, at[lane], flat, classes[lane], target[:, lane])
        else:
            _read_narrow(cold, at, flat, classes, target)
    return bool((at == ends).all())


@compiled
def _read_minimum(
    cold: NDArray[np.uint32],
    at: int,
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    side: int,
    c: int,
    channel_class: int,
    table: NDArray[np.uint16],
) -> int:
    """Minimum of channel `c` into its section, if the side has any; returns the next bit."""
    width = 8 * side_bits(row[tile.FLAGS], side, tile.MINIMA_SHIFT)
    if width == 0:
        return at
    symbol, at = _read_small(cold, at, table)
    minimum = predicted_minimum(channel_class) + unfold(symbol)
    if symbol == ESCAPE:
        minimum = int(np.int64(peek(cold, at) & np.uint64(0xFFFF)))
        at += 16
    put(words, 32 * row[side + tile.MINIMA] + width * c, minimum & ((1 << width) - 1), width)
    return at


@compiled
def _read_narrow(
    cold: NDArray[np.uint32],
    at: NDArray[np.int64],
    flat: NDArray[np.uint16],
    levels: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Codes [tokens, 4] of four channels whose classes are their levels."""
    a0, a1, a2, a3 = at
    l0, l1, l2, l3 = levels << (4 + TABLE_BITS)
    b0, b1, b2, b3 = levels // 2
    tokens = len(out)
    for first in range(0, tokens, 4):
        # four codewords of 8 bits are never more than what is peeked
        w0, w1, w2, w3 = peek(cold, a0), peek(cold, a1), peek(cold, a2), peek(cold, a3)
        for t in range(first, min(first + 4, tokens)):
            f0 = np.int64(flat[l0 + (b0 << TABLE_BITS) + np.int64(w0 & _INDEX)])
            f1 = np.int64(flat[l1 + (b1 << TABLE_BITS) + np.int64(w1 & _INDEX)])
            f2 = np.int64(flat[l2 + (b2 << TABLE_BITS) + np.int64(w2 & _INDEX)])
            f3 = np.int64(flat[l3 + (b3 << TABLE_BITS) + np.int64(w3 & _INDEX)])
            b0, b1, b2, b3 = f0 & _SYMBOL, f1 & _SYMBOL, f2 & _SYMBOL, f3 & _SYMBOL
            f0, f1, f2, f3 = f0 >> 12, f1 >> 12, f2 >> 12, f3 >> 12
            w0, w1 = w0 >> np.uint64(f0), w1 >> np.uint64(f1)
            w2, w3 = w2 >> np.uint64(f2), w3 >> np.uint64(f3)
            a0, a1, a2, a3 = a0 + f0, a1 + f1, a2 + f2, a3 + f3
            line = out[t]
            line[0], line[1], line[2], line[3] = b0, b1, b2, b3
    at[0], at[1], at[2], at[3] = a0, a1, a2, a3


@compiled
def _read_wide(
    cold: NDArray[np.uint32],
    at: int,
    flat: NDArray[np.uint16],
    channel_class: int,
    out: NDArray[np.uint8],
) -> int:
    """Codes [tokens] of one channel, each with its low bits behind its codeword."""
    low, level = low_bits(channel_class), level_of(channel_class)
    table = level << (4 + TABLE_BITS)
    before = level // 2
    mask = np.uint64((1 << low) - 1)
    for t in range(len(out)):
        bits = peek(cold, at)
        found = int(np.int64(flat[table + (before << TABLE_BITS) + np.int64(bits & _INDEX)]))
        before, length = found & _SYMBOL, found >> 12
        out[t] = before << low | int(np.int64((bits >> np.uint64(length)) & mask))
        at += length + low
    return at

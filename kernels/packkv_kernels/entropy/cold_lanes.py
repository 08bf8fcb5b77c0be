"""Lanes of a cold section back to its sides, compiled; any bits decode to something in bounds."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.pack_codes import write_planes
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.bits import peek, put
from packkv_kernels.entropy.channels import (
    level_of,
    low_bits,
    plain_bits,
    read_widths,
    unfold_symbol,
    width_number,
)
from packkv_kernels.entropy.cold_side import LANES, SIDES, predicted_minimum
from packkv_kernels.entropy.places import LEVELS, MAX_PLACES, PLACES, bits_of, group_of
from packkv_kernels.entropy.tables import (
    CLASS_ROWS,
    MINIMUM_ROWS,
    PLACE_SHIFT,
    SCALE_ROW,
    STEP_ROWS,
    SYMBOL_MASK,
    TABLE_BITS,
)
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import side_bits, unit_of

__all__ = ["SLACK_WORDS", "decode_side"]

# What is read before the end of a lane is looked at, which may be begun in the last word: token
# scales, and a channel of 64 codes of 8 + 4 bits, its class, minimum and step.
SLACK_WORDS: Final = 128

_INDEX: Final = np.uint64((1 << TABLE_BITS) - 1)
_PLACE_MASK: Final = 31


@compiled
def decode_side(
    cold: NDArray[np.uint32],
    at: NDArray[np.int64],
    ends: NDArray[np.int64],
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    s: int,
    tables: NDArray[np.uint16],
) -> bool:
    """Decodes one side into its section; False if a lane ends before it.

    Args:
        cold: words, and SLACK_WORDS more.
        at: [LANES], next bit of each lane, moved on.
        ends: [LANES], of each lane.
        words: the section, zeros but for its head and, if it has any, scales of four bytes.
        row: its descriptor, of a proven head.
        s: 0 for K, 1 for V.
        tables: of the side.
    """
    side = SIDES[s]
    if side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT) == tile.LOG_SCALES:
        at[0] = _read_scales(cold, at[0], words, row, side, tables[SCALE_ROW])
    # symbols of several codes may reach beyond the last token
    codes = np.zeros((BLOCK_TOKENS + 3, row[tile.HEAD_DIM]), np.uint8)
    widths = np.empty(row[tile.HEAD_DIM] // unit_of(row[tile.HEAD_DIM], side), np.uint8)
    read_widths(words, 0, row, side, widths)
    if not _read_channels(cold, at, ends, words, row, s, widths, tables, codes):
        return False
    codes[row[tile.TOKENS] :] = 0
    write_planes(words, row, side, codes[:BLOCK_TOKENS], widths)
    return True


@compiled
def _read_symbol(cold: NDArray[np.uint32], at: int, table: NDArray[np.uint16]) -> tuple[int, int]:
    """A symbol and the next bit."""
    found = int(np.int64(table[peek(cold, at) & _INDEX]))
    return found & SYMBOL_MASK, at + (found >> 12)


@compiled
def _read_small(cold: NDArray[np.uint32], at: int, table: NDArray[np.uint16]) -> tuple[int, int]:
    """A small integer and the next bit."""
    symbol, at = _read_symbol(cold, at, table)
    count = plain_bits(symbol)
    low = int(np.int64(peek(cold, at))) & ((1 << count) - 1)
    return unfold_symbol(symbol, low), at + count


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
        difference, at = _read_small(cold, at, table)
        words[start + t // 4] |= np.uint32(((mean + difference) & 255) << 8 * (t % 4))
    return at


@compiled
def _read_channels(
    cold: NDArray[np.uint32],
    at: NDArray[np.int64],
    ends: NDArray[np.int64],
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    s: int,
    widths: NDArray[np.uint8],
    tables: NDArray[np.uint16],
    codes: NDArray[np.uint8],
) -> bool:
    """Minima, steps and codes of all channels, a channel from each lane at a time."""
    head_dim = row[tile.HEAD_DIM]
    unit = unit_of(head_dim, SIDES[s])
    classes, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    first, count = row[tile.SINKS], row[tile.TOKENS] - row[tile.SINKS]
    lines, flat = codes.view(np.uint32), tables.reshape(-1)
    for c in range(0, head_dim, LANES):
        if (at > ends).any():
            return False
        for lane in range(LANES):
            width = int(widths[(c + lane) // unit])
            symbol = 0
            if width:
                class_table = tables[CLASS_ROWS + width_number(width)]
                symbol, at[lane] = _read_symbol(cold, at[lane], class_table)
            classes[lane] = symbol
            at[lane] = _read_side_numbers(
                cold, at[lane], words, row, SIDES[s], c + lane, width, symbol, tables
            )
        if _are_alike(classes):
            _read_four(cold, at, flat, s, classes, count, lines[first:, c // LANES])
            continue
        places[:] = PLACES[s] // 2
        for token in range(0, count, LANES):
            row_codes = codes[first + token :, c : c + LANES]
            left = min(count - token, LANES)
            _read_mixed(cold, at, flat, classes, places, left, row_codes)
    return bool((at <= ends).all())


@compiled
def _are_alike(classes: NDArray[np.int64]) -> bool:
    """Whether classes have as many codes to a symbol, and no low bits."""
    alike = True
    for channel_class in classes:
        alike &= channel_class < LEVELS and group_of(channel_class) == group_of(classes[0])
    return alike


@compiled
def _read_side_numbers(
    cold: NDArray[np.uint32],
    at: int,
    words: NDArray[np.uint32],
    row: NDArray[np.int32],
    side: int,
    c: int,
    width: int,
    channel_class: int,
    tables: NDArray[np.uint16],
) -> int:
    """Step and minimum of channel `c` into its section, if the side has them; the next bit."""
    flags, number = row[tile.FLAGS], width_number(width)
    has_steps = side_bits(flags, side, tile.SCALES_SHIFT) == tile.CHANNEL_STEPS
    bits = 8 * side_bits(flags, side, tile.MINIMA_SHIFT)
    if has_steps:
        step, at = _read_symbol(cold, at, tables[STEP_ROWS + number])
        put(words, 32 * row[side + tile.SCALES] + 4 * c, (step - 8) & 15, 4)
    if bits:
        surprise, at = _read_small(cold, at, tables[MINIMUM_ROWS + number])
        minimum = predicted_minimum(width, channel_class, has_steps) + surprise
        put(words, 32 * row[side + tile.MINIMA] + bits * c, minimum & ((1 << bits) - 1), bits)
    return at


@compiled
def _read_four(
    cold: NDArray[np.uint32],
    at: NDArray[np.int64],
    flat: NDArray[np.uint16],
    s: int,
    levels: NDArray[np.int64],
    count: int,
    out: NDArray[np.uint32],
) -> None:
    """`count` codes of four channels whose classes are their levels, with as many to a symbol.

    Args:
        cold, at: as for `decode_side`.
        flat: the side's decode tables, one after the other.
        s: 0 for K, 1 for V.
        levels: [LANES].
        count: codes of a channel.
        out: [≥ count + 3], the codes of a token in a word; up to three more are overwritten.
    """
    a0, a1, a2, a3 = at
    l0, l1, l2, l3 = (levels * MAX_PLACES) << TABLE_BITS
    p0 = p1 = p2 = p3 = np.int64((PLACES[s] // 2) << TABLE_BITS)
    group, bits = group_of(levels[0]), bits_of(levels[0])
    mask = np.uint32(0x01010101 * ((1 << bits) - 1))
    for first in range(0, count, 4 * group):
        # four codewords of 8 bits are never more than what is peeked
        w0, w1, w2, w3 = peek(cold, a0), peek(cold, a1), peek(cold, a2), peek(cold, a3)
        for t in range(first, min(first + 4 * group, count), group):
            f0 = np.int64(flat[l0 + p0 + np.int64(w0 & _INDEX)])
            f1 = np.int64(flat[l1 + p1 + np.int64(w1 & _INDEX)])
            f2 = np.int64(flat[l2 + p2 + np.int64(w2 & _INDEX)])
            f3 = np.int64(flat[l3 + p3 + np.int64(w3 & _INDEX)])
            line = np.uint32(f0 & 15 | (f1 & 15) << 8 | (f2 & 15) << 16 | (f3 & 15) << 24)
            for i in range(group):
                out[t + i] = (line >> np.uint32(i * bits)) & mask
            p0, p1, p2, p3 = _place(f0), _place(f1), _place(f2), _place(f3)
            f0, f1, f2, f3 = f0 >> 12, f1 >> 12, f2 >> 12, f3 >> 12
            w0, w1 = w0 >> np.uint64(f0), w1 >> np.uint64(f1)
            w2, w3 = w2 >> np.uint64(f2), w3 >> np.uint64(f3)
            a0, a1, a2, a3 = a0 + f0, a1 + f1, a2 + f2, a3 + f3
    at[0], at[1], at[2], at[3] = a0, a1, a2, a3


@compiled
def _place(found: np.int64) -> np.int64:
    """The place of a table entry, as what it adds to the index of an entry."""
    return ((found >> PLACE_SHIFT) & _PLACE_MASK) << TABLE_BITS


@compiled
def _read_mixed(
    cold: NDArray[np.uint32],
    at: NDArray[np.int64],
    flat: NDArray[np.uint16],
    classes: NDArray[np.int64],
    places: NDArray[np.int64],
    count: int,
    out: NDArray[np.uint8],
) -> None:
    """The next `count` ≤ 4 codes of four channels of any class, each with its low bits behind it.

    Args:
        cold, at, flat: as for `_read_four`.
        classes: [LANES].
        places: [LANES], of the channels, moved on.
        count: codes of a channel.
        out: [≥ count + 3, LANES].
    """
    for lane in range(LANES):
        low, level = low_bits(classes[lane]), level_of(classes[lane])
        group, bits = group_of(level), bits_of(level)
        bit, place, start = at[lane], places[lane] << TABLE_BITS, level * MAX_PLACES << TABLE_BITS
        for t in range(0, count, group):
            word = peek(cold, bit)
            found = np.int64(flat[start + place + np.int64(word & _INDEX)])
            symbol, length = int(found & 15), int(found >> 12)
            place = _place(found)
            plain = int(np.int64(word >> np.uint64(length))) & ((1 << low) - 1)
            for i in range(group):
                out[t + i, lane] = ((symbol >> (i * bits)) & ((1 << bits) - 1)) << low | plain
            bit += length + low
        at[lane], places[lane] = bit, place >> TABLE_BITS

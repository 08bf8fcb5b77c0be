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

# The fields of an entry of a decode table of codes, and how far a place is from what it adds to
# the index of an entry.
_SYMBOL: Final = np.uint64(15)
_PLACE_MASK: Final = np.uint64(31 << PLACE_SHIFT)
_PLACE_TO_INDEX: Final = np.uint64(TABLE_BITS - PLACE_SHIFT)
_LENGTH_SHIFT: Final = np.uint64(12)


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
    side, flat = SIDES[s], tables.reshape(-1)
    if side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT) == tile.LOG_SCALES:
        at[0] = _read_scales(cold, at[0], words, row, side, flat)
    # symbols of several codes may reach beyond the last token
    codes = np.zeros((BLOCK_TOKENS + 3, row[tile.HEAD_DIM]), np.uint8)
    widths = np.empty(row[tile.HEAD_DIM] // unit_of(row[tile.HEAD_DIM], side), np.uint8)
    read_widths(words, 0, row, side, widths)
    if not _read_channels(cold, at, ends, words, row, s, widths, flat, codes):
        return False
    codes[row[tile.TOKENS] :] = 0
    write_planes(words, row, side, codes[:BLOCK_TOKENS], widths)
    return True


@compiled
def _read_symbol(
    cold: NDArray[np.uint32], at: int, flat: NDArray[np.uint16], table: int
) -> tuple[int, int]:
    """A symbol by the table of that row, and the next bit."""
    found = int(np.int64(flat[np.uint64(table << TABLE_BITS) + (peek(cold, at) & _INDEX)]))
    return found & SYMBOL_MASK, at + (found >> 12)


@compiled
def _read_small(
    cold: NDArray[np.uint32], at: int, flat: NDArray[np.uint16], table: int
) -> tuple[int, int]:
    """A small integer by the table of that row, and the next bit."""
    symbol, at = _read_symbol(cold, at, flat, table)
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
    flat: NDArray[np.uint16],
) -> int:
    start = row[side + tile.SCALES]
    mean = int(np.int64(peek(cold, at) & np.uint64(255)))
    at += 8
    for t in range(row[tile.SINKS], row[tile.TOKENS]):
        difference, at = _read_small(cold, at, flat, SCALE_ROW)
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
    flat: NDArray[np.uint16],
    codes: NDArray[np.uint8],
) -> bool:
    """Minima, steps and codes of all channels, a channel from each lane at a time."""
    head_dim = row[tile.HEAD_DIM]
    unit_shift = unit_of(head_dim, SIDES[s]) // 2
    classes, places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    first, count = row[tile.SINKS], row[tile.TOKENS] - row[tile.SINKS]
    lines = codes.view(np.uint32)
    for c in range(0, head_dim, LANES):
        if not _are_within(at, ends):
            return False
        for lane in range(LANES):
            width = int(widths[(c + lane) >> unit_shift])
            symbol = 0
            if width:
                class_table = CLASS_ROWS + width_number(width)
                symbol, at[lane] = _read_symbol(cold, at[lane], flat, class_table)
            classes[lane] = symbol
            at[lane] = _read_side_numbers(
                cold, at[lane], words, row, SIDES[s], c + lane, width, symbol, flat
            )
        if _are_alike(classes):
            _read_four(cold, at, flat, s, classes, count, lines[first:, c // LANES])
            continue
        places[:] = PLACES[s] // 2
        for token in range(0, count, LANES):
            left = min(count - token, LANES)
            _read_mixed(cold, at, flat, classes, places, left, codes, first + token, c)
    return _are_within(at, ends)


@compiled
def _are_within(at: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Whether no lane has been read beyond its end."""
    within = True
    for lane in range(LANES):
        within &= at[lane] <= ends[lane]
    return within


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
    flat: NDArray[np.uint16],
) -> int:
    """Step and minimum of channel `c` into its section, if the side has them; the next bit."""
    flags, number = row[tile.FLAGS], width_number(width)
    has_steps = side_bits(flags, side, tile.SCALES_SHIFT) == tile.CHANNEL_STEPS
    bits = 8 * side_bits(flags, side, tile.MINIMA_SHIFT)
    if has_steps:
        step, at = _read_symbol(cold, at, flat, STEP_ROWS + number)
        put(words, 32 * row[side + tile.SCALES] + 4 * c, (step - 8) & 15, 4)
    if bits:
        surprise, at = _read_small(cold, at, flat, MINIMUM_ROWS + number)
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
    # all unsigned: what may be negative is looked at before every access
    a0, a1, a2, a3 = np.uint64(at[0]), np.uint64(at[1]), np.uint64(at[2]), np.uint64(at[3])
    l0, l1 = _level_start(levels[0]), _level_start(levels[1])
    l2, l3 = _level_start(levels[2]), _level_start(levels[3])
    p0 = p1 = p2 = p3 = np.uint64((PLACES[s] // 2) << TABLE_BITS)
    group, bits = np.uint64(group_of(levels[0])), np.uint32(bits_of(levels[0]))
    mask = np.uint32(0x01010101 * ((1 << bits_of(levels[0])) - 1))
    t, end = np.uint64(0), np.uint64(count)
    while t < end:
        # four codewords of 8 bits are never more than what is peeked
        w0, w1, w2, w3 = peek(cold, a0), peek(cold, a1), peek(cold, a2), peek(cold, a3)
        stop = min(t + np.uint64(4) * group, end)
        while t < stop:
            f0 = np.uint64(flat[l0 + p0 + (w0 & _INDEX)])
            f1 = np.uint64(flat[l1 + p1 + (w1 & _INDEX)])
            f2 = np.uint64(flat[l2 + p2 + (w2 & _INDEX)])
            f3 = np.uint64(flat[l3 + p3 + (w3 & _INDEX)])
            line = np.uint32(f0 & _SYMBOL) | np.uint32(f1 & _SYMBOL) << np.uint32(8)
            line |= np.uint32(f2 & _SYMBOL) << np.uint32(16)
            line |= np.uint32(f3 & _SYMBOL) << np.uint32(24)
            p0, p1, p2, p3 = _place(f0), _place(f1), _place(f2), _place(f3)
            f0, f1 = f0 >> _LENGTH_SHIFT, f1 >> _LENGTH_SHIFT
            f2, f3 = f2 >> _LENGTH_SHIFT, f3 >> _LENGTH_SHIFT
            w0, w1, w2, w3 = w0 >> f0, w1 >> f1, w2 >> f2, w3 >> f3
            a0, a1, a2, a3 = a0 + f0, a1 + f1, a2 + f2, a3 + f3
            after = t + group
            while t < after:
                out[t] = line & mask
                line >>= bits
                t += np.uint64(1)
    at[0], at[1], at[2], at[3] = a0, a1, a2, a3


@compiled
def _level_start(level: int) -> np.uint64:
    """First entry of a level's decode tables."""
    return np.uint64(level * MAX_PLACES << TABLE_BITS)


@compiled
def _place(found: np.uint64) -> np.uint64:
    """The place of a table entry, as what it adds to the index of an entry."""
    return (found & _PLACE_MASK) << _PLACE_TO_INDEX


@compiled
def _read_mixed(
    cold: NDArray[np.uint32],
    at: NDArray[np.int64],
    flat: NDArray[np.uint16],
    classes: NDArray[np.int64],
    places: NDArray[np.int64],
    count: int,
    codes: NDArray[np.uint8],
    first: int,
    c: int,
) -> None:
    """The next `count` ≤ 4 codes of four channels of any class, each with its low bits behind it.

    Args:
        cold, at, flat: as for `_read_four`.
        classes: [LANES].
        places: [LANES], of the channels, moved on.
        count: codes of a channel.
        codes: [≥ first + count + 3, head_dim], overwritten from token `first` and channel `c` on.
    """
    for lane in range(LANES):
        low, level = np.uint64(low_bits(classes[lane])), level_of(classes[lane])
        bits = np.uint64(bits_of(level))
        plain_mask = (np.uint64(1) << low) - np.uint64(1)
        mask = (np.uint64(1) << bits) - np.uint64(1)
        bit, start = np.uint64(at[lane]), _level_start(level)
        place = np.uint64(places[lane] << TABLE_BITS)
        for t in range(0, count, group_of(level)):
            word = peek(cold, bit)
            found = np.uint64(flat[start + place + (word & _INDEX)])
            symbol, length = found & _SYMBOL, found >> _LENGTH_SHIFT
            place = _place(found)
            plain = (word >> length) & plain_mask
            for i in range(group_of(level)):
                codes[first + t + i, c + lane] = (symbol & mask) << low | plain
                symbol >>= bits
            bit += length + low
        at[lane], places[lane] = bit, place >> np.uint64(TABLE_BITS)

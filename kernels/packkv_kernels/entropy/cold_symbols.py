"""One side of a section to symbols, compiled: they are counted, then written."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.bits import Cursor, bit_of, push
from packkv_kernels.entropy.channels import (
    class_of,
    fold,
    level_of,
    low_bits,
    plain_bits,
    small_symbol,
    width_number,
)
from packkv_kernels.entropy.cold_side import (
    LANES,
    SIDES,
    Channels,
    mean_scale,
    predicted_minimum,
    read_channels,
    read_scales,
)
from packkv_kernels.entropy.places import NEXT_PLACE, PLACES, group_of, symbol_count
from packkv_kernels.entropy.tables import (
    CLASS_ROWS,
    MAX_SYMBOLS,
    MINIMUM_ROWS,
    SCALE_ROW,
    STEP_ROWS,
    code_row,
)
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled

__all__ = ["code_lane", "code_scales", "count_side"]


@compiled
def count_side(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    s: int,
    codes: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    marks: NDArray[np.uint32],
    counts: NDArray[np.int64],
) -> None:
    """Finds and counts all symbols of a side.

    Args:
        words, base, row: a proven section.
        s: 0 for K, 1 for V.
        codes: [head_dim, ≥ inexact tokens + 3], of the inexact tokens, then zeros.
        classes: [head_dim], overwritten.
        marks: [head_dim, 64], overwritten: for each symbol of a channel's codes, where it is in
            the tables | low bits of the code << 16.
        counts: of the side's tables, counted on.
    """
    first, last = row[tile.SINKS], row[tile.TOKENS]
    scales = np.empty(BLOCK_TOKENS, np.int32)
    if read_scales(words, base, row, SIDES[s], scales):
        mean = mean_scale(scales[first:last])
        for t in range(first, last):
            counts[SCALE_ROW, small_symbol(fold(scales[t] - mean))] += 1
    channels = read_channels(words, base, row, SIDES[s])
    for c in range(len(codes)):
        width = int(channels.widths[c])
        number, channel_class = width_number(width), class_of(_largest(codes[c]))
        classes[c] = channel_class
        if width:
            counts[CLASS_ROWS + number, channel_class] += 1
        if len(channels.minima):
            folded = fold(_surprise(channels, c, channel_class))
            counts[MINIMUM_ROWS + number, small_symbol(folded)] += 1
        if len(channels.steps):
            counts[STEP_ROWS + number, channels.steps[c] + 8] += 1
        count = symbol_count(level_of(channel_class), last - first)
        _gather(codes[c], channel_class, count, marks[c])
    for c in range(0, len(codes), LANES):
        _mark_four(s, classes[c:], last - first, marks[c : c + LANES], counts.reshape(-1))


@compiled
def _surprise(channels: Channels, c: int, channel_class: int) -> int:
    """How far a channel's minimum is from where it is looked for."""
    has_steps = len(channels.steps) > 0
    return int(channels.minima[c]) - predicted_minimum(
        int(channels.widths[c]), channel_class, has_steps
    )


@compiled
def _largest(codes: NDArray[np.uint8]) -> int:
    """The largest of the codes; 0 without any."""
    largest = np.uint8(0)
    for t in range(len(codes)):
        largest = max(largest, codes[t])
    return int(largest)


@compiled
def _gather(
    codes: NDArray[np.uint8], channel_class: int, count: int, marks: NDArray[np.uint32]
) -> None:
    """The first `count` symbols of the codes of a channel, each | low bits of its code << 16."""
    low, group = np.uint32(low_bits(channel_class)), group_of(level_of(channel_class))
    mask = (np.uint32(1) << low) - np.uint32(1)
    if group == 1:
        for k in range(count):
            code = np.uint32(codes[k])
            marks[k] = code >> low | (code & mask) << np.uint32(16)
    elif group == 2:
        for k in range(count):
            marks[k] = codes[2 * k] | codes[2 * k + 1] << 2
    else:
        for k in range(count):
            t = 4 * k
            marks[k] = codes[t] | codes[t + 1] << 1 | codes[t + 2] << 2 | codes[t + 3] << 3


@compiled
def _mark_four(
    s: int,
    classes: NDArray[np.uint8],
    tokens: int,
    marks: NDArray[np.uint32],
    flat: NDArray[np.int64],
) -> None:
    """From the symbols of four channels to where they are in the tables, where they are counted.

    The four go side by side, because each place waits for the one before it.
    """
    l0, l1 = level_of(int(classes[0])), level_of(int(classes[1]))
    l2, l3 = level_of(int(classes[2])), level_of(int(classes[3]))
    p0 = p1 = p2 = p3 = PLACES[s] // 2
    after = NEXT_PLACE[s]
    least = max(max(group_of(l0), group_of(l1)), max(group_of(l2), group_of(l3)))
    together = (tokens + least - 1) // least
    for k in range(together):
        p0 = _mark(after, l0, p0, marks[0], k, flat)
        p1 = _mark(after, l1, p1, marks[1], k, flat)
        p2 = _mark(after, l2, p2, marks[2], k, flat)
        p3 = _mark(after, l3, p3, marks[3], k, flat)
    levels, places = (l0, l1, l2, l3), (p0, p1, p2, p3)
    for lane in range(LANES):
        place = places[lane]
        for k in range(together, symbol_count(levels[lane], tokens)):
            place = _mark(after, levels[lane], place, marks[lane], k, flat)


@compiled
def _mark(
    after: NDArray[np.uint8],
    level: int,
    place: int,
    marks: NDArray[np.uint32],
    k: int,
    flat: NDArray[np.int64],
) -> int:
    """Places and counts one symbol; returns the place after it."""
    symbol = int(np.int64(marks[k])) & 15
    start = code_row(level, place) * MAX_SYMBOLS
    marks[k] += np.uint32(start)
    flat[start + symbol] += 1
    return int(np.int64(after[level, place, symbol]))


@compiled
def _push_small(
    out: NDArray[np.uint32], cursor: Cursor, value: int, flat: NDArray[np.uint32], row: int
) -> Cursor:
    """A small integer as its symbol, and its lower bits."""
    folded = fold(value)
    symbol = small_symbol(folded)
    codeword = int(np.int64(flat[row * MAX_SYMBOLS + symbol]))
    count = plain_bits(symbol)
    length = codeword >> 16
    bits = (codeword & 0xFFFF) | (folded & ((1 << count) - 1)) << length
    return push(out, cursor, np.uint64(bits), length + count)


@compiled
def code_scales(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    flat: NDArray[np.uint32],
    out: NDArray[np.uint32],
    cursor: Cursor,
) -> Cursor:
    """Token scales of one byte, if the side has any: their mean, then each."""
    scales = np.empty(BLOCK_TOKENS, np.int32)
    if not read_scales(words, base, row, side, scales):
        return cursor
    first, last = row[tile.SINKS], row[tile.TOKENS]
    mean = mean_scale(scales[first:last])
    cursor = push(out, cursor, np.uint64(mean), 8)
    for t in range(first, last):
        cursor = _push_small(out, cursor, scales[t] - mean, flat, SCALE_ROW)
    return cursor


@compiled
def code_lane(
    channels: Channels,
    classes: NDArray[np.uint8],
    marks: NDArray[np.uint32],
    tokens: int,
    lane: int,
    flat: NDArray[np.uint32],
    out: NDArray[np.uint32],
    cursor: Cursor,
    limit: int,
) -> Cursor:
    """Writes every fourth channel of a side.

    Args:
        channels: of the side.
        classes, marks: as `count_side` left them.
        tokens: how many codes a channel has.
        lane: the first channel.
        flat: codeword | length << 16 of all symbols of the side, row after row.
        out: words, with room for a channel after `limit`.
        cursor: in `out`.
        limit: a bit after which it pays no more.

    Returns:
        The cursor behind it; beyond `limit`, and not all is written, if it does not pay.
    """
    for c in range(lane, len(classes), LANES):
        number, channel_class = width_number(int(channels.widths[c])), int(classes[c])
        joined = np.uint32(0)
        if number:
            joined = flat[(CLASS_ROWS + number) * MAX_SYMBOLS + channel_class]
        if len(channels.steps):
            step = channels.steps[c] + 8
            joined = _joined(joined, flat[(STEP_ROWS + number) * MAX_SYMBOLS + step])
        bits = np.uint64(joined & np.uint32(0xFFFF))
        cursor = push(out, cursor, bits, int(np.int64(joined >> np.uint32(16))))
        if len(channels.minima):
            surprise = _surprise(channels, c, channel_class)
            cursor = _push_small(out, cursor, surprise, flat, MINIMUM_ROWS + number)
        low = low_bits(channel_class)
        for k in range(symbol_count(level_of(channel_class), tokens)):
            codeword = np.uint64(flat[marks[c, k] & np.uint32(0xFFFF)])
            length = codeword >> np.uint64(16)
            plain = np.uint64(marks[c, k] >> np.uint32(16)) << length
            bits = (codeword & np.uint64(0xFFFF)) | plain
            cursor = push(out, cursor, bits, int(np.int64(length)) + low)
        if bit_of(cursor) > limit:
            break
    return cursor


@compiled
def _joined(first: np.uint32, second: np.uint32) -> np.uint32:
    """Two codewords | length << 16 of 16 bits together, the first one's bits first."""
    length = first >> np.uint32(16)
    bits = (first & np.uint32(0xFFFF)) | (second & np.uint32(0xFFFF)) << length
    return bits | (length + (second >> np.uint32(16))) << np.uint32(16)

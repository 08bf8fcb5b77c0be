"""Whole sections to cold words, compiled."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.bits import bit_of
from packkv_kernels.entropy.cold_side import (
    FLOAT_SCALE_WORDS,
    LANES,
    SIDES,
    has_float_scales,
    read_channels,
    read_codes,
    side_start,
    side_words,
)
from packkv_kernels.entropy.cold_symbols import code_lane, code_scales, count_side
from packkv_kernels.entropy.section_heads import count_widths
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled

__all__ = ["MARGIN_WORDS", "encode_sections", "read_sections", "share_scales"]

# What a section may have written before it turns out not to pay: token scales and a channel.
MARGIN_WORDS: Final = 256


@compiled
def read_sections(
    start: int,
    stop: int,
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    classes: NDArray[np.uint8],
    marks: NDArray[np.uint32],
    coded: NDArray[np.bool_],
    k_counts: NDArray[np.int64],
    v_counts: NDArray[np.int64],
) -> None:
    """Finds and counts the symbols of sections start … stop.

    Args:
        words, bases, descriptors: proven sections.
        classes: [sections, 2, head_dim], overwritten.
        marks: [sections, 2, head_dim, 64], overwritten; see `count_side`.
        coded: [sections, 2], overwritten: whether a side has codes that can be coded.
        k_counts, v_counts: of the tables, counted on.
    """
    # the last symbol of a channel may take codes after the last token: zeros
    codes = np.zeros((marks.shape[2], BLOCK_TOKENS + 3), np.uint8)
    for i in range(start, stop):
        row = descriptors[i]
        for s in range(2):
            counts = k_counts if s == 0 else v_counts
            count_widths(words, bases[i], row, SIDES[s], counts)
            coded[i, s] = read_codes(words, bases[i], row, SIDES[s], codes)
            if coded[i, s]:
                made = codes[:, row[tile.SINKS] :], classes[i, s], marks[i, s]
                count_side(words, bases[i], row, s, *made, counts)


@compiled
def share_scales(
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    heads: int,
    shared: NDArray[np.bool_],
) -> None:
    """Finds out which token scales of four bytes are those of the head before in the same layer.

    Args:
        words, bases, descriptors: proven sections.
        heads: sections of a layer.
        shared: [sections, 2], overwritten.
    """
    shared[:] = False
    for i in range(len(bases)):
        if i % heads == 0:
            continue
        for s in range(2):
            row, before = descriptors[i], descriptors[i - 1]
            if has_float_scales(row, SIDES[s]) and has_float_scales(before, SIDES[s]):
                own = words[bases[i] + row[SIDES[s] + tile.SCALES] :][:FLOAT_SCALE_WORDS]
                other = words[bases[i - 1] + before[SIDES[s] + tile.SCALES] :][:FLOAT_SCALE_WORDS]
                shared[i, s] = (own == other).all()


@compiled
def encode_sections(
    start: int,
    stop: int,
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    classes: NDArray[np.uint8],
    marks: NDArray[np.uint32],
    coded: NDArray[np.bool_],
    shared: NDArray[np.bool_],
    k_tables: NDArray[np.uint32],
    v_tables: NDArray[np.uint32],
    longest_lane: int,
    arena: NDArray[np.uint32],
    sizes: NDArray[np.int64],
    lanes: NDArray[np.uint32],
) -> None:
    """Encodes sections start … stop, each into a row of `arena`.

    Args:
        words, bases, descriptors, classes, marks, coded: as `read_sections` left them; where
            coding does not pay, `coded` turns to False.
        shared: from `share_scales`.
        k_tables, v_tables: codeword | length << 16 of all symbols.
        longest_lane: most bits of a lane.
        arena: [sections, words of the longest section + MARGIN_WORDS].
        sizes: [sections], overwritten: words of each, in whole fours.
        lanes: [sections, LANES], overwritten: bits of each lane.
    """
    for i in range(start, stop):
        row, out = descriptors[i], arena[i]
        section = words[bases[i] : bases[i] + row[tile.WORDS]]
        exact = side_start(row, tile.K_SIDE) - row[tile.K_EXACT]
        out[:exact] = section[row[tile.K_EXACT] :][:exact]
        if coded[i].any():
            at = _put_plain(section, row, coded[i], shared[i], out, exact)
            room = exact + side_words(row, tile.K_SIDE) + side_words(row, tile.V_SIDE)
            made = classes[i], marks[i], coded[i], k_tables.reshape(-1), v_tables.reshape(-1)
            end = _put_lanes(section, row, *made, out, at, 32 * room, lanes[i])
            if end < room and lanes[i].max() <= longest_lane:
                sizes[i] = _fill(out, end)
                continue
        coded[i] = False
        lanes[i] = 0
        sizes[i] = _fill(out, _put_plain(section, row, coded[i], shared[i], out, exact))


@compiled
def _fill(out: NDArray[np.uint32], end: int) -> int:
    """Zeros from word `end` to the next whole four; their end."""
    whole = (end + 3) // 4 * 4
    out[end:whole] = 0
    return whole


@compiled
def _put_plain(
    section: NDArray[np.uint32],
    row: NDArray[np.int32],
    coded: NDArray[np.bool_],
    shared: NDArray[np.bool_],
    out: NDArray[np.uint32],
    at: int,
) -> int:
    """What stays as it is: sides that are not coded, scales of four bytes; returns its end."""
    for s in range(2):
        start, count = side_start(row, SIDES[s]), side_words(row, SIDES[s])
        if coded[s]:
            start, count = row[SIDES[s] + tile.SCALES], FLOAT_SCALE_WORDS
            if shared[s] or not has_float_scales(row, SIDES[s]):
                continue
        out[at : at + count] = section[start : start + count]
        at += count
    return at


@compiled
def _put_lanes(
    section: NDArray[np.uint32],
    row: NDArray[np.int32],
    classes: NDArray[np.uint8],
    marks: NDArray[np.uint32],
    coded: NDArray[np.bool_],
    k_flat: NDArray[np.uint32],
    v_flat: NDArray[np.uint32],
    out: NDArray[np.uint32],
    at: int,
    limit: int,
    lanes: NDArray[np.uint32],
) -> int:
    """Writes the lanes from word `at` on, until they pass bit `limit`; returns their end."""
    tokens = row[tile.TOKENS] - row[tile.SINKS]
    # of a side that is not coded, these are not looked at
    k_channels = read_channels(section, 0, row, tile.K_SIDE)
    v_channels = read_channels(section, 0, row, tile.V_SIDE)
    cursor, begin = (at, 0, np.uint64(0)), 32 * at
    for lane in range(LANES):
        for s in range(2):
            if not coded[s] or bit_of(cursor) > limit:
                continue
            flat = k_flat if s == 0 else v_flat
            channels = k_channels if s == 0 else v_channels
            if lane == 0:
                cursor = code_scales(section, 0, row, SIDES[s], flat, out, cursor)
            made = channels, classes[s], marks[s], tokens
            cursor = code_lane(*made, lane, flat, out, cursor, limit)
        lanes[lane] = bit_of(cursor) - begin
        begin = bit_of(cursor)
    out[cursor[0]] = np.uint32(cursor[2] & np.uint64(0xFFFFFFFF))
    return (begin + 31) // 32

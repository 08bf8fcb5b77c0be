"""Lanes of cold sections to symbols: a thread reads a lane, and four of them a section.

What the next codeword means depends on all before it in its lane, so a lane is one chain of table
entries. There are four to a section and thousands of sections to a prefix: those are what a GPU
does side by side. No branch depends on what one thread reads: where it has no symbol left it takes
a codeword of no bits. Threads of a warp wait for each other at the end of a channel, and only
together do they leave out the low bits that channels of many levels have.

A **symbol** of codes has up to four bits whatever the level, so that symbols are appended to words
here, and taken apart to codes where planes are written, by threads that have nothing to wait for
(`cold_sections`). Bits need not be believed: a lane that has been read beyond its end stops there,
at most SLACK_WORDS later.
"""

import triton
import triton.language as tl

from packkv_kernels.entropy.cold_plan import BASE, CODED, LANES_AT, PLAN_WORDS, TABLES
from packkv_kernels.entropy.places import LEVELS, MAX_PLACES, PLACES
from packkv_kernels.entropy.tables import (
    CLASS_ROWS,
    MINIMUM_ROWS,
    PLACE_SHIFT,
    ROWS,
    SCALE_ROW,
    STEP_ROWS,
    SYMBOL_MASK,
    TABLE_BITS,
)
from packkv_kernels.format import tile

__all__ = ["SYMBOL_WORDS", "decode_lanes", "level_of", "log_group_of"]

# Words of the symbols of a channel: 64 symbols of four bits.
SYMBOL_WORDS = 8

_PLAN = tl.constexpr(PLAN_WORDS)
_LANES_AT = tl.constexpr(LANES_AT)
_TABLES = tl.constexpr(TABLES)
_BASE = tl.constexpr(BASE)
_CODED = tl.constexpr(CODED)
_ROW = tl.constexpr(tile.DESCRIPTOR_WORDS)
_FLAGS = tl.constexpr(tile.FLAGS)
_TOKENS = tl.constexpr(tile.TOKENS)
_SINKS = tl.constexpr(tile.SINKS)
_SCALES = tl.constexpr(tile.SCALES)
_LOG_SCALES = tl.constexpr(tile.LOG_SCALES)
_CHANNEL_STEPS = tl.constexpr(tile.CHANNEL_STEPS)
_ENTRIES = tl.constexpr(1 << TABLE_BITS)
_SIDE_ENTRIES = tl.constexpr(ROWS << TABLE_BITS)
_SYMBOL_MASK = tl.constexpr(SYMBOL_MASK)
_PLACE_MASK = tl.constexpr(31 << PLACE_SHIFT)
_PLACE_TO_INDEX = tl.constexpr(TABLE_BITS - PLACE_SHIFT)
_CLASS_ROWS = tl.constexpr(CLASS_ROWS)
_MINIMUM_ROWS = tl.constexpr(MINIMUM_ROWS)
_STEP_ROWS = tl.constexpr(STEP_ROWS)
_SCALE_ROW = tl.constexpr(SCALE_ROW)
_LEVELS = tl.constexpr(LEVELS)
_LEVEL_ENTRIES = tl.constexpr(MAX_PLACES << TABLE_BITS)
_K_MIDDLE = tl.constexpr((PLACES[0] // 2) << TABLE_BITS)
_V_MIDDLE = tl.constexpr((PLACES[1] // 2) << TABLE_BITS)
_WORDS = tl.constexpr(SYMBOL_WORDS)


@triton.jit(do_not_specialize=["count"])
def decode_lanes(
    cold_ptr, plan_ptr, lanes_ptr, widths_ptr, descriptors_ptr, tables_ptr, out_ptr,
    symbols_ptr, plain_ptr, channels_ptr, faults_ptr, count,
    D: tl.constexpr, UNIT_V: tl.constexpr, SECTIONS: tl.constexpr,
):  # fmt: skip
    """Symbols of SECTIONS sections; the grid is (sections / SECTIONS, rounded up,).

    Args:
        cold_ptr: uint32, cold words, and SLACK_WORDS more.
        plan_ptr: int64 [sections, PLAN_WORDS], see `cold_plan`.
        lanes_ptr: int32 [sections, 5], first bit of each lane, and the end of the last.
        widths_ptr: uint8 [sections, D / 4 + D / UNIT_V], of units of K and of V.
        descriptors_ptr: int32 [sections, DESCRIPTOR_WORDS].
        tables_ptr: uint16, of `spread_tables`.
        out_ptr: uint32, resident sections; of these one-byte token scales are written.
        symbols_ptr: uint32 [sections, 2, D / 4, SYMBOL_WORDS, 4], written: eight symbols a word.
        plain_ptr: the same of the low bits that follow symbols, written of channels that have any.
        channels_ptr: uint32 [sections, 2, D], written: class | step << 8 | minimum << 16.
        faults_ptr: uint8 [sections, 4], written: whether a lane is not full to the bit.
        count: of sections.
    """
    thread = tl.program_id(0) * (4 * SECTIONS) + tl.arange(0, 4 * SECTIONS)
    section, lane = (thread >> 2).to(tl.int64), thread & 3
    exists = section < count
    row_ptr, plan_ptr = descriptors_ptr + section * _ROW, plan_ptr + section * _PLAN
    flags = tl.load(row_ptr + _FLAGS, mask=exists, other=0)
    first = tl.load(row_ptr + _SINKS, mask=exists, other=0)
    tokens = tl.load(row_ptr + _TOKENS, mask=exists, other=0)
    cold_ptr += tl.load(plan_ptr + _LANES_AT, mask=exists, other=0)
    out_ptr += tl.load(plan_ptr + _BASE, mask=exists, other=0)
    tables_ptr += tl.load(plan_ptr + _TABLES, mask=exists, other=0) * (2 * _SIDE_ENTRIES)
    at = tl.load(lanes_ptr + section * 5 + lane, mask=exists, other=0)
    end = tl.load(lanes_ptr + section * 5 + lane + 1, mask=exists, other=0)
    widths_ptr += section * (D // 4 + D // UNIT_V)
    # K, then V, by the same code: the loop is not unrolled
    for side in range(2):
        coded = tl.load(plan_ptr + _CODED + side, mask=exists, other=0) != 0
        going = coded & (at <= end)
        scales = out_ptr + tl.load(row_ptr + 8 + 8 * side + _SCALES, mask=exists, other=0)
        scaled = going & (((flags >> (20 + 2 * side)) & 3) == _LOG_SCALES) & (lane == 0)
        at = _read_scales(cold_ptr, at, tables_ptr, scales, scaled, first, tokens)
        minima = 8 * ((flags >> (16 + 2 * side)) & 3)
        stepped = ((flags >> (20 + 2 * side)) & 3) == _CHANNEL_STEPS
        unit_shift = tl.where(side == 0, 2, UNIT_V // 2)
        lanes_of = (section * 2 + side) * (D // 4)
        for quad in range(D // 4):
            going = going & (at <= end)
            width = tl.load(widths_ptr + ((4 * quad + lane) >> unit_shift), mask=going, other=0)
            at, channel = _read_channel(
                cold_ptr, at, tables_ptr, width.to(tl.int32), stepped, minima, going
            )
            tl.store(channels_ptr + (lanes_of + quad) * 4 + lane, channel, mask=exists)
            to = (lanes_of + quad) * (4 * _WORDS) + lane
            at = _read_symbols(
                cold_ptr, at, tables_ptr, channel, tl.where(going, tokens - first, 0),
                tl.where(side == 0, _K_MIDDLE, _V_MIDDLE), symbols_ptr + to, plain_ptr + to,
            )  # fmt: skip
        widths_ptr += D // 4
        tables_ptr += _SIDE_ENTRIES
    tl.store(faults_ptr + thread, (at != end).to(tl.uint8), mask=exists)


@triton.jit
def _peek(cold_ptr, at):
    """The next 32 bits."""
    word_ptr = cold_ptr + (at >> 5)
    low, high = tl.load(word_ptr).to(tl.uint64), tl.load(word_ptr + 1).to(tl.uint64)
    return ((low | high << 32) >> (at & 31).to(tl.uint64)).to(tl.uint32)


@triton.jit
def _look_up(tables_ptr, row, bits, wanted):
    """An entry of a table, int32: 0, of no bits, where none is wanted."""
    at = tables_ptr + row * _ENTRIES + (bits & (_ENTRIES - 1)).to(tl.int32)
    return tl.load(at, mask=wanted, other=0).to(tl.int32)


@triton.jit
def _read_small(cold_ptr, at, tables_ptr, row, wanted):
    """(a small integer, the next bit)."""
    bits = _peek(cold_ptr, at)
    found = _look_up(tables_ptr, row, bits, wanted)
    symbol, length = found & _SYMBOL_MASK, found >> 12
    plain = tl.where(symbol < 8, 0, (symbol - 8) // 2 + 2)
    low = (bits >> length.to(tl.uint32)).to(tl.int32) & ((1 << plain) - 1)
    folded = tl.where(symbol < 8, symbol, (2 + (symbol & 1)) << plain | low)
    value = (folded >> 1) ^ -(folded & 1)
    return value, at + length + plain


@triton.jit
def _read_scales(cold_ptr, at, tables_ptr, scales_ptr, scaled, first, tokens):
    """Writes the one-byte token scales of the lanes that have them; the next bit of each."""
    mean = (_peek(cold_ptr, at) & 255).to(tl.int32)
    at += tl.where(scaled, 8, 0)
    bytes_ptr = scales_ptr.to(tl.pointer_type(tl.uint8))
    for i in range(tl.max(tl.where(scaled, tokens - first, 0), 0)):
        wanted = scaled & (i < tokens - first)
        difference, at = _read_small(cold_ptr, at, tables_ptr, _SCALE_ROW, wanted)
        scale = (mean + difference) & 255
        tl.store(bytes_ptr + first + i, scale.to(tl.uint8), mask=wanted)
    return at


@triton.jit
def _read_channel(cold_ptr, at, tables_ptr, width, stepped, minima, going):
    """(the next bit, class | step << 8 | minimum << 16 of a channel)."""
    number = tl.where(width <= 4, width, width // 2 + 2)
    # a class and a step have no more bits than are there
    bits = _peek(cold_ptr, at)
    found = _look_up(tables_ptr, _CLASS_ROWS + number, bits, going & (width > 0))
    kind, length = found & _SYMBOL_MASK, found >> 12
    at, bits = at + length, bits >> length.to(tl.uint32)
    found = _look_up(tables_ptr, _STEP_ROWS + number, bits, going & stepped)
    step, at = tl.where(stepped, (found & _SYMBOL_MASK) - 8, 0), at + (found >> 12)
    wanted = going & (minima != 0)
    surprise, at = _read_small(cold_ptr, at, tables_ptr, _MINIMUM_ROWS + number, wanted)
    # where a channel evenly around 0 has its own
    even = ((1 << width) - 1) * tl.where(width < 4, 4, 1)
    level, low = level_of(kind)
    minimum = (-tl.where(stepped, even, (level + 1) << low) >> 1) + surprise
    minimum = tl.where(wanted, minimum, 0)
    return at, (kind | (step & 15) << 8 | (minimum & 0xFFFF) << 16).to(tl.uint32)


@triton.jit
def level_of(kind):
    """(level, low bits) of a class."""
    has_low = kind >= _LEVELS
    return tl.where(has_low, 8 + (kind & 7), kind), tl.where(has_low, (kind - 8) >> 3, 0)


@triton.jit
def log_group_of(level):
    """log₂ of how many codes a symbol has."""
    return tl.where(level == 1, 2, tl.where(level == 3, 1, 0))


@triton.jit
def _read_symbols(cold_ptr, at, tables_ptr, channel, codes, middle, symbols_ptr, plain_ptr):
    """Reads a channel's symbols and writes them, eight to a word; the next bit.

    Args:
        channel: of `_read_channel`.
        codes: how many there are.
        middle: what the place in the middle adds to the index of a table entry.
        symbols_ptr, plain_ptr: where the first word goes.
    """
    level, low = level_of((channel & 255).to(tl.int32))
    log_group = log_group_of(level)
    count = (codes + (1 << log_group) - 1) >> log_group
    # those of level 0 take no bits, and there is no level 2
    count = tl.where((level == 0) | (level == 2), 0, count)
    tables_ptr += level * _LEVEL_ENTRIES
    place = tl.zeros_like(at) + middle
    if tl.max(low, 0) == 0:
        for word in range((tl.max(count, 0) + 7) >> 3):
            symbols = tl.zeros_like(channel)
            for half in tl.static_range(2):
                # four codewords are never more than 32 bits
                bits = _peek(cold_ptr, at)
                for i in tl.static_range(4):
                    wanted = 8 * word + 4 * half + i < count
                    entry = tables_ptr + place + (bits & (_ENTRIES - 1)).to(tl.int32)
                    found = tl.load(entry, mask=wanted, other=0).to(tl.int32)
                    symbols |= (found & 15).to(tl.uint32) << (16 * half + 4 * i)
                    place = (found & _PLACE_MASK) << _PLACE_TO_INDEX
                    bits = bits >> (found >> 12).to(tl.uint32)
                    at += found >> 12
            tl.store(symbols_ptr + 4 * word, symbols, mask=8 * word < count)
    else:
        for word in range((tl.max(count, 0) + 7) >> 3):
            symbols, plain = tl.zeros_like(channel), tl.zeros_like(channel)
            for i in range(8):
                wanted = 8 * word + i < count
                bits = _peek(cold_ptr, at)
                found = _look_up(tables_ptr + place, 0, bits, wanted)
                place = (found & _PLACE_MASK) << _PLACE_TO_INDEX
                length = found >> 12
                more = tl.where(wanted, low, 0)
                behind = (bits >> length.to(tl.uint32)) & ((1 << more) - 1).to(tl.uint32)
                at_nibble = (tl.zeros_like(at) + 4 * i).to(tl.uint32)
                symbols |= (found & 15).to(tl.uint32) << at_nibble
                plain |= behind << at_nibble
                at += length + more
            tl.store(symbols_ptr + 4 * word, symbols, mask=8 * word < count)
            tl.store(plain_ptr + 4 * word, plain, mask=(8 * word < count) & (low > 0))
    return at

"""Symbols of cold sections to resident sections: a thread owns whole words of planes."""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.planes import (
    field_place,
    store_planes,
    third_bit,
    unit_planes,
)
from packkv_kernels.entropy.cold_plan import BASE, CODED, COPIES, COPY_COUNT, PLAN_WORDS
from packkv_kernels.entropy.triton.cold_lanes import SYMBOL_WORDS, level_of, log_group_of
from packkv_kernels.format import tile

__all__ = ["write_sections"]

_PLAN = tl.constexpr(PLAN_WORDS)
_BASE = tl.constexpr(BASE)
_CODED = tl.constexpr(CODED)
_COPIES = tl.constexpr(COPIES)
_COPY_COUNT = tl.constexpr(COPY_COUNT)
_ROW = tl.constexpr(tile.DESCRIPTOR_WORDS)
_FLAGS = tl.constexpr(tile.FLAGS)
_TOKENS = tl.constexpr(tile.TOKENS)
_SINKS = tl.constexpr(tile.SINKS)
_MINIMA = tl.constexpr(tile.MINIMA)
_SCALES = tl.constexpr(tile.SCALES)
_PLANE_A = tl.constexpr(tile.PLANE_A)
_CHANNEL_STEPS = tl.constexpr(tile.CHANNEL_STEPS)
_WORDS = tl.constexpr(SYMBOL_WORDS)

# Words of one step of a copy.
_COPIED = tl.constexpr(512)


@triton.jit
def write_sections(
    cold_ptr, plan_ptr, widths_ptr, descriptors_ptr, symbols_ptr, plain_ptr, channels_ptr, out_ptr,
    D: tl.constexpr, D_PAD: tl.constexpr, UNIT_V: tl.constexpr,
):  # fmt: skip
    """One side of a section; the grid is (sections, 2).

    Args:
        cold_ptr, plan_ptr, widths_ptr, descriptors_ptr, symbols_ptr, plain_ptr, channels_ptr: of
            `decode_lanes`.
        out_ptr: uint32, resident sections, written over zeros but for one-byte token scales.
    """
    section = tl.program_id(0).to(tl.int64)
    side = tl.program_id(1)
    row_ptr, plan_ptr = descriptors_ptr + section * _ROW, plan_ptr + section * _PLAN
    out_ptr += tl.load(plan_ptr + _BASE)
    # K has what comes before it, too
    copies = tl.where(side == 0, _COPY_COUNT - 1, 1)
    first = tl.where(side == 0, 0, _COPY_COUNT - 1)
    for copy in range(first, first + copies):
        copy_ptr = plan_ptr + _COPIES + 3 * copy
        source_ptr, target_ptr = cold_ptr + tl.load(copy_ptr), out_ptr + tl.load(copy_ptr + 1)
        count = tl.load(copy_ptr + 2)
        for start in range(0, count.to(tl.int32), _COPIED):
            i = start + tl.arange(0, _COPIED)
            words = tl.load(source_ptr + i, mask=i < count, other=0)
            tl.store(target_ptr + i, words, mask=i < count)
    if tl.load(plan_ptr + _CODED + side) != 0:
        widths_ptr += section * (D // 4 + D // UNIT_V)
        of_side = section * 2 + side
        symbols_ptr += of_side * (D * _WORDS)
        plain_ptr += of_side * (D * _WORDS)
        channels_ptr += of_side * D
        _write_channels(channels_ptr, row_ptr, side, out_ptr, D, D_PAD)
        if side == 0:
            _write_planes(
                symbols_ptr, plain_ptr, channels_ptr, widths_ptr, row_ptr, out_ptr, D, D_PAD, 0, 4
            )
        else:
            _write_planes(
                symbols_ptr, plain_ptr, channels_ptr, widths_ptr + D // 4, row_ptr, out_ptr,
                D, D_PAD, 1, UNIT_V,
            )  # fmt: skip


@triton.jit
def _write_channels(channels_ptr, row_ptr, side, out_ptr, D: tl.constexpr, D_PAD: tl.constexpr):
    """Minima and steps of a side, if it has them."""
    channel = tl.arange(0, D_PAD)
    found = tl.load(channels_ptr + channel, mask=channel < D, other=0)
    flags = tl.load(row_ptr + _FLAGS)
    side_ptr = row_ptr + 8 + 8 * side
    kind = (flags >> (16 + 2 * side)) & 3
    minima_ptr = out_ptr + tl.load(side_ptr + _MINIMA)
    minimum = found >> 16
    at = minima_ptr.to(tl.pointer_type(tl.uint8)) + channel
    tl.store(at, minimum.to(tl.uint8), mask=(channel < D) & (kind == 1))
    at = minima_ptr.to(tl.pointer_type(tl.uint16)) + channel
    tl.store(at, minimum.to(tl.uint16), mask=(channel < D) & (kind == 2))
    step = ((found >> 8) & 15) << (4 * (channel & 7)).to(tl.uint32)
    # eight to a word, whose bits are apart
    steps = tl.sum(tl.reshape(step, (D_PAD // 8, 8)), 1)
    word = tl.arange(0, D_PAD // 8)
    stepped = ((flags >> (20 + 2 * side)) & 3) == _CHANNEL_STEPS
    at = out_ptr + tl.load(side_ptr + _SCALES) + word
    tl.store(at, steps, mask=(8 * word < D) & stepped)


@triton.jit
def _write_planes(
    symbols_ptr, plain_ptr, channels_ptr, widths_ptr, row_ptr, out_ptr,
    D: tl.constexpr, D_PAD: tl.constexpr, SIDE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """All planes of a side, from its symbols."""
    LANES: tl.constexpr = 8 if SIDE == 0 else 4
    COLUMNS: tl.constexpr = D_PAD // 2 if SIDE == 0 else D_PAD
    first, tokens = tl.load(row_ptr + _SINKS), tl.load(row_ptr + _TOKENS)
    unit = tl.arange(0, D_PAD // UNIT)
    width = tl.load(widths_ptr + unit, mask=unit < D // UNIT, other=0).to(tl.int32)
    planes = unit_planes((1 << width) - 1, D // UNIT)
    if tl.max(width, 0) > 4:
        even, odd, even_high, odd_high = _gather(
            symbols_ptr, plain_ptr, channels_ptr, first, tokens, D, SIDE, LANES, COLUMNS, True
        )
    else:
        even, odd, even_high, odd_high = _gather(
            symbols_ptr, plain_ptr, channels_ptr, first, tokens, D, SIDE, LANES, COLUMNS, False
        )
    # C has bit 2 of codes where their unit has A, else bit 0; of every second column further up
    third_of = third_bit(planes[0], COLUMNS)
    c = ((even >> third_of) & 0x11111111) | ((odd >> third_of) & 0x11111111) << 1
    c = c << (2 * (tl.arange(0, COLUMNS)[None, :] & 1)).to(tl.uint32)
    side_ptr = row_ptr + 8 + 8 * SIDE + _PLANE_A
    starts = (
        tl.load(side_ptr), tl.load(side_ptr + 1), tl.load(side_ptr + 2), tl.load(side_ptr + 3),
        tl.load(side_ptr + 4),
    )  # fmt: skip
    store_planes(
        out_ptr, starts, _lower_pairs(even, odd), c, _upper_pairs(even, odd),
        _lower_pairs(even_high, odd_high), _upper_pairs(even_high, odd_high), planes, UNIT,
    )  # fmt: skip


@triton.jit
def _gather(
    symbols_ptr, plain_ptr, channels_ptr, first, tokens, D: tl.constexpr, SIDE: tl.constexpr,
    LANES: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Words of 4-bit fields: bits 0-3 of codes for e = 0 and for e = 1, then, if WIDE, bits 4-7."""
    even, odd = tl.zeros([LANES, COLUMNS], tl.uint32), tl.zeros([LANES, COLUMNS], tl.uint32)
    even_high, odd_high = even, odd
    for field in range(8):
        code, place = _code_of(
            symbols_ptr, plain_ptr, channels_ptr, field, first, tokens, D, SIDE, LANES, COLUMNS,
            WIDE,
        )  # fmt: skip
        even |= (code & 15) << place
        even_high |= (code >> 4) << place
        code, place = _code_of(
            symbols_ptr, plain_ptr, channels_ptr, field + 8, first, tokens, D, SIDE, LANES,
            COLUMNS, WIDE,
        )  # fmt: skip
        odd |= (code & 15) << place
        odd_high |= (code >> 4) << place
    return even, odd, even_high, odd_high


@triton.jit
def _code_of(
    symbols_ptr, plain_ptr, channels_ptr, field, first, tokens, D: tl.constexpr,
    SIDE: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(codes of a field of all words, where it is in its word), uint32 [lanes, columns]."""
    t, channel, _, j, h = field_place(field, SIDE, LANES, COLUMNS)
    # as many words as codes: else Triton would load V's channels in a layout of their own, and
    # exchange all codes through shared memory. For the same end, five is one, modulo four
    quad, lane = (channel >> 2) + 0 * t, (5 * channel) & 3
    found = tl.load(channels_ptr + 4 * quad + lane, mask=channel < D, other=0)
    level, low = level_of((found & 255).to(tl.int32))
    log_group = log_group_of(level)
    i = t - first
    coded = (i >= 0) & (t < tokens) & (level != 0) & (level != 2)
    symbol = i >> log_group
    at = quad * (4 * _WORDS) + (symbol >> 3) * 4 + lane
    nibble = (4 * (symbol & 7)).to(tl.uint32)
    code = (tl.load(symbols_ptr + at, mask=coded, other=0) >> nibble) & 15
    # of a symbol of several codes the first is lowest
    bits = 4 >> log_group
    code = (code >> ((i & ((1 << log_group) - 1)) * bits).to(tl.uint32)) & ((1 << bits) - 1)
    if WIDE:
        plain = tl.load(plain_ptr + at, mask=coded & (low > 0), other=0) >> nibble
        code = code << low.to(tl.uint32) | plain & 15
    return code.to(tl.uint32), (16 * h + 4 * j + 0 * channel).to(tl.uint32)


@triton.jit
def _lower_pairs(even, odd):
    """Words of plane A, from words of bits 0-3; or of plane H1, from words of bits 4-7."""
    return (even & 0x33333333) | (odd & 0x33333333) << 2


@triton.jit
def _upper_pairs(even, odd):
    """The same of planes B and H2."""
    return (even & 0xCCCCCCCC) >> 2 | (odd & 0xCCCCCCCC)

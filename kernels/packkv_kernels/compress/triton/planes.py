"""Integers to planes in a kernel, in the order of the planes: a thread owns whole words.

A tensor of [lanes, columns] has an element for every word of a dense plane A: of K eight lanes and
a column for two channels, of V four lanes and a column for each. The sixteen fields of a word are
visited one by one, so that no bit crosses a thread. What belongs to a channel of K comes in twos,
of channel 2 · column and of channel 2 · column + 1.
"""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.integers import round_even

__all__ = [
    "bitmap_word",
    "channel_range",
    "field_place",
    "plane_mode",
    "store_planes",
    "third_bit",
    "unit_planes",
    "write_planes",
]


@triton.jit
def field_place(field, SIDE: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """(token [lanes, 1], channel [1, columns], e, j, h) of one of the sixteen fields of words."""
    lane, column = tl.arange(0, LANES)[:, None], tl.arange(0, COLUMNS)[None, :]
    e, k1, k0, h = field >> 3, (field >> 2) & 1, (field >> 1) & 1, field & 1
    if SIDE == 0:
        t, channel = 8 * (field >> 1) + lane, 2 * column + h
    else:
        t, channel = 32 * e + 16 * k1 + 4 * lane + 2 * k0 + h, column
    return t, channel, e, k0 + 2 * k1, h


@triton.jit
def _values(
    values_ptr, stride, order_ptr, inv_step_ptr, scales_ptr, zeros_ptr, t, channel, inexact,
    D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Values before minima are taken off, integers but for KIND 0; see `write_planes`."""
    natural = channel
    if KIND == 0:
        natural = tl.load(order_ptr + channel, mask=channel < D, other=0).to(tl.int32)
    x = tl.load(values_ptr + t * stride + natural, mask=inexact & (channel < D), other=0)
    x = x.to(tl.float32)
    if KIND == 0:
        x = x * tl.load(inv_step_ptr + natural, mask=channel < D, other=0.0)
    if KIND == 1:
        scale = tl.load(scales_ptr + t, mask=inexact, other=1.0)
        zero = tl.load(zeros_ptr + t, mask=inexact, other=0.0)
        x = round_even(tl.math.div_rn(x, scale)) - zero
    return x


@triton.jit
def channel_range(
    values_ptr, stride, order_ptr, inv_step_ptr, scales_ptr, zeros_ptr, begin, end,
    D: tl.constexpr, D_PAD: tl.constexpr, SIDE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Least and largest value over tokens begin … end, float32; 0 and 0 without a token.

    Returns:
        (low, high) of channel 2 · column and of 2 · column + 1 for K: four of [columns]; for V
        of each channel, twice the same two.
    """
    LANES: tl.constexpr = 8 if SIDE == 0 else 4
    COLUMNS: tl.constexpr = D_PAD // 2 if SIDE == 0 else D_PAD
    low0 = tl.full([LANES, COLUMNS], float("inf"), tl.float32)
    high0 = tl.full([LANES, COLUMNS], float("-inf"), tl.float32)
    low1, high1 = low0, high0
    for field in range(16):
        t, channel, _, _, h = field_place(field, SIDE, LANES, COLUMNS)
        inexact = (t >= begin) & (t < end)
        x = _values(values_ptr, stride, order_ptr, inv_step_ptr, scales_ptr, zeros_ptr,
            t, channel, inexact, D, KIND)  # fmt: skip
        low, high = tl.where(inexact, x, float("inf")), tl.where(inexact, x, float("-inf"))
        low0 = tl.where(h == 0, tl.minimum(low0, low), low0)
        high0 = tl.where(h == 0, tl.maximum(high0, high), high0)
        low1 = tl.where(h == 1, tl.minimum(low1, low), low1)
        high1 = tl.where(h == 1, tl.maximum(high1, high), high1)
    if SIDE == 1:
        low0, high0 = tl.minimum(low0, low1), tl.maximum(high0, high1)
        low1, high1 = low0, high0
    low0, high0, low1, high1 = tl.min(low0, 0), tl.max(high0, 0), tl.min(low1, 0), tl.max(high1, 0)
    none = begin >= end
    return (
        tl.where(none, 0.0, low0), tl.where(none, 0.0, high0),
        tl.where(none, 0.0, low1), tl.where(none, 0.0, high1),
    )  # fmt: skip


@triton.jit
def unit_planes(largest, UNITS: tl.constexpr):
    """Which units need A, C, B, H1, H2 for their largest code: five int32 of 0 and 1."""
    exists = tl.arange(0, largest.shape[0]) < UNITS
    a = ((largest >= 2) & exists).to(tl.int32)
    c = (((largest == 1) | (largest >= 4) & (largest < 8)) & exists).to(tl.int32)
    b = ((largest >= 8) & exists).to(tl.int32)
    h1 = ((largest >= 16) & exists).to(tl.int32)
    h2 = ((largest >= 64) & exists).to(tl.int32)
    return a, c, b, h1, h2


@triton.jit
def plane_mode(present, UNITS: tl.constexpr):
    """(mode, number of units) of a plane: absent 0, every unit 1, sparse 2."""
    count = tl.sum(present, 0)
    return tl.where(count == 0, 0, tl.where(count == UNITS, 1, 2)), count


@triton.jit
def bitmap_word(present, WORD: tl.constexpr):
    """Word WORD of a plane's bitmap, uint32."""
    unit = tl.arange(0, present.shape[0])
    bits = tl.where(unit >> 5 == WORD, present, 0).to(tl.uint32) << (unit & 31).to(tl.uint32)
    return tl.sum(bits, 0)


@triton.jit
def write_planes(
    words_ptr, starts, planes, values_ptr, stride, order_ptr, inv_step_ptr, scales_ptr, zeros_ptr,
    low0, low1, inverse0, inverse1, top, begin, end, fits,
    D: tl.constexpr, D_PAD: tl.constexpr, SIDE: tl.constexpr, KIND: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Writes all planes of a side whose codes fit.

    Args:
        words_ptr: the section.
        starts: where planes A, C, B, H1, H2 begin.
        planes: of `unit_planes`.
        values_ptr, stride: value [t · stride + natural channel] of a token.
        low0, low1: minima, of `channel_range` or `channel_codes`.
        inverse0, inverse1, top: of `channel_codes`; read for KIND 0.
        begin, end: the tokens that have codes.
        KIND: what a code is. 0: of hybrid's K, rint(x · inv_step · inverse − low) within 0 … top,
            in stored order. 1: packkv's rint(x / scale) − zero − low. 2: a code already.
    """
    LANES: tl.constexpr = 8 if SIDE == 0 else 4
    COLUMNS: tl.constexpr = D_PAD // 2 if SIDE == 0 else D_PAD
    a = tl.zeros([LANES, COLUMNS], tl.uint32)
    b, c, h1, h2 = a, a, a, a
    parity = tl.arange(0, COLUMNS)[None, :] & 1
    third_of = third_bit(planes[0], COLUMNS)
    for field in range(16):
        t, channel, e, j, h = field_place(field, SIDE, LANES, COLUMNS)
        inexact = (t >= begin) & (t < end)
        x = _values(values_ptr, stride, order_ptr, inv_step_ptr, scales_ptr, zeros_ptr,
            t, channel, inexact, D, KIND)  # fmt: skip
        low = tl.where(h == 0, low0, low1)[None, :]
        if KIND == 0:
            x = round_even(x * tl.where(h == 0, inverse0, inverse1)[None, :] - low)
            x = tl.minimum(tl.maximum(x, 0.0), top[None, :])
        else:
            x = x - low
        coded = inexact & (channel < D) & fits
        code = tl.where(coded, x, 0.0).to(tl.int32).to(tl.uint32)
        bit = (16 * h + 2 * (e + 2 * j) + 0 * parity).to(tl.uint32)
        third = (16 * h + 4 * j + e + 2 * parity).to(tl.uint32)
        a |= (code & 3) << bit
        b |= ((code >> 2) & 3) << bit
        c |= ((code >> third_of) & 1) << third
        h1 |= ((code >> 4) & 3) << bit
        h2 |= ((code >> 6) & 3) << bit
    store_planes(words_ptr, starts, a, c, b, h1, h2, planes, UNIT)


@triton.jit
def store_planes(words_ptr, starts, a, c, b, h1, h2, planes, UNIT: tl.constexpr):
    """Stores words of the units that have a plane, of each plane.

    Args:
        words_ptr: the section.
        starts: where planes A, C, B, H1, H2 begin.
        a, c, b, h1, h2: uint32 [lanes, columns]; of C each column has its own bits.
        planes: of `unit_planes`.
    """
    LANES: tl.constexpr = a.shape[0]
    COLUMNS: tl.constexpr = a.shape[1]
    _store_pieces(words_ptr + starts[0], a, planes[0], LANES, UNIT)
    # two columns share a word of C: their bits are apart
    c = tl.sum(tl.reshape(c, (LANES, COLUMNS // 2, 2)), 2)
    _store_pieces(words_ptr + starts[1], c, planes[1], LANES, UNIT)
    _store_pieces(words_ptr + starts[2], b, planes[2], LANES, UNIT)
    _store_pieces(words_ptr + starts[3], h1, planes[3], LANES, UNIT)
    _store_pieces(words_ptr + starts[4], h2, planes[4], LANES, UNIT)


@triton.jit
def third_bit(has_a, COLUMNS: tl.constexpr):
    """Which bit of a code lies in plane C, uint32 [1, columns]: 2 where its unit has A, else 0."""
    UNITS: tl.constexpr = has_a.shape[0]
    by_column = tl.broadcast_to((2 * has_a)[:, None], (UNITS, COLUMNS // UNITS))
    return tl.reshape(by_column, (1, COLUMNS)).to(tl.uint32)


@triton.jit
def _store_pieces(words_ptr, words, present, LANES: tl.constexpr, UNIT: tl.constexpr):
    """Stores words [lanes, columns] of the units that are present, in a row."""
    UNITS: tl.constexpr = present.shape[0]
    PER_UNIT: tl.constexpr = words.shape[1] // UNITS
    lane = tl.arange(0, LANES)[:, None, None]
    place = lane * PER_UNIT + tl.arange(0, PER_UNIT)[None, None, :]
    if PER_UNIT == 1:
        place = (3 * lane) & (LANES - 1)
    rank = (tl.cumsum(present, 0) - present)[None, :, None]
    words = tl.reshape(words, (LANES, UNITS, PER_UNIT))
    at = words_ptr + rank * (LANES * PER_UNIT) + place
    tl.store(at, words, mask=(present != 0)[None, :, None])

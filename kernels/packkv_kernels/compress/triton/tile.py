"""Any tile of a proven section to registers, bit by bit as docs/codec.md has it.

For unpacking and for tokens that the decode kernel leaves aside. It takes every mode of every
plane, values instead of codes, and any head_dim.
"""

import triton
import triton.language as tl

from packkv_kernels.format import tile

__all__ = [
    "load_codes",
    "load_exact",
    "load_minima",
    "load_scales",
    "octaves",
    "signed",
    "unit_rank",
]

_FLAGS = tl.constexpr(tile.FLAGS)
_SINKS = tl.constexpr(tile.SINKS)
_TOKENS = tl.constexpr(tile.TOKENS)
_STORAGE = tl.constexpr(tile.STORAGE)
_K_EXACT = tl.constexpr(tile.K_EXACT)
_BITMAPS = tl.constexpr(tile.BITMAPS)
_MINIMA = tl.constexpr(tile.MINIMA)
_SCALES = tl.constexpr(tile.SCALES)
_PLANE_A = tl.constexpr(tile.PLANE_A)


@triton.jit
def load_codes(
    words_ptr, row_ptr, t, channel, SIDE: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    """(code + minimum, channel step), float32 [tokens, channels] and [1, channels].

    Args:
        words_ptr: first word of the section.
        row_ptr: its descriptor.
        t, channel: int32 [tokens, 1] and [1, channels], stored; zeros come back past D.
        SIDE: 0 for K, 1 for V.
        UNIT: channels that share a width.
    """
    side_ptr = row_ptr + 8 + 8 * SIDE
    flags = tl.load(row_ptr + _FLAGS)
    inside = (channel < D) & (t < 64)
    unit, i = channel // UNIT, channel % UNIT
    word, bit, third, third_bit = _positions(t, i, SIDE, UNIT)
    bitmap = tl.load(side_ptr + _BITMAPS)
    codes = tl.zeros_like(t + channel).to(tl.uint32)
    parts = tl.full([1, 1], 0.25, tl.float32)
    shift = tl.zeros_like(channel)
    for plane in tl.static_range(5):
        mode = (flags >> (8 * SIDE + 2 * plane - 2 if plane else 26 + 2 * SIDE)) & 3
        present, rank = unit_rank(words_ptr + bitmap, mode, unit, (D // UNIT + 31) // 32)
        start = tl.load(side_ptr + _PLANE_A + plane)
        if plane == 1:
            at = start + rank * (2 * UNIT) + third
            field = (tl.load(words_ptr + at, mask=present & inside, other=0) >> third_bit) & 1
            codes |= field << shift
        else:
            at = start + rank * (4 * UNIT) + word
            field = (tl.load(words_ptr + at, mask=present & inside, other=0) >> bit) & 3
            codes |= field << (2 * plane - 2 if plane else 0)
        if plane == 0:
            shift = tl.where(present, 2, 0)
        if plane == 2:
            parts = tl.where(present, 1.0, 0.25)
        bitmap += tl.where(mode == 2, (D // UNIT + 31) // 32, 0)
    low = load_minima(words_ptr + tl.load(side_ptr + _MINIMA), flags, channel, SIDE, D)
    stepped = ((flags >> (20 + 2 * SIDE)) & 3) == 3
    at = words_ptr + tl.load(side_ptr + _SCALES) + (channel >> 3)
    steps = tl.load(at, mask=(channel < D) & stepped, other=0) >> (4 * (channel & 7))
    codes = codes.to(tl.int32).to(tl.float32) + low * tl.where(stepped, parts, 1.0)
    return codes, octaves(signed(steps))


@triton.jit
def load_minima(start_ptr, flags, channel, SIDE: tl.constexpr, D: tl.constexpr):
    """float32 like `channel`."""
    kind = (flags >> (16 + 2 * SIDE)) & 3
    at = start_ptr.to(tl.pointer_type(tl.int8)) + channel
    short = tl.load(at, mask=(channel < D) & (kind == 1), other=0).to(tl.int32)
    at = start_ptr.to(tl.pointer_type(tl.int16)) + channel
    long = tl.load(at, mask=(channel < D) & (kind == 2), other=0).to(tl.int32)
    return (short + long).to(tl.float32)


@triton.jit
def signed(steps):
    """The lowest four bits of each uint32, two's complement, as int32."""
    return ((steps & 15) ^ 8).to(tl.int32) - 8


@triton.jit
def octaves(e):
    """float32(2^(e/8)) of int32 e; the same bits as a table made in float64."""
    first = tl.where((e & 1) != 0, 0x3F8B95C2, 0x3F800000)
    second = tl.where((e & 1) != 0, 0x3FA5FED7, 0x3F9837F0)
    third = tl.where((e & 1) != 0, 0x3FC5672A, 0x3FB504F3)
    fourth = tl.where((e & 1) != 0, 0x3FEAC0C7, 0x3FD744FD)
    low, high = tl.where((e & 2) != 0, second, first), tl.where((e & 2) != 0, fourth, third)
    bits = tl.where((e & 4) != 0, high, low) + ((e >> 3) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _positions(t, i, SIDE: tl.constexpr, UNIT: tl.constexpr):
    """Word in the piece and bit of a code: of a 2-bit plane, then of plane C."""
    e, k1, x = t >> 5, (t >> 4) & 1, t & 15
    if SIDE == 0:
        h, k0, lane = i & 1, x >> 3, x & 7
        column = i >> 1
        word, third = 2 * lane + column, (3 * lane) & 7
    else:
        h, k0, lane = x & 1, (x >> 1) & 1, x >> 2
        column = i & 1
        word, third = UNIT * lane + i, (3 * lane) & 3
        if UNIT == 4:
            third = 2 * lane + (i >> 1)
    j = k0 + 2 * k1
    return word, 16 * h + 2 * (e + 2 * j), third, 16 * h + 4 * j + e + 2 * column


@triton.jit
def unit_rank(bitmap_ptr, mode, unit, WORDS: tl.constexpr):
    """Whether units have a plane, and how many before them do."""
    present = unit < 0
    rank = tl.zeros_like(unit)
    for word in tl.static_range(WORDS):
        stored = tl.load(bitmap_ptr + word, mask=mode == 2, other=0).to(tl.uint32, bitcast=True)
        bits = tl.where(mode == 1, 0xFFFFFFFF, stored)
        bit = (unit & 31).to(tl.uint32)
        own, before = (unit >> 5) == word, (unit >> 5) > word
        present |= own & (((bits >> bit) & 1) != 0)
        lower = tl.where(own, (tl.full([1, 1], 1, tl.uint32) << bit) - 1, 0)
        rank += _popcount(bits & tl.where(before, 0xFFFFFFFF, lower))
    return present, rank


@triton.jit
def _popcount(x):
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def load_scales(words_ptr, row_ptr, steps_ptr, middle, t, SIDE: tl.constexpr):
    """(zero, scale), float32 like t: a value is (code + minimum + zero) · scale · channel step.

    Args:
        steps_ptr: float32 [256], scale of each scale code of V.
        middle: of V, half a level below the middle of its codes.
    """
    kind = (tl.load(row_ptr + _FLAGS) >> (20 + 2 * SIDE)) & 3
    start = words_ptr + tl.load(row_ptr + 8 + 8 * SIDE + _SCALES)
    at = start.to(tl.pointer_type(tl.uint8)) + t
    code = tl.load(at, mask=(kind == 1) & (t < 64), other=0).to(tl.int32)
    log = tl.load(steps_ptr + code)
    at = start.to(tl.pointer_type(tl.float32)) + t
    exact = tl.load(at, mask=(kind == 2) & (t < 64), other=0.0)
    at = start.to(tl.pointer_type(tl.int16)) + 128 + t
    zero = tl.load(at, mask=(kind == 2) & (t < 64), other=0).to(tl.float32)
    zero = tl.where(kind == 1, -middle, zero)
    return zero, tl.where(kind == 1, log, tl.where(kind == 2, exact, 1.0))


@triton.jit
def load_exact(words_ptr, row_ptr, t, channel, inside, SIDE: tl.constexpr, D: tl.constexpr):
    """Tokens that are stored as values: (how many lead the tile, float32 [tokens, channels]).

    Args:
        channel: natural channels.
        inside: which of them to load.
    """
    flags, storage = tl.load(row_ptr + _FLAGS), tl.load(row_ptr + _STORAGE)
    whole = (storage != 0) | (((flags >> (24 + SIDE)) & 1) != 0)
    start = tl.load(row_ptr + tl.where(whole, 8 + 8 * SIDE + _PLANE_A, _K_EXACT + SIDE))
    exact = tl.load(row_ptr + tl.where(whole, _TOKENS, _SINKS))
    at, mask = t * D + channel, inside & (t < exact)
    start_ptr = words_ptr + start
    half = tl.load(
        start_ptr.to(tl.pointer_type(tl.float16)) + at, mask=mask & (storage < 2), other=0.0
    )
    brain = tl.load(
        start_ptr.to(tl.pointer_type(tl.bfloat16)) + at, mask=mask & (storage == 2), other=0.0
    )
    full = tl.load(
        start_ptr.to(tl.pointer_type(tl.float32)) + at, mask=mask & (storage == 3), other=0.0
    )
    return exact, half.to(tl.float32) + brain.to(tl.float32) + full

"""Whole tiles to K and V: a thread owns whole words, and takes the sixteen codes of each apart.

What is the same for all codes of a word, where its unit's pieces lie, is found once for it. Planes
are merged to words of 4-bit fields before that, as attention does (`attention.triton.fragments`).

Rotated V goes back by tensor cores. Its codes are integers and H has only signs, so that the
product is exact, however it is added up; scale and 1/√span then come in one multiplication each.
"""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.tile import (
    load_exact,
    load_minima,
    octaves,
    signed,
    unit_rank,
)
from packkv_kernels.format import tile

__all__ = ["unpack_rotated", "unpack_side"]

_ROW = tl.constexpr(tile.DESCRIPTOR_WORDS)
_FLAGS = tl.constexpr(tile.FLAGS)
_TOKENS = tl.constexpr(tile.TOKENS)
_SINKS = tl.constexpr(tile.SINKS)
_STORAGE = tl.constexpr(tile.STORAGE)
_BITMAPS = tl.constexpr(tile.BITMAPS)
_MINIMA = tl.constexpr(tile.MINIMA)
_SCALES = tl.constexpr(tile.SCALES)
_PLANE_A = tl.constexpr(tile.PLANE_A)

# Tokens of one step over exact rows.
_EXACT_ROWS = tl.constexpr(4)


@triton.jit
def unpack_side(
    words_ptr, bases_ptr, descriptors_ptr, order_ptr, step_ptr, table_ptr, out_ptr,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, SIDE: tl.constexpr,
    UNIT: tl.constexpr, HYBRID: tl.constexpr,
):  # fmt: skip
    """K (SIDE 0), or V that was not rotated, of one page and head; the grid is (pages, HEADS).

    Args:
        words_ptr, bases_ptr, descriptors_ptr: the arena; int64 [slots, HEADS]; int32 rows.
        order_ptr, step_ptr: [HEADS, D], of K.
        table_ptr: int32, page slots in order.
        out_ptr: [HEADS, pages · 64, D] of any float type, written; rows past a page's tokens are
            0.
        UNIT: channels that share a width.
        HYBRID: no token has a scale of its own.
    """
    page, head = tl.program_id(0), tl.program_id(1)
    section = tl.load(table_ptr + page).to(tl.int64) * HEADS + head
    words_ptr += tl.load(bases_ptr + section)
    row_ptr = descriptors_ptr + section * _ROW
    out_ptr += (head.to(tl.int64) * tl.num_programs(0) + page) * (64 * D)
    flags = tl.load(row_ptr + _FLAGS)
    exact = _exact_rows(row_ptr, flags, SIDE)
    tokens = tl.load(row_ptr + _TOKENS)
    scaled = ((flags >> (20 + 2 * SIDE)) & 3) == 2
    scales_ptr = words_ptr + tl.load(row_ptr + 8 + 8 * SIDE + _SCALES)

    LANES: tl.constexpr = 8 if SIDE == 0 else 4
    COLUMNS: tl.constexpr = D_PAD // 2 if SIDE == 0 else D_PAD
    lane, column = tl.arange(0, LANES)[:, None], tl.arange(0, COLUMNS)[None, :]
    low_words, high_words, whole = _load_nibbles(
        words_ptr, row_ptr, flags, lane, column, SIDE, D, UNIT
    )
    channel = 2 * column if SIDE == 0 else column
    first = _channel(
        words_ptr, row_ptr, flags, scales_ptr, order_ptr + head * D, step_ptr + head * D,
        channel, whole, SIDE, D,
    )  # fmt: skip
    second = first
    if SIDE == 0:
        second = _channel(
            words_ptr, row_ptr, flags, scales_ptr, order_ptr + head * D, step_ptr + head * D,
            channel + 1, whole, SIDE, D,
        )  # fmt: skip
    for field in tl.static_range(16):
        # h and j, where the field is in its word; e, which word
        place = 16 * (field & 1) + 4 * ((field >> 1) & 3)
        code = (low_words[field >> 3] >> place) & 15
        code |= ((high_words[field >> 3] >> place) & 15) << 4
        t = 32 * (field >> 3) + 16 * ((field >> 2) & 1)
        t += 8 * ((field >> 1) & 1) + lane if SIDE == 0 else 4 * lane + (field & 3)
        low, octave, step, target = first
        if SIDE == 0 and field & 1 == 1:
            low, octave, step, target = second
        x = code.to(tl.int32).to(tl.float32) + low
        if not HYBRID:
            at = scales_ptr.to(tl.pointer_type(tl.int16)) + 128 + t
            zero = tl.load(at, mask=scaled, other=0).to(tl.float32)
            at = scales_ptr.to(tl.pointer_type(tl.float32)) + t
            x = (x + zero) * tl.load(at, mask=scaled, other=0.0)
        if SIDE == 0:
            x = x * octave * step
        inside = (target < D) & (t >= exact)
        x = tl.where(t < tokens, x, 0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + t * D + target, x, mask=inside)
    _copy_exact(words_ptr, row_ptr, out_ptr, exact, D, D_PAD, SIDE)


@triton.jit
def _exact_rows(row_ptr, flags, SIDE: tl.constexpr):
    """How many tokens of a side are stored as values, from the first on."""
    whole = (tl.load(row_ptr + _STORAGE) != 0) | (((flags >> (24 + SIDE)) & 1) != 0)
    return tl.load(row_ptr + tl.where(whole, _TOKENS, _SINKS))


@triton.jit
def _load_nibbles(
    words_ptr, row_ptr, flags, lane, column, SIDE: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    """(bits 0-3, bits 4-7, whether minima count whole steps): words for e = 0 and for e = 1."""
    side_ptr = row_ptr + 8 + 8 * SIDE
    PER_UNIT: tl.constexpr = UNIT // 2 if SIDE == 0 else UNIT
    unit, i = column // PER_UNIT, column % PER_UNIT
    inside = unit < D // UNIT
    word = PER_UNIT * lane + i
    third = (3 * lane) & (7 if SIDE == 0 else 3)
    if SIDE == 1 and UNIT == 4:
        third = 2 * lane + (i >> 1)
    bitmap = words_ptr + tl.load(side_ptr + _BITMAPS)
    a, a_present, bitmap = _plane(
        words_ptr, side_ptr, bitmap, flags >> (26 + 2 * SIDE), 0, unit, word, inside, D, UNIT,
        4 * UNIT,
    )  # fmt: skip
    c, _, bitmap = _plane(
        words_ptr, side_ptr, bitmap, flags >> (8 * SIDE), 1, unit, third, inside, D, UNIT,
        2 * UNIT,
    )  # fmt: skip
    b, b_present, bitmap = _plane(
        words_ptr, side_ptr, bitmap, flags >> (8 * SIDE + 2), 2, unit, word, inside, D, UNIT,
        4 * UNIT,
    )  # fmt: skip
    h1, _, bitmap = _plane(
        words_ptr, side_ptr, bitmap, flags >> (8 * SIDE + 4), 3, unit, word, inside, D, UNIT,
        4 * UNIT,
    )  # fmt: skip
    h2, _, bitmap = _plane(
        words_ptr, side_ptr, bitmap, flags >> (8 * SIDE + 6), 4, unit, word, inside, D, UNIT,
        4 * UNIT,
    )  # fmt: skip
    # bit 2 of a field where its unit has A, else bit 0; of every second column two bits further up
    c = tl.where((i & 1) != 0, c, c << 2)
    even_c, odd_c = c & 0x44444444, (c >> 1) & 0x44444444
    even_c = tl.where(a_present, even_c, even_c >> 2)
    odd_c = tl.where(a_present, odd_c, odd_c >> 2)
    even = (a & 0x33333333) | ((b << 2) & 0xCCCCCCCC) | even_c
    odd = ((a >> 2) & 0x33333333) | (b & 0xCCCCCCCC) | odd_c
    even_high = (h1 & 0x33333333) | ((h2 << 2) & 0xCCCCCCCC)
    odd_high = ((h1 >> 2) & 0x33333333) | (h2 & 0xCCCCCCCC)
    return (even, odd), (even_high, odd_high), b_present


@triton.jit
def _plane(
    words_ptr, side_ptr, bitmap_ptr, mode, PLANE: tl.constexpr, unit, word, inside,
    D: tl.constexpr, UNIT: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """(words of a plane, 0 where a unit has none, which units do, where the next bitmap is)."""
    mode = mode & 3
    present, rank = unit_rank(bitmap_ptr, mode, unit, (D // UNIT + 31) // 32)
    present = present & inside
    at = words_ptr + tl.load(side_ptr + _PLANE_A + PLANE) + rank * PIECE + word
    words = tl.load(at, mask=present, other=0)
    return words, present, bitmap_ptr + tl.where(mode == 2, (D // UNIT + 31) // 32, 0)


@triton.jit
def _channel(
    words_ptr, row_ptr, flags, scales_ptr, order_ptr, step_ptr, channel, whole,
    SIDE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """(minimum in steps, channel step, step aimed at, where it goes) of channels; D: nowhere."""
    low = load_minima(
        words_ptr + tl.load(row_ptr + 8 + 8 * SIDE + _MINIMA), flags, channel, SIDE, D
    )  # fmt: skip
    octave, step, target = low, low, tl.where(channel < D, channel, D)
    if SIDE == 0:
        stepped = ((flags >> 20) & 3) == 3
        steps = tl.load(scales_ptr + (channel >> 3), mask=(channel < D) & stepped, other=0)
        octave = octaves(signed(steps >> (4 * (channel & 7)).to(tl.uint32)))
        low = low * tl.where(stepped & (whole == 0), 0.25, 1.0)
        target = tl.load(order_ptr + channel, mask=channel < D, other=D).to(tl.int32)
        step = tl.load(step_ptr + target, mask=target < D, other=0.0)
    return low, octave, step, target


@triton.jit
def _copy_exact(
    words_ptr, row_ptr, out_ptr, exact, D: tl.constexpr, D_PAD: tl.constexpr, SIDE: tl.constexpr
):  # fmt: skip
    """The rows that are stored as values, if there are any."""
    channel = tl.arange(0, D_PAD)[None, :]
    for start in range(0, exact, _EXACT_ROWS):
        t = start + tl.arange(0, _EXACT_ROWS)[:, None]
        _, kept = load_exact(words_ptr, row_ptr, t, channel, channel < D, SIDE, D)
        kept = kept.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + t * D + channel, kept, mask=(channel < D) & (t < exact))


@triton.jit
def unpack_rotated(
    words_ptr, bases_ptr, descriptors_ptr, steps_ptr, middle_ptr, table_ptr, out_ptr,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, UNIT: tl.constexpr,
    SPAN: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """V of one page and head, rotated back; grid and arguments like those of `unpack_side`.

    Args:
        steps_ptr, middle_ptr: float32 [HEADS, 256] and [HEADS], scales and middle codes.
        SPAN, FACTOR: of the rotation: size of the Hadamard matrix, and 1 / √SPAN.
    """
    page, head = tl.program_id(0), tl.program_id(1)
    section = tl.load(table_ptr + page).to(tl.int64) * HEADS + head
    words_ptr += tl.load(bases_ptr + section)
    row_ptr = descriptors_ptr + section * _ROW
    out_ptr += (head.to(tl.int64) * tl.num_programs(0) + page) * (64 * D)
    flags = tl.load(row_ptr + _FLAGS)
    exact, tokens = _exact_rows(row_ptr, flags, 1), tl.load(row_ptr + _TOKENS)
    lane, column = tl.arange(0, 4)[:, None], tl.arange(0, D_PAD)[None, :]
    words, _, _ = _load_nibbles(words_ptr, row_ptr, flags, lane, column, 1, D, UNIT)
    # axes [lane, channel, j, h, e] of codes of token 32 e + 16 (j >> 1) + 4 lane + 2 (j & 1) + h
    codes = tl.join(_eight_codes(words[0]), _eight_codes(words[1]))
    CHUNKS: tl.constexpr = D_PAD // 16
    codes = tl.reshape(codes, (4, CHUNKS, 16, 2, 2, 2, 2))
    codes = tl.permute(codes, (1, 6, 4, 0, 3, 5, 2))
    codes = tl.reshape(codes, (CHUNKS * 64, 16))
    x = tl.dot(codes, _signs(16 if SPAN > 16 else SPAN))
    x = tl.reshape(x, (CHUNKS, 64, 16))
    # tokens of rows, 64 of each chunk: e, k1, lane, k0, h
    t = tl.arange(0, 64)[None, :, None]
    for stage in tl.static_range(SPAN.bit_length() - 1):
        if (16 << stage) < SPAN:
            x = _butterflies(x, 1 << stage)
    channel = tl.arange(0, CHUNKS)[:, None, None] * 16 + tl.arange(0, 16)[None, None, :]
    # all codes less the middle: of H only the first row has a sum, and it is the span
    middle = tl.load(middle_ptr + head)
    x = x - tl.where(channel % SPAN == 0, middle * SPAN, 0.0)
    bytes_ptr = (words_ptr + tl.load(row_ptr + 16 + _SCALES)).to(tl.pointer_type(tl.uint8))
    scaled = (t >= exact) & (t < tokens)
    code = tl.load(bytes_ptr + t, mask=scaled, other=0).to(tl.int32)
    scale = tl.load(steps_ptr + head * 256 + code, mask=scaled, other=0.0)
    x = (x * scale * FACTOR).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + t * D + channel, x, mask=(channel < D) & (t >= exact))
    _copy_exact(words_ptr, row_ptr, out_ptr, exact, D, D_PAD, 1)


@triton.jit
def _eight_codes(words):
    """fp16 [..., j & 1, j >> 1, h] of the eight fields of each word."""
    lower = tl.join(tl.join(_code(words, 0), _code(words, 4)),
        tl.join(_code(words, 8), _code(words, 12)))  # fmt: skip
    upper = tl.join(tl.join(_code(words, 16), _code(words, 20)),
        tl.join(_code(words, 24), _code(words, 28)))  # fmt: skip
    return tl.join(lower, upper)


@triton.jit
def _code(words, SHIFT: tl.constexpr):
    """fp16 of one field, without a conversion: 1024 + code is one bit pattern or another."""
    bits = ((words >> SHIFT) & 15) | 0x6400
    return bits.to(tl.uint16).to(tl.float16, bitcast=True) - 1024.0


@triton.jit
def _signs(SPAN: tl.constexpr):
    """fp16 [16, 16]: Hadamard matrices of size SPAN along the diagonal, without their factor."""
    i, k = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    odd = i & k & (SPAN - 1)
    odd = (odd ^ (odd >> 2)) & 3
    odd = (odd ^ (odd >> 1)) & 1
    sign = tl.where(odd != 0, -1.0, 1.0)
    return tl.where(i // SPAN == k // SPAN, sign, 0.0).to(tl.float16)


@triton.jit
def _butterflies(x, WIDTH: tl.constexpr):
    """One stage over the first axis of [chunks, 64, 16]."""
    CHUNKS: tl.constexpr = x.shape[0]
    pairs = tl.reshape(x, (CHUNKS // (2 * WIDTH), 2, WIDTH, 64, 16))
    a, b = tl.split(tl.permute(pairs, (0, 2, 3, 4, 1)))
    pairs = tl.permute(tl.join(a + b, a - b), (0, 4, 1, 2, 3))
    return tl.reshape(pairs, (CHUNKS, 64, 16))

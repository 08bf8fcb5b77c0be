"""Encoding: K and V of one (layer, block, KV head) to a section and its descriptor, in one pass.

A program writes its section to a slot of its own, large enough for any section: offsets inside a
section follow from its own codes, and those between sections from a scan over the lengths, after
which `gather_sections` closes the gaps.
"""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.integers import above_minima, rotated_codes, round_even
from packkv_kernels.compress.triton.planes import (
    bitmap_word,
    plane_mode,
    unit_planes,
    write_plane,
)
from packkv_kernels.format import tile

__all__ = ["encode_sections", "gather_sections"]

_ROW = tl.constexpr(tile.DESCRIPTOR_WORDS)


@triton.jit
def encode_sections(
    keys_ptr, values_ptr, order_ptr, inv_step_ptr, levels_ptr, inverse_ptr, thresholds_ptr,
    k_scales_ptr, k_zeros_ptr, v_scales_ptr, v_zeros_ptr, words_ptr, descriptors_ptr,
    tokens, sinks, slot_words,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, UNIT_V: tl.constexpr,
    HYBRID: tl.constexpr, SPAN: tl.constexpr, FACTOR: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """One section; the grid is (blocks · HEADS, layers).

    Args:
        keys_ptr, values_ptr: [layers, tokens, HEADS, D], finite and within ±65,504.
        order_ptr, inv_step_ptr: int16, float32 [layers, HEADS, D], of K.
        levels_ptr: int32 [layers, HEADS], of V; read if HYBRID.
        inverse_ptr, thresholds_ptr: float32 [5, 256] by width of the levels, and [256].
        k_scales_ptr, k_zeros_ptr, v_scales_ptr, v_zeros_ptr: float32 [layers, tokens], read
            unless HYBRID.
        words_ptr: uint32 [layers, blocks, HEADS, slot_words], written from each slot's start.
        descriptors_ptr: int32 [layers, blocks, HEADS, DESCRIPTOR_WORDS], written.
        sinks: exact tokens of block 0.
    """
    block, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    layer = tl.program_id(1).to(tl.int64)
    slot = layer * tl.num_programs(0) + tl.program_id(0)
    words_ptr += slot * slot_words
    count = tl.minimum(tokens - block * 64, 64)
    exact = tl.where(block == 0, tl.minimum(sinks, count), 0)
    t, channel = tl.arange(0, 64)[:, None], tl.arange(0, D_PAD)[None, :]
    inexact = (t >= exact) & (t < count)
    order_ptr += (layer * HEADS + head) * D
    order = tl.load(order_ptr + channel, mask=channel < D, other=0).to(tl.int32)
    first = layer * tokens + block * 64
    row = ((first + t) * HEADS + head) * D
    inside = (t < count) & (channel < D)
    keys = tl.load(keys_ptr + row + order, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(values_ptr + row + channel, mask=inside, other=0.0).to(tl.float32)

    k_scale, k_zero = tl.zeros([64, 1], tl.float32), tl.zeros([64, 1], tl.float32)
    v_scale, v_zero = tl.zeros([64, 1], tl.float32), tl.zeros([64, 1], tl.float32)
    if HYBRID:
        inv_step_ptr += (layer * HEADS + head) * D
        inv_step = tl.load(inv_step_ptr + order, mask=channel < D, other=0.0)
        codes, low, widest, k_fits = above_minima(
            round_even(keys * inv_step), inexact, channel, D
        )  # fmt: skip
        levels = tl.load(levels_ptr + layer * HEADS + head)
        width = tl.where(levels == 16, 4, levels // 4 + 1)
        v_codes, v_log, v_fits = rotated_codes(
            values, inexact, levels, inverse_ptr + width * 256, thresholds_ptr, channel,
            D, D_PAD, SPAN, FACTOR, SHARE,
        )  # fmt: skip
        v_low = tl.zeros([D_PAD], tl.int32)
        # a code that only the planes of these levels hold
        v_widest = tl.full([D_PAD], 1, tl.int32) * (levels - 1)
    else:
        k_scale, k_zero, zeros_fit = _load_scales(k_scales_ptr, k_zeros_ptr, first, t, inexact)
        codes, low, widest, k_fits = above_minima(
            _packkv_integers(keys, k_scale, k_zero, inexact), inexact, channel, D
        )  # fmt: skip
        k_fits &= zeros_fit
        v_scale, v_zero, zeros_fit = _load_scales(v_scales_ptr, v_zeros_ptr, first, t, inexact)
        v_codes, v_low, v_widest, v_fits = above_minima(
            _packkv_integers(values, v_scale, v_zero, inexact), inexact, channel, D
        )  # fmt: skip
        v_fits &= zeros_fit
        v_log = tl.zeros([64, 1], tl.int32)

    k_planes = unit_planes(tl.where(k_fits, widest, 0), D, 4)
    v_planes = unit_planes(tl.where(v_fits, v_widest, 0), D, UNIT_V)
    k_kind = _minima_kind(low, k_fits)
    v_kind = k_kind * 0 if HYBRID else _minima_kind(v_low, v_fits)
    head_end, flags, v_bitmaps = _write_head(words_ptr, k_planes, v_planes, count | exact << 8,
        k_kind, v_kind, k_fits, v_fits, D, UNIT_V, HYBRID)  # fmt: skip
    exact_words = (exact * D // 2 + 3) // 4 * 4
    _write_halves(words_ptr + head_end, keys, t * D + order, exact, channel, D)
    _write_halves(words_ptr + head_end + exact_words, values, t * D + channel, exact, channel, D)
    row_ptr = descriptors_ptr + slot * _ROW
    at = head_end + 2 * exact_words
    at = _write_side(
        words_ptr, row_ptr + 8, at, keys, t * D + order, count, channel, codes, low, v_log,
        k_scale, k_zero, k_planes, k_kind, k_fits, 0, D, 4, 0 if HYBRID else 2,
    )  # fmt: skip
    at = _write_side(
        words_ptr, row_ptr + 16, at, values, t * D + channel, count, channel, v_codes, v_low,
        v_log, v_scale, v_zero, v_planes, v_kind, v_fits, 1, D, UNIT_V, 1 if HYBRID else 2,
    )  # fmt: skip
    i = tl.arange(0, 8)
    extent = tl.where(i == 0, flags, tl.where(i == 1, count, tl.where(i == 2, exact, 0)))
    extent = tl.where(i == 3, at, tl.where(i == 5, D, extent))
    extent = tl.where(i == 6, head_end, tl.where(i == 7, head_end + exact_words, extent))
    tl.store(row_ptr + i, extent)
    tl.store(row_ptr + 8, 2)
    tl.store(row_ptr + 16, v_bitmaps)


@triton.jit
def _load_scales(scales_ptr, zeros_ptr, first, t, inexact):
    """(scale, zero) float32 [64, 1], 0 for tokens without codes, and whether zeros fit int16."""
    scale = tl.load(scales_ptr + first + t, mask=inexact, other=0.0)
    zero = tl.load(zeros_ptr + first + t, mask=inexact, other=0.0)
    # written so that NaN does not fit
    fits = (zero >= -32768) & (zero <= 32767)
    fits_all = tl.min(tl.min(fits.to(tl.int32), 0), 0) != 0
    return scale, tl.where(fits, zero, 0.0), fits_all


@triton.jit
def _packkv_integers(values, scale, zero, inexact):
    return round_even(tl.math.div_rn(values, tl.where(inexact, scale, 1.0))) - zero


@triton.jit
def _minima_kind(low, fits):
    """Bytes of a minimum; 0 for a raw tile."""
    small = (tl.min(low, 0) >= -128) & (tl.max(low, 0) <= 127)
    return tl.where(fits, tl.where(small, 1, 2), 0)


@triton.jit
def _write_head(
    words_ptr, k_planes, v_planes, extent, k_kind, v_kind, k_fits, v_fits,
    D: tl.constexpr, UNIT_V: tl.constexpr, HYBRID: tl.constexpr,
):  # fmt: skip
    """Writes flags, extent and bitmaps; returns (end, flags, where the bitmaps of V begin)."""
    i = tl.arange(0, 32)
    flags = k_kind << 16 | v_kind << 18
    flags |= tl.where(k_fits, 0 if HYBRID else 2 << 20, 1 << 24)
    flags |= tl.where(v_fits, 1 << 22 if HYBRID else 2 << 22, 1 << 25)
    words = tl.zeros([32], tl.uint32)
    end = 2 + flags * 0
    for plane in tl.static_range(4):
        mode, _ = plane_mode(k_planes[plane], D // 4)
        flags |= mode << (2 * plane)
        words, end = _add_bitmap(words, end, i, k_planes[plane], mode, (D // 4 + 31) // 32)
    v_bitmaps = end
    for plane in tl.static_range(4):
        mode, _ = plane_mode(v_planes[plane], D // UNIT_V)
        flags |= mode << (8 + 2 * plane)
        words, end = _add_bitmap(words, end, i, v_planes[plane], mode, (D // UNIT_V + 31) // 32)
    words = tl.where(i == 0, flags.to(tl.uint32), words)
    words = tl.where(i == 1, extent.to(tl.uint32), words)
    end = (end + 3) // 4 * 4
    tl.store(words_ptr + i, words, mask=i < end)
    return end, flags, v_bitmaps


@triton.jit
def _add_bitmap(words, end, i, present, mode, WORDS: tl.constexpr):
    for word in tl.static_range(WORDS):
        here = (i == end + word) & (mode == 2)
        words = tl.where(here, bitmap_word(present, word), words)
    return words, end + tl.where(mode == 2, WORDS, 0)


@triton.jit
def _write_halves(words_ptr, values, at, count, channel, D: tl.constexpr):
    """Writes the first `count` tokens of values [64, channels] as fp16, zeros to 16 bytes."""
    halves_ptr = words_ptr.to(tl.pointer_type(tl.float16))
    t = tl.arange(0, 64)[:, None]
    tl.store(halves_ptr + at, values.to(tl.float16), mask=(t < count) & (channel < D))
    pad = count * D + tl.arange(0, 8)
    zeros = tl.zeros([8], tl.float16)
    tl.store(halves_ptr + pad, zeros, mask=pad < (count * D + 7) // 8 * 8)


@triton.jit
def _write_side(
    words_ptr, row_ptr, at, values, natural, count, channel, codes, low, log, scale, zero,
    planes, kind, fits, SIDE: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr,
    SCALES: tl.constexpr,
):  # fmt: skip
    """Writes minima, scales and planes of one side, or its values; returns their end in words.

    Args:
        row_ptr: the side's part of the descriptor, written.
        natural: where each value goes when it is stored as one.
        SCALES: NO_SCALES, LOG_SCALES or FLOAT_SCALES.
    """
    _write_halves(words_ptr + at, values, natural, tl.where(fits, 0, count), channel, D)
    start = at
    i = tl.arange(0, 8)
    # of a raw tile all parts but the values are absent
    row = tl.where((i == 3) & (fits == 0), at, 0)
    c = tl.arange(0, codes.shape[1])
    shorts_ptr = (words_ptr + at).to(tl.pointer_type(tl.int16))
    bytes_ptr = (words_ptr + at).to(tl.pointer_type(tl.int8))
    tl.store(bytes_ptr + c, low.to(tl.int8), mask=(kind == 1) & (c < (D + 15) // 16 * 16))
    tl.store(shorts_ptr + c, low.to(tl.int16), mask=(kind == 2) & (c < (D + 7) // 8 * 8))
    row = tl.where((i == 1) & (kind != 0), at, row)
    at += (D * kind // 4 + 3) // 4 * 4
    t = tl.arange(0, 64)[:, None]
    if SCALES == 1:
        bytes_ptr = (words_ptr + at).to(tl.pointer_type(tl.uint8))
        tl.store(bytes_ptr + t, log.to(tl.uint8), mask=fits & (t < 64))
        row = tl.where((i == 2) & fits, at, row)
        at += 16
    if SCALES == 2:
        tl.store((words_ptr + at).to(tl.pointer_type(tl.float32)) + t, scale, mask=fits & (t < 64))
        shorts_ptr = (words_ptr + at + 64).to(tl.pointer_type(tl.int16))
        tl.store(shorts_ptr + t, zero.to(tl.int16), mask=fits & (t < 64))
        row = tl.where((i == 2) & fits, at, row)
        at += 96
    every = (tl.arange(0, codes.shape[1] // UNIT) < D // UNIT).to(tl.int32)
    every = tl.where(fits, every, 0)
    write_plane(words_ptr + at, codes, every, 0, 2, SIDE, UNIT)
    row = tl.where((i == 3) & fits, at, row)
    at += D * 4
    for plane in tl.static_range(4):
        mode, pieces = plane_mode(planes[plane], D // UNIT)
        if plane == 0:
            write_plane(words_ptr + at, codes, planes[plane], 2, 1, SIDE, UNIT)
        else:
            write_plane(words_ptr + at, codes, planes[plane], 2 * plane, 2, SIDE, UNIT)
        row = tl.where((i == 4 + plane) & (mode != 0), at, row)
        at += pieces * (2 * UNIT if plane == 0 else 4 * UNIT)
    tl.store(row_ptr + i, row, mask=i > 0)
    return tl.where(fits, at, start + (count * D // 2 + 3) // 4 * 4)


@triton.jit
def gather_sections(words_ptr, starts_ptr, out_ptr, slot_words, WORDS: tl.constexpr):
    """Copies slot program_id(0) to where the scan put it; program_id(1) is a run of WORDS.

    Args:
        words_ptr: uint32 [sections, slot_words].
        starts_ptr: int64 [sections + 1], exclusive sums of the lengths.
        out_ptr: uint32, as many words as all sections have together at least.
    """
    section = tl.program_id(0).to(tl.int64)
    start, end = tl.load(starts_ptr + section), tl.load(starts_ptr + section + 1)
    i = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    words = tl.load(words_ptr + section * slot_words + i, mask=i < end - start, other=0)
    tl.store(out_ptr + start + i, words, mask=i < end - start)

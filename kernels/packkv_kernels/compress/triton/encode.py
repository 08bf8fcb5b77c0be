"""Encoding: K and V of one (layer, block, KV head) to a section and its descriptor.

A program writes its section to a slot of its own, large enough for any section: offsets inside a
section follow from its own codes, and those between sections from a scan over the lengths, after
which `gather_sections` closes the gaps.
"""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.channels import channel_codes, largest_codes, ranges_fit
from packkv_kernels.compress.triton.parts import (
    minima_kind,
    write_halves,
    write_head,
    write_minima,
    write_scales,
    write_steps,
)
from packkv_kernels.compress.triton.planes import (
    channel_range,
    plane_mode,
    unit_planes,
    write_planes,
)
from packkv_kernels.format import tile

__all__ = ["encode_sections", "gather_sections"]

_ROW = tl.constexpr(tile.DESCRIPTOR_WORDS)


@triton.jit
def encode_sections(
    keys_ptr, values_ptr, order_ptr, inv_step_ptr, range_bounds_ptr, step_bounds_ptr,
    levels_ptr, codes_ptr, scale_codes_ptr, k_scales_ptr, k_zeros_ptr, v_scales_ptr, v_zeros_ptr,
    words_ptr, descriptors_ptr, tokens, sinks, slot_words,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, UNIT_V: tl.constexpr,
    HYBRID: tl.constexpr,
):  # fmt: skip
    """One section; the grid is (blocks · HEADS, layers).

    Args:
        keys_ptr, values_ptr: [layers, tokens, HEADS, D], finite and within ±65,504.
        order_ptr, inv_step_ptr: int16, float32 [layers, HEADS, D], of K.
        range_bounds_ptr, step_bounds_ptr: of `compress.scales`; these and the next three are read
            if HYBRID.
        levels_ptr: int32 [layers, HEADS], of V.
        codes_ptr, scale_codes_ptr: of `quantise_values`.
        k_scales_ptr, k_zeros_ptr, v_scales_ptr, v_zeros_ptr: float32 [layers, tokens], of
            `token_scales`, read unless HYBRID.
        words_ptr: uint32 [layers, blocks, HEADS, slot_words], written from each slot's start.
        descriptors_ptr: int32 [layers, blocks, HEADS, DESCRIPTOR_WORDS], written.
        sinks: exact tokens of block 0.
    """
    block, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    layer = tl.program_id(1).to(tl.int64)
    slot = layer * tl.num_programs(0) + tl.program_id(0)
    words_ptr += slot * slot_words
    row_ptr = descriptors_ptr + slot * _ROW
    end = tl.minimum(tokens - block * 64, 64)
    begin = tl.where(block == 0, tl.minimum(sinks, end), 0)
    first = layer * tokens + block * 64
    keys_ptr += (first * HEADS + head) * D
    values_ptr += (first * HEADS + head) * D
    of_head = layer * HEADS + head
    order_ptr += of_head * D
    inv_step_ptr += of_head * D
    k_scales_ptr += first
    k_zeros_ptr += first
    v_scales_ptr += first
    v_zeros_ptr += first
    scale_codes_ptr += of_head * tokens + block * 64
    codes_ptr += (of_head * tokens + block * 64) * D

    K_KIND: tl.constexpr = 0 if HYBRID else 1
    k_low0, k_high0, k_low1, k_high1 = channel_range(
        keys_ptr, HEADS * D, order_ptr, inv_step_ptr, k_scales_ptr, k_zeros_ptr, begin, end,
        D, D_PAD, 0, K_KIND,
    )  # fmt: skip
    t = tl.arange(0, 64)
    inexact = (t >= begin) & (t < end)
    pair = tl.arange(0, D_PAD // 2)
    exists = 2 * pair < D
    k_step0, k_step1 = tl.zeros_like(pair), tl.zeros_like(pair)
    if HYBRID:
        k_fits = ranges_fit(k_low0, k_high0, range_bounds_ptr, exists)
        k_fits &= ranges_fit(k_low1, k_high1, range_bounds_ptr, exists)
        span = tl.maximum(k_high0 - k_low0, k_high1 - k_low1)
        span = tl.max(tl.reshape(tl.where(k_fits, span, 0.0), (D_PAD // 4, 2)), 1)
        k_largest = largest_codes(span, range_bounds_ptr)
        k_top = tl.reshape(tl.broadcast_to(k_largest[:, None], (D_PAD // 4, 2)), (D_PAD // 2,))
        k_minimum0, k_low0, k_step0, k_inverse0 = channel_codes(
            k_low0, k_high0, k_top, step_bounds_ptr
        )
        k_minimum1, k_low1, k_step1, k_inverse1 = channel_codes(
            k_low1, k_high1, k_top, step_bounds_ptr
        )
        k_fits &= _small(k_minimum0, exists) & _small(k_minimum1, exists)
        code = tl.load(scale_codes_ptr + t, mask=inexact, other=0).to(tl.int32)
        v_fits = tl.max(code, 0) <= 255
        v_low = tl.zeros([D_PAD], tl.float32)
        # what the widest code of these levels needs, whatever the codes are
        levels = tl.load(levels_ptr + of_head)
        v_widest = tl.zeros([D_PAD], tl.int32) + (levels - 1)
        v_codes_ptr, v_stride = codes_ptr, D
    else:
        k_fits = _fit(k_low0, k_high0, exists) & _fit(k_low1, k_high1, exists)
        k_fits &= _zeros_fit(k_zeros_ptr, t, inexact)
        span = tl.where(k_fits, tl.maximum(k_high0 - k_low0, k_high1 - k_low1), 0.0)
        k_largest = tl.max(tl.reshape(span, (D_PAD // 4, 2)), 1).to(tl.int32)
        k_minimum0, k_minimum1 = k_low0, k_low1
        k_inverse0, k_inverse1, k_top = k_low0, k_low0, pair
        v_low, v_high, _, _ = channel_range(
            values_ptr, HEADS * D, order_ptr, inv_step_ptr, v_scales_ptr, v_zeros_ptr, begin, end,
            D, D_PAD, 1, 1,
        )  # fmt: skip
        v_fits = _fit(v_low, v_high, tl.arange(0, D_PAD) < D)
        v_fits &= _zeros_fit(v_zeros_ptr, t, inexact)
        v_widest = tl.where(v_fits, v_high - v_low, 0.0).to(tl.int32)
        code = t * 0
        v_codes_ptr, v_stride = values_ptr, HEADS * D
    k_low0, k_low1 = tl.where(k_fits, k_low0, 0.0), tl.where(k_fits, k_low1, 0.0)
    k_minimum0 = tl.where(k_fits, k_minimum0, 0.0)
    k_minimum1 = tl.where(k_fits, k_minimum1, 0.0)
    v_low = tl.where(v_fits, v_low, 0.0)
    k_planes = unit_planes(tl.where(k_fits, k_largest, 0), D // 4)
    v_widest = tl.where(v_fits, v_widest, 0)
    v_planes = unit_planes(
        tl.max(tl.reshape(v_widest, (D_PAD // UNIT_V, UNIT_V)), 1), D // UNIT_V
    )  # fmt: skip
    k_kind = tl.where(k_fits, tl.maximum(minima_kind(k_minimum0), minima_kind(k_minimum1)), 0)
    v_kind = k_kind * 0 if HYBRID else tl.where(v_fits, minima_kind(v_low), 0)
    at, flags, v_bitmaps = write_head(
        words_ptr, k_planes, v_planes, end | begin << 8, k_kind, v_kind, k_fits, v_fits,
        D, UNIT_V, HYBRID,
    )  # fmt: skip
    i = tl.arange(0, 8)
    extent = tl.where(i == 0, flags, tl.where(i == 1, end, tl.where(i == 2, begin, 0)))
    extent = tl.where(i == 5, D, tl.where(i == 6, at, extent))
    at = write_halves(words_ptr, at, keys_ptr, HEADS * D, begin, D, D_PAD)
    extent = tl.where(i == 7, at, extent)
    at = write_halves(words_ptr, at, values_ptr, HEADS * D, begin, D, D_PAD)

    minima = at
    write_minima(words_ptr + at, k_minimum0, 2 * pair, k_kind, D)
    write_minima(words_ptr + at, k_minimum1, 2 * pair + 1, k_kind, D)
    at += (D * k_kind // 4 + 3) // 4 * 4
    scales = at
    if HYBRID:
        at = write_steps(words_ptr, at, k_step0, k_step1, k_fits, D)
    else:
        at = write_scales(words_ptr, at, k_scales_ptr, k_zeros_ptr, inexact, k_fits)
    starts, at = _lay_out(row_ptr + 8, at, 2, minima, k_kind, scales, k_fits, k_planes,
        D, 4)  # fmt: skip
    write_planes(
        words_ptr, starts, k_planes, keys_ptr, HEADS * D, order_ptr, inv_step_ptr, k_scales_ptr,
        k_zeros_ptr, k_low0, k_low1, k_inverse0, k_inverse1, k_top.to(tl.float32),
        begin, end, k_fits, D, D_PAD, 0, K_KIND, 4,
    )  # fmt: skip
    at = write_halves(
        words_ptr, at, keys_ptr, HEADS * D, tl.where(k_fits, 0, end), D, D_PAD
    )  # fmt: skip

    minima = at
    write_minima(words_ptr + at, v_low, tl.arange(0, D_PAD), v_kind, D)
    at += (D * v_kind // 4 + 3) // 4 * 4
    scales = at
    if HYBRID:
        bytes_ptr = (words_ptr + at).to(tl.pointer_type(tl.uint8))
        tl.store(bytes_ptr + t, code.to(tl.uint8), mask=v_fits & (t < 64))
        at += tl.where(v_fits, 16, 0)
    else:
        at = write_scales(words_ptr, at, v_scales_ptr, v_zeros_ptr, inexact, v_fits)
    starts, at = _lay_out(row_ptr + 16, at, v_bitmaps, minima, v_kind, scales, v_fits, v_planes,
        D, UNIT_V)  # fmt: skip
    write_planes(
        words_ptr, starts, v_planes, v_codes_ptr, v_stride, order_ptr, inv_step_ptr, v_scales_ptr,
        v_zeros_ptr, v_low, v_low, v_low, v_low, v_low, begin, end, v_fits,
        D, D_PAD, 1, 2 if HYBRID else 1, UNIT_V,
    )  # fmt: skip
    at = write_halves(
        words_ptr, at, values_ptr, HEADS * D, tl.where(v_fits, 0, end), D, D_PAD
    )  # fmt: skip
    tl.store(row_ptr + i, tl.where(i == 3, at, extent))


@triton.jit
def _fit(low, high, exists):
    """Whether codes fit 8 bits and minima int16, over the channels that exist."""
    # written so that NaN does not fit
    fits = (low >= -32768) & (low <= 32767) & (high - low <= 255)
    return tl.min((fits | (exists == 0)).to(tl.int32), 0) != 0


@triton.jit
def _small(minimum, exists):
    """Whether the minima of channels that exist fit int16, the way that the codec counts."""
    fits = tl.abs(minimum) <= 32767
    return tl.min((fits | (exists == 0)).to(tl.int32), 0) != 0


@triton.jit
def _zeros_fit(zeros_ptr, t, inexact):
    zero = tl.load(zeros_ptr + t, mask=inexact, other=0.0)
    return tl.min(((zero >= -32768) & (zero <= 32767)).to(tl.int32), 0) != 0


@triton.jit
def _lay_out(
    row_ptr, at, bitmaps, minima, kind, scales, fits, planes, D: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    """Writes one side of the descriptor; returns (where its five planes begin, their end)."""
    i = tl.arange(0, 8)
    row = tl.where(i == 0, bitmaps, tl.where((i == 1) & (kind != 0), minima, 0))
    row = tl.where((i == 2) & fits, scales, row)
    # the values of a raw tile
    row = tl.where((i == 3) & (fits == 0), at, row)
    mode, pieces = plane_mode(planes[0], D // UNIT)
    row = tl.where((i == 3) & (mode != 0), at, row)
    c = at + pieces * (4 * UNIT)
    mode, pieces = plane_mode(planes[1], D // UNIT)
    row = tl.where((i == 4) & (mode != 0), c, row)
    b = c + pieces * (2 * UNIT)
    mode, pieces = plane_mode(planes[2], D // UNIT)
    row = tl.where((i == 5) & (mode != 0), b, row)
    h1 = b + pieces * (4 * UNIT)
    mode, pieces = plane_mode(planes[3], D // UNIT)
    row = tl.where((i == 6) & (mode != 0), h1, row)
    h2 = h1 + pieces * (4 * UNIT)
    mode, pieces = plane_mode(planes[4], D // UNIT)
    row = tl.where((i == 7) & (mode != 0), h2, row)
    tl.store(row_ptr + i, row)
    return (at, c, b, h1, h2), h2 + pieces * (4 * UNIT)


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

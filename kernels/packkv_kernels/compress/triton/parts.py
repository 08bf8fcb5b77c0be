"""The parts of a section beside its planes, written by a kernel."""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.planes import bitmap_word, plane_mode

__all__ = [
    "minima_kind",
    "write_halves",
    "write_head",
    "write_minima",
    "write_scales",
    "write_steps",
]


@triton.jit
def write_head(
    words_ptr, k_planes, v_planes, extent, k_kind, v_kind, k_fits, v_fits,
    D: tl.constexpr, UNIT_V: tl.constexpr, HYBRID: tl.constexpr,
):  # fmt: skip
    """Writes flags, extent and bitmaps; returns (end, flags, where the bitmaps of V begin)."""
    i = tl.arange(0, 64)
    flags = k_kind << 16 | v_kind << 18
    flags |= tl.where(k_fits, 3 << 20 if HYBRID else 2 << 20, 1 << 24)
    flags |= tl.where(v_fits, 1 << 22 if HYBRID else 2 << 22, 1 << 25)
    words = tl.zeros([64], tl.uint32)
    end = 2 + flags * 0
    for plane in tl.static_range(5):
        mode, _ = plane_mode(k_planes[plane], D // 4)
        flags |= mode << (2 * plane - 2 if plane else 26)
        words, end = _add_bitmap(words, end, i, k_planes[plane], mode, (D // 4 + 31) // 32)
    v_bitmaps = end
    for plane in tl.static_range(5):
        mode, _ = plane_mode(v_planes[plane], D // UNIT_V)
        flags |= mode << (6 + 2 * plane if plane else 28)
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
def write_halves(
    words_ptr, at, values_ptr, stride, count, D: tl.constexpr, D_PAD: tl.constexpr
):  # fmt: skip
    """Writes the first `count` tokens as fp16 from word `at` on, zeros to 16 bytes; the end."""
    halves_ptr = (words_ptr + at).to(tl.pointer_type(tl.float16))
    channel = tl.arange(0, D_PAD)[None, :]
    for start in range(0, count, 4):
        t = start + tl.arange(0, 4)[:, None]
        inside = (t < count) & (channel < D)
        values = tl.load(values_ptr + t * stride + channel, mask=inside, other=0.0)
        tl.store(halves_ptr + t * D + channel, values.to(tl.float16), mask=inside)
    end = (count * D + 7) // 8 * 8
    pad = count * D + tl.arange(0, 8)
    tl.store(halves_ptr + pad, tl.zeros([8], tl.float16), mask=pad < end)
    return at + end // 2


@triton.jit
def minima_kind(low):
    """Bytes of a minimum that hold all of these floats."""
    return tl.where((tl.min(low, 0) >= -128) & (tl.max(low, 0) <= 127), 1, 2)


@triton.jit
def write_minima(words_ptr, low, channel, kind, D: tl.constexpr):
    """Writes minima of channels; those past D are padding, 0, to 16 bytes."""
    low = tl.where(channel < D, low, 0.0).to(tl.int32)
    bytes_ptr = words_ptr.to(tl.pointer_type(tl.int8))
    tl.store(
        bytes_ptr + channel, low.to(tl.int8), mask=(kind == 1) & (channel < (D + 15) // 16 * 16)
    )
    shorts_ptr = words_ptr.to(tl.pointer_type(tl.int16))
    tl.store(
        shorts_ptr + channel, low.to(tl.int16), mask=(kind == 2) & (channel < (D + 7) // 8 * 8)
    )


@triton.jit
def write_steps(words_ptr, at, step0, step1, fits, D: tl.constexpr):
    """Writes the channel steps of K, four bits each, and zeros to 16 bytes; returns the end."""
    BYTES: tl.constexpr = (D // 2 + 15) // 16 * 16
    PAIRS: tl.constexpr = step0.shape[0]
    bytes_ptr = (words_ptr + at).to(tl.pointer_type(tl.uint8))
    pair, pad = tl.arange(0, PAIRS), PAIRS + tl.arange(0, 16)
    both = (step0 & 15) | (step1 & 15) << 4
    both = tl.where(2 * pair < D, both, 0).to(tl.uint8)
    tl.store(bytes_ptr + pair, both, mask=fits & (pair < BYTES))
    tl.store(bytes_ptr + pad, tl.zeros([16], tl.uint8), mask=fits & (pad < BYTES))
    return at + tl.where(fits, BYTES // 4, 0)


@triton.jit
def write_scales(words_ptr, at, scales_ptr, zeros_ptr, inexact, fits):
    """Writes packkv's scales and zeros, 0 for tokens without codes; returns the end."""
    t = tl.arange(0, 64)
    scale = tl.load(scales_ptr + t, mask=inexact, other=0.0)
    zero = tl.load(zeros_ptr + t, mask=inexact & fits, other=0.0).to(tl.int16)
    tl.store((words_ptr + at).to(tl.pointer_type(tl.float32)) + t, scale, mask=fits & (t < 64))
    shorts_ptr = (words_ptr + at + 64).to(tl.pointer_type(tl.int16))
    tl.store(shorts_ptr + t, zero, mask=fits & (t < 64))
    return at + tl.where(fits, 96, 0)

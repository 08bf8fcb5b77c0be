"""Widths, steps and minima of hybrid's K in a kernel, as `compress.reference` finds them."""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.integers import round_even
from packkv_kernels.compress.triton.tile import octaves

__all__ = ["channel_codes", "largest_codes", "ranges_fit"]

_WIDTHS = tl.constexpr(7)


@triton.jit
def ranges_fit(low, high, bounds_ptr, exists):
    """Whether the range of every channel that exists has a width."""
    # written so that NaN does not fit
    fits = high - low <= tl.load(bounds_ptr + _WIDTHS - 1)
    return tl.min((fits | (exists == 0)).to(tl.int32), 0) != 0


@triton.jit
def largest_codes(span, bounds_ptr):
    """Largest code of units, int32, from the widest range in each."""
    width = tl.zeros_like(span).to(tl.int32)
    for place in tl.static_range(_WIDTHS - 1):
        above = span > tl.load(bounds_ptr + place)
        width += above.to(tl.int32)
    bits = tl.where(width <= 4, width, 2 * width - 4)
    return (1 << bits) - 1


@triton.jit
def channel_codes(low, high, top, step_bounds_ptr):
    """How channels are cut: (minimum, minimum in steps, step e, 1 / 2^(e/8)), by channel.

    Args:
        low, high: range of each, of `channel_range`.
        top: largest code of its unit, int32.
        step_bounds_ptr: float32 [9, 15] by width.
    """
    # the exponent of a power of two
    bits = ((top + 1).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    bounds_ptr, span = step_bounds_ptr + bits * 15, high - low
    step = tl.zeros_like(bits)
    for place in tl.static_range(4):
        below = tl.load(bounds_ptr + step + ((8 >> place) - 1)) < span
        step = tl.where(below, step + (8 >> place), step)
    inverse = octaves(8 - step)
    half = top.to(tl.float32) * 0.5
    parts = tl.where(bits < 4, 4.0, 1.0)
    minimum = round_even(((low + high) * 0.5 * inverse - half) * parts)
    return minimum, minimum * tl.where(bits < 4, 0.25, 1.0), step - 8, inverse

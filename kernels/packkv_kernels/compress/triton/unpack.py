"""A few tokens of packed pages, in the domain that attention reads."""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.rotation import rotate
from packkv_kernels.compress.triton.tile import load_codes, load_exact, load_scales

__all__ = ["load_k_tokens", "load_v_tokens"]


@triton.jit
def load_k_tokens(
    words_ptr, row_ptr, order_ptr, inv_step_ptr, steps_ptr, t, channel, D: tl.constexpr
):  # fmt: skip
    """K over its step, of tokens t [tokens, 1], float32 [tokens, channels], in stored order.

    Args:
        order_ptr, inv_step_ptr: of the head.
    """
    inside = channel < D
    order = tl.load(order_ptr + channel, mask=inside, other=0).to(tl.int32)
    zero, scale = load_scales(words_ptr, row_ptr, steps_ptr, 0.0, t, 0)
    codes, channel_step = load_codes(words_ptr, row_ptr, t, channel, 0, D, 4)
    exact, kept = load_exact(words_ptr, row_ptr, t, order, inside, 0, D)
    kept *= tl.load(inv_step_ptr + order, mask=inside, other=0.0)
    return tl.where(t < exact, kept, (codes + zero) * scale * channel_step)


@triton.jit
def load_v_tokens(
    words_ptr, row_ptr, steps_ptr, middle, t, channel,
    D: tl.constexpr, UNIT: tl.constexpr, SPAN: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """V, rotated, of tokens t [tokens, 1], float32 [tokens, channels].

    Args:
        SPAN, FACTOR: of the rotation; SPAN 1 for codecs without one.
    """
    zero, scale = load_scales(words_ptr, row_ptr, steps_ptr, middle, t, 1)
    codes, _ = load_codes(words_ptr, row_ptr, t, channel, 1, D, UNIT)
    values = tl.where(channel < D, (codes + zero) * scale, 0.0)
    exact, kept = load_exact(words_ptr, row_ptr, t, channel, channel < D, 1, D)
    if SPAN > 1:
        kept = rotate(kept, SPAN, FACTOR)
    return tl.where(t < exact, kept, values)

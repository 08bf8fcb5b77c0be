"""Values to integers in a kernel: the operations of `compress.reference`, in the same order.

Launch with `enable_fp_fusion=False`: a product that is fused with the addition after it rounds
once where the reference rounds twice.
"""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.rotation import rotate

__all__ = ["above_minima", "round_even", "rotated_codes", "token_scales"]

# 1.5 · 2²³: what is added to it is rounded to an integer, ties to even
_INTEGERS = tl.constexpr(12582912.0)


@triton.jit
def round_even(x):
    """rint(x) while |x| < 2²²; beyond, something that is too large for a code or a minimum."""
    return (x + _INTEGERS) - _INTEGERS


@triton.jit
def above_minima(integers, inexact, channel, D: tl.constexpr):
    """Codes of integer-valued floats [64, channels] above each channel's minimum.

    Args:
        inexact: int1 [64, 1], the tokens that have codes.
        channel: int32 [1, channels]; those past D have code and minimum 0.

    Returns:
        (codes int32 [64, channels], minima int32 [channels], largest code int32 [channels],
        whether codes fit 8 bits and minima int16).
    """
    counted = inexact & (channel < D)
    low = tl.min(tl.where(counted, integers, float("inf")), 0)
    high = tl.max(tl.where(counted, integers, float("-inf")), 0)
    some = low <= high
    low, high = tl.where(some, low, 0.0), tl.where(some, high, 0.0)
    # infinite integers have some = True and fail here
    fits = (low >= -32768) & (low <= 32767) & (high - low <= 255)
    low, high = tl.where(fits, low, 0.0), tl.where(fits, high, 0.0)
    codes = tl.where(counted & fits[None, :], integers - low[None, :], 0.0).to(tl.int32)
    return codes, low.to(tl.int32), (high - low).to(tl.int32), tl.min(fits.to(tl.int32), 0) != 0


@triton.jit
def rotated_codes(
    values, inexact, levels, inverse_ptr, thresholds_ptr, channel,
    D: tl.constexpr, D_PAD: tl.constexpr, SPAN: tl.constexpr, FACTOR: tl.constexpr,
    SHARE: tl.constexpr,
):  # fmt: skip
    """Codes and scale codes of V [64, D_PAD], natural order, zeros past D.

    Args:
        inexact: int1 [64, 1], the tokens that have codes.
        levels: 4, 8 or 16.
        inverse_ptr, thresholds_ptr: float32 [256], of `compress.scales`.
        SPAN, FACTOR: of the rotation.
        SHARE: float32(1 / D).

    Returns:
        (codes int32 [64, channels], scale codes int32 [64, 1], whether all have one).
    """
    rotated = rotate(values, SPAN, FACTOR)
    squares = rotated * rotated
    for _ in tl.static_range(D_PAD.bit_length() - 1):
        squares = _add_halves(squares)
    squares = squares * SHARE
    # how many thresholds are not above it, by bisection
    code = tl.zeros([64, 1], tl.int32)
    for bit in tl.static_range(8):
        above = tl.load(thresholds_ptr + code + ((128 >> bit) - 1)) > squares
        code = tl.where(above, code, code + (128 >> bit))
    beyond = tl.load(thresholds_ptr + 255) <= squares
    code = tl.where(inexact, code, 0)
    level = tl.floor(rotated * tl.load(inverse_ptr + code)) + (levels // 2).to(tl.float32)
    level = tl.minimum(tl.maximum(level, 0.0), (levels - 1).to(tl.float32))
    codes = tl.where(inexact & (channel < D), level, 0.0).to(tl.int32)
    return codes, code, tl.max(tl.max((beyond & inexact).to(tl.int32), 0), 0) == 0


@triton.jit
def _add_halves(x):
    HALF: tl.constexpr = x.shape[1] // 2
    a, b = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, HALF)), (0, 2, 1)))
    return a + b


@triton.jit
def token_scales(
    values_ptr, scales_ptr, zeros_ptr, tokens, rel,
    WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """PackKV's step and integer zero of tokens, over all KV heads.

    Args:
        values_ptr: [tokens, WIDTH], heads · head_dim values of a token.
        scales_ptr, zeros_ptr: float32 [tokens], written.
        rel: step as a share of a token's range.
    """
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    i = tl.arange(0, WIDTH_PAD)[None, :]
    at = t.to(tl.int64)[:, None] * WIDTH + i
    inside = (t < tokens)[:, None] & (i < WIDTH)
    values = tl.load(values_ptr + at, mask=inside, other=0.0).to(tl.float32)
    low = tl.min(tl.where(i < WIDTH, values, float("inf")), 1)
    high = tl.max(tl.where(i < WIDTH, values, float("-inf")), 1)
    flat = tl.where(low == 0, 1.0, tl.abs(low))
    scale = tl.where(low == high, flat, rel * (high - low))
    tl.store(scales_ptr + t, scale, mask=t < tokens)
    tl.store(zeros_ptr + t, round_even(tl.math.div_rn(low, scale)), mask=t < tokens)

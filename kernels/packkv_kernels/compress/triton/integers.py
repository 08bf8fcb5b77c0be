"""Values to integers in a kernel: the operations of `compress.reference`, in the same order.

Launch with `enable_fp_fusion=False`: a product that is fused with the addition after it rounds
once where the reference rounds twice.
"""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.rotation import rotate

__all__ = ["quantise_values", "round_even", "token_scales"]

# 1.5 · 2²³: what is added to it is rounded to an integer, ties to even
_INTEGERS = tl.constexpr(12582912.0)


@triton.jit
def round_even(x):
    """rint(x) while |x| < 2²²; beyond, something that is too large for a code or a minimum."""
    return (x + _INTEGERS) - _INTEGERS


@triton.jit
def quantise_values(
    values_ptr, levels_ptr, inverse_ptr, thresholds_ptr, codes_ptr, scale_codes_ptr,
    tokens, sinks,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, SPAN: tl.constexpr,
    FACTOR: tl.constexpr, SHARE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Rotates and quantises V of TOKENS tokens of a head; the grid is (tokens, HEADS, layers).

    Args:
        values_ptr: [layers, tokens, HEADS, D].
        levels_ptr: int32 [layers, HEADS]: 4, 8 or 16.
        inverse_ptr, thresholds_ptr: float32 [5, 256] by width of the levels, and [256].
        codes_ptr: uint8 [layers, HEADS, tokens, D], written; 0 for the sinks.
        scale_codes_ptr: int16 [layers, HEADS, tokens], written; 256: beyond what there is.
        SPAN, FACTOR, SHARE: of the rotation, and float32(1 / D).
    """
    head, layer = tl.program_id(1), tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    channel = tl.arange(0, D_PAD)[None, :]
    inside = (t < tokens) & (channel < D)
    at = ((layer * tokens + t) * HEADS + head) * D + channel
    rotated = rotate(
        tl.load(values_ptr + at, mask=inside, other=0.0).to(tl.float32), SPAN, FACTOR
    )  # fmt: skip
    squares = rotated * rotated
    for _ in tl.static_range(D_PAD.bit_length() - 1):
        squares = _add_halves(squares)
    squares = squares * SHARE
    # how many thresholds are not above it, by bisection
    code = tl.zeros([TOKENS, 1], tl.int32)
    for bit in tl.static_range(8):
        above = tl.load(thresholds_ptr + code + ((128 >> bit) - 1)) > squares
        code = tl.where(above, code, code + (128 >> bit))
    beyond = tl.load(thresholds_ptr + 255) <= squares
    levels = tl.load(levels_ptr + layer * HEADS + head)
    width = tl.where(levels == 16, 4, levels // 4 + 1)
    inverse = tl.load(inverse_ptr + width * 256 + code)
    level = tl.floor(rotated * inverse) + (levels // 2).to(tl.float32)
    level = tl.minimum(tl.maximum(level, 0.0), (levels - 1).to(tl.float32))
    inexact = t >= sinks
    row = (layer * HEADS + head) * tokens + t
    # four to a word: a thread that holds a token has them at hand
    codes = tl.where(inexact, level, 0.0).to(tl.int32) << 8 * (channel & 3)
    codes = tl.sum(tl.reshape(codes, (TOKENS, D_PAD // 4, 4)), 2)
    words_ptr = codes_ptr.to(tl.pointer_type(tl.int32))
    word = tl.arange(0, D_PAD // 4)[None, :]
    tl.store(words_ptr + row * (D // 4) + word, codes, mask=(t < tokens) & (word < D // 4))
    code = tl.where(inexact, tl.where(beyond, 256, code), 0)
    tl.store(scale_codes_ptr + row, code.to(tl.int16), mask=t < tokens)


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

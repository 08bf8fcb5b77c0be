"""Values to KVComp's codes and units in a kernel, as `entropy.quantise` finds them.

Launch with `enable_fp_fusion=False`: the host rounds every operation.
"""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.integers import round_even

__all__ = ["BLOCK", "CHANNEL", "TOKEN", "count_codes", "quantise_blocks"]

# Which values of a block share a minimum and a step.
BLOCK, CHANNEL, TOKEN = 0, 1, 2

_BLOCK, _CHANNEL = tl.constexpr(BLOCK), tl.constexpr(CHANNEL)


@triton.jit
def quantise_blocks(
    values_ptr, codes_ptr, units_ptr, rel,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Codes and units of one block of one head; the grid is (blocks · HEADS,).

    Args:
        values_ptr: [blocks · 64, HEADS, D], finite and within ±65,504.
        codes_ptr: uint8 [blocks, HEADS, D, 64], written.
        units_ptr: uint32 [blocks, HEADS, units], written: minimum, and step << 16.
        rel: step as a share of a unit's range.
        UNITS: BLOCK, CHANNEL or TOKEN.
    """
    row = tl.program_id(0).to(tl.int64)
    block, head = row // HEADS, row % HEADS
    t, channel = tl.arange(0, 64)[:, None], tl.arange(0, D_PAD)[None, :]
    inside = channel < D
    at = ((block * 64 + t) * HEADS + head) * D + channel
    x = tl.load(values_ptr + at, mask=inside, other=0.0).to(tl.float32)
    # what a unit has beside its values: the least and the largest of them, in its own shape
    low, high = tl.where(inside, x, float("inf")), tl.where(inside, x, float("-inf"))
    if UNITS == _CHANNEL:
        low, high = tl.min(low, 0)[None, :], tl.max(high, 0)[None, :]
    else:
        low, high = tl.min(low, 1)[:, None], tl.max(high, 1)[:, None]
        if UNITS == _BLOCK:
            low, high = tl.min(low, 0)[None, :], tl.max(high, 0)[None, :]
    # channels past D have no values
    low, high = tl.where(low <= high, low, 0.0), tl.where(low <= high, high, 0.0)
    minimum = _half_below(low)
    low = _float(minimum)
    step = _half_above(rel * (high - low))
    divisor = _float(step)
    divisor = tl.where(divisor == 0, 1.0, divisor)
    codes = round_even(tl.math.div_rn(x - low, tl.broadcast_to(divisor, x.shape)))
    codes_ptr += row * (D * 64)
    tl.store(codes_ptr + channel * 64 + t, codes.to(tl.int32).to(tl.uint8), mask=inside)
    unit = (minimum & 0xFFFF).to(tl.uint32) | (step & 0xFFFF).to(tl.uint32) << 16
    if UNITS == _CHANNEL:
        tl.store(units_ptr + row * D + channel, unit, mask=inside)
    elif UNITS == _BLOCK:
        tl.store(units_ptr + row + tl.arange(0, 1)[None, :], unit)
    else:
        tl.store(units_ptr + row * 64 + t, unit)


@triton.jit
def _half_below(x):
    """Bits of the largest fp16 that is not above, int32; of zero the positive one."""
    x = tl.where(x == 0, 0.0, x)
    half = x.to(tl.float16)
    bits = half.to(tl.int16, bitcast=True).to(tl.int32)
    # the next below: away from zero where negative (and below -0), else towards it
    below = tl.where(bits < 0, bits + 1, bits - 1)
    return tl.where(half.to(tl.float32) > x, below, bits)


@triton.jit
def _half_above(x):
    """Bits of the least fp16 that is not below x ≥ 0, int32."""
    half = x.to(tl.float16)
    bits = half.to(tl.int16, bitcast=True).to(tl.int32)
    return tl.where(half.to(tl.float32) < x, bits + 1, bits)


@triton.jit
def _float(bits):
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def count_codes(codes_ptr, counts_ptr, count, CODES: tl.constexpr):
    """Adds up how often each code comes.

    Args:
        codes_ptr: uint8 [count].
        counts_ptr: int32 [256], added to: a layer's prefill is below 2³¹ values.
    """
    i = tl.program_id(0).to(tl.int64) * CODES + tl.arange(0, CODES)
    codes = tl.load(codes_ptr + i, mask=i < count, other=0).to(tl.int32)
    found = tl.histogram(codes, 256, mask=i < count)
    tl.atomic_add(counts_ptr + tl.arange(0, 256), found, sem="relaxed")

"""KVComp's relative quantiser: codes of 0 … 255 from the least value of their unit up."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["dequantise", "quantise"]


def quantise(
    values: NDArray[np.float32], rel: np.float32, axes: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Codes and units of blocks.

    code = rint((x − minimum) / step) with step = rel · (max − minimum). Minimum and step are kept
    as fp16; the minimum is rounded down and the step, taken from that minimum, up, so that codes
    stay within 1 / rel and every value within half a step.

    Args:
        values: float32 [blocks, 64, head_dim], within ±65,504.
        rel: step as a share of the unit's range, 1/255 … 0.5.
        axes: what a unit spans.

    Returns:
        (codes uint8 of the same shape, units u32 [blocks, units]: minimum, step << 16).
    """
    # of zeros the positive one: which of them a minimum is depends on the order of comparisons
    low = _half_below(values.min(axes, keepdims=True) + np.float32(0))
    span = values.max(axes, keepdims=True) - low.astype(np.float32)
    step = _half_above(rel * span)
    divisor = np.where(step == 0, np.float16(1), step).astype(np.float32)
    codes = np.rint((values - low.astype(np.float32)) / divisor).astype(np.uint8)
    pairs = np.stack([low.reshape(len(values), -1), step.reshape(len(values), -1)], -1)
    return codes, pairs.view(np.uint32)[..., 0]


def dequantise(
    codes: NDArray[np.uint8], units: NDArray[np.uint32], axes: tuple[int, ...]
) -> NDArray[np.float32]:
    """minimum + code · step, float32 of the codes' shape."""
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(codes.shape))
    low = (units & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32)
    step = (units >> 16).astype(np.uint16).view(np.float16).astype(np.float32)
    return low.reshape(shape) + codes.astype(np.float32) * step.reshape(shape)


def _half_below(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """The largest fp16 that is not above."""
    half = values.astype(np.float16)
    # looked up everywhere, also next to the largest, where it is not taken
    with np.errstate(over="ignore"):
        below = np.nextafter(half, np.float16(-np.inf))
    return np.where(half > values, below, half)


def _half_above(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """The least fp16 that is not below."""
    half = values.astype(np.float16)
    with np.errstate(over="ignore"):
        above = np.nextafter(half, np.float16(np.inf))
    return np.where(half < values, above, half)

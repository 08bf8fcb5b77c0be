"""Values to integers, compiled: the same float32 operations in the same order as the reference."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.rotation import rotate_row
from packkv_kernels.format.compiled import compiled

__all__ = [
    "hybrid_k_integers",
    "hybrid_v_codes",
    "integers_to_codes",
    "packkv_integers",
    "packkv_scales",
]


@compiled
def hybrid_k_integers(
    values: NDArray[np.float32], inv_step: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """rint(x · inv_step) of values [tokens, head_dim], by natural channel."""
    for t in range(len(values)):
        line, source = out[t], values[t]
        for c in range(len(inv_step)):
            line[c] = np.rint(source[c] * inv_step[c])


@compiled
def packkv_scales(
    block: NDArray[np.float32],
    rel: np.float32,
    sinks: int,
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
) -> bool:
    """Step and integer zero of each inexact token of a block [tokens, heads, head_dim].

    Args:
        block: all KV heads.
        rel: step as a share of the token's range.
        sinks: leading tokens without a scale.
        scale, zero: [64], overwritten; 0 where there is no inexact token.

    Returns:
        Whether all zeros fit int16; if not, the block's tiles are raw.
    """
    scale[:] = 0
    zero[:] = 0
    fits = True
    for t in range(sinks, len(block)):
        low, high = block[t, 0, 0], block[t, 0, 0]
        for h in range(block.shape[1]):
            line = block[t, h]
            for c in range(len(line)):
                low = line[c] if line[c] < low else low
                high = line[c] if line[c] > high else high
        if low == high:
            scale[t] = np.float32(1) if low == 0 else abs(low)
        else:
            scale[t] = rel * (high - low)
        zero[t] = np.rint(low / scale[t])
        # written so that NaN does not fit
        fits &= zero[t] >= -32768 and zero[t] <= 32767
    return fits


@compiled
def packkv_integers(
    values: NDArray[np.float32],
    sinks: int,
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """rint(x / s) − zero of the inexact values [tokens, head_dim] of one head."""
    for t in range(sinks, len(values)):
        line, source = out[t], values[t]
        for c in range(values.shape[1]):
            line[c] = np.rint(source[c] / scale[t]) - zero[t]


@compiled
def integers_to_codes(
    integers: NDArray[np.float32],
    tokens: int,
    sinks: int,
    order: NDArray[np.int16],
    codes: NDArray[np.uint8],
    minima: NDArray[np.int32],
    widest: NDArray[np.int32],
) -> bool:
    """Takes the minimum of each channel's inexact tokens off, and brings channels into order.

    Args:
        integers: [64, head_dim], integer-valued, natural channel order.
        tokens, sinks: the inexact ones are sinks … tokens.
        order: [head_dim], stored to natural channel.
        codes: [64, head_dim], overwritten; 0 where no inexact token is.
        minima, widest: [head_dim], overwritten: minimum and largest code by stored channel.

    Returns:
        Whether codes fit 8 bits and minima int16; if not, nothing written is of use.
    """
    codes[:] = 0
    minima[:] = 0
    widest[:] = 0
    if sinks == tokens:
        return True
    low, high = integers[sinks].copy(), integers[sinks].copy()
    for t in range(sinks + 1, tokens):
        line = integers[t]
        for c in range(len(low)):
            low[c] = line[c] if line[c] < low[c] else low[c]
            high[c] = line[c] if line[c] > high[c] else high[c]
    fits = True
    for c in range(len(low)):
        # written so that NaN does not fit
        fits &= low[c] >= -32768 and low[c] <= 32767 and high[c] - low[c] <= 255
    if not fits:
        return False
    for c in range(len(order)):
        minima[c] = np.int32(low[order[c]])
        widest[c] = np.int32(high[order[c]] - low[order[c]])
    for t in range(sinks, tokens):
        line, target = integers[t], codes[t]
        for c in range(len(order)):
            target[c] = np.uint8(np.int32(line[order[c]]) - minima[c])
    return True


@compiled
def hybrid_v_codes(
    values: NDArray[np.float32],
    sinks: int,
    levels: int,
    inverse: NDArray[np.float32],
    thresholds: NDArray[np.float32],
    codes: NDArray[np.uint8],
    log_scales: NDArray[np.uint8],
) -> bool:
    """Rotates and quantises V [tokens, head_dim] of one head.

    Args:
        values: natural channel order.
        sinks: leading tokens without codes.
        levels: 4, 8 or 16.
        inverse: [256], 1 / step by scale code, of these levels.
        thresholds: [256], least mean square of scale codes 1 … 256.
        codes: [64, head_dim], overwritten; 0 where no inexact token is.
        log_scales: [64], overwritten, likewise.

    Returns:
        Whether all mean squares have a scale code; if not, the tile is raw.
    """
    codes[:] = 0
    log_scales[:] = 0
    row = np.empty(values.shape[1], np.float32)
    scratch = np.empty(_padded(values.shape[1]), np.float32)
    half, top = np.float32(levels // 2), np.float32(levels - 1)
    for t in range(sinks, len(values)):
        source = values[t]
        for c in range(len(row)):
            row[c] = source[c]
        rotate_row(row)
        scale = np.searchsorted(thresholds, _mean_square(row, scratch), side="right")
        if scale > 255:
            return False
        log_scales[t] = scale
        factor, target = inverse[scale], codes[t]
        for c in range(len(row)):
            level = np.floor(row[c] * factor) + half
            level = np.float32(0) if level < 0 else level
            target[c] = np.uint8(np.int32(top if level > top else level))
    return True


@compiled
def _padded(count: int) -> int:
    """The next power of two."""
    padded = 1
    while padded < count:
        padded *= 2
    return padded


@compiled
def _mean_square(row: NDArray[np.float32], scratch: NDArray[np.float32]) -> np.float32:
    """Adds halves until one value is left. `scratch` has a power of two of places."""
    scratch[len(row) :] = 0
    for c in range(len(row)):
        scratch[c] = row[c] * row[c]
    half = len(scratch) // 2
    while half:
        for i in range(half):
            scratch[i] += scratch[half + i]
        half //= 2
    return np.float32(scratch[0] * np.float32(1 / len(row)))

"""Values to integers, compiled: the same float32 operations in the same order as the reference."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.rotation import rotate_row
from packkv_kernels.compress.scales import INV_STEPS, K_WIDTHS, RANGE_BOUNDS, STEP_BOUNDS
from packkv_kernels.format.compiled import compiled

__all__ = [
    "hybrid_k_codes",
    "hybrid_v_codes",
    "integers_to_codes",
    "packkv_integers",
    "packkv_scales",
]


@compiled
def hybrid_k_codes(
    values: NDArray[np.float32],
    sinks: int,
    order: NDArray[np.int16],
    inv_step: NDArray[np.float32],
    scaled: NDArray[np.float32],
    codes: NDArray[np.uint8],
    minima: NDArray[np.int32],
    widths: NDArray[np.uint8],
    steps: NDArray[np.int8],
) -> bool:
    """Quantises K [tokens, head_dim] of one head: every channel's codes span its own range.

    Args:
        values: natural channel order.
        sinks: leading tokens without codes.
        order: [head_dim], stored to natural channel.
        inv_step: [head_dim], 1 / step that is aimed at, by natural channel.
        scaled: [64, head_dim], working memory.
        codes: [64, head_dim], overwritten; 0 where no inexact token is.
        minima, steps: [head_dim], overwritten, by stored channel.
        widths: [units], overwritten.

    Returns:
        Whether all ranges and minima fit; if not, the tile is raw.
    """
    codes[:] = 0
    minima[:] = 0
    widths[:] = 0
    steps[:] = 0
    if sinks == len(values):
        return True
    middle, span = np.empty_like(inv_step), np.empty_like(inv_step)
    _scale_and_span(values, sinks, inv_step, scaled, middle, span)
    # by natural channel from here: 1 / step of the channel, minimum and largest code
    inverse, low, top = np.empty_like(span), np.empty_like(span), np.empty_like(span)
    for unit in range(len(widths)):
        channels = order[unit * 4 : (unit + 1) * 4]
        widest = np.float32(0)
        for c in channels:
            # written so that NaN does not fit
            if not span[c] <= RANGE_BOUNDS[-1]:
                return False
            widest = max(widest, span[c])
        width = K_WIDTHS[_count_below(RANGE_BOUNDS, widest)]
        widths[unit] = width
        for i, c in enumerate(channels):
            step = _count_below(STEP_BOUNDS[width], span[c])
            inverse[c], top[c] = INV_STEPS[step], (1 << width) - 1
            place = middle[c] * inverse[c] - top[c] * np.float32(0.5)
            minimum = np.rint(place * np.float32(4)) if width < 4 else np.rint(place)
            if not abs(minimum) <= 32767:
                return False
            low[c] = minimum * np.float32(0.25) if width < 4 else minimum
            minima[unit * 4 + i], steps[unit * 4 + i] = np.int32(minimum), step - 8
    for t in range(sinks, len(values)):
        line, target = scaled[t], codes[t]
        for c in range(len(line)):
            code = np.rint(line[c] * inverse[c] - low[c])
            code = np.float32(0) if code < 0 else code
            line[c] = top[c] if code > top[c] else code
        for c in range(len(order)):
            target[c] = np.uint8(np.int32(line[order[c]]))
    return True


@compiled
def _scale_and_span(
    values: NDArray[np.float32],
    sinks: int,
    inv_step: NDArray[np.float32],
    scaled: NDArray[np.float32],
    middle: NDArray[np.float32],
    span: NDArray[np.float32],
) -> None:
    """x · inv_step of the inexact tokens, and middle and width of each channel's range of it."""
    low, high = np.empty_like(span), np.empty_like(span)
    low[:] = np.inf
    high[:] = -np.inf
    for t in range(sinks, len(values)):
        line, source = scaled[t], values[t]
        for c in range(len(inv_step)):
            line[c] = source[c] * inv_step[c]
            low[c] = line[c] if line[c] < low[c] else low[c]
            high[c] = line[c] if line[c] > high[c] else high[c]
    for c in range(len(span)):
        middle[c] = (low[c] + high[c]) * np.float32(0.5)
        span[c] = high[c] - low[c]


@compiled
def _count_below(bounds: NDArray[np.float32], value: np.float32) -> int:
    """How many bounds are less than a value."""
    count = 0
    for bound in bounds:
        count += bound < value
    return count


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

"""The rotation of V in a kernel: the butterflies of `compress.rotation`, in the same order."""

import triton
import triton.language as tl

__all__ = ["rotate"]


@triton.jit
def rotate(x, SPAN: tl.constexpr, FACTOR: tl.constexpr):
    """float32 x [rows, channels] · H: spans 1, 2, 4, … SPAN/2, then one multiplication.

    Launch with `enable_fp_fusion=False` where bits must equal the reference's.

    Args:
        SPAN: size of the Hadamard matrix, a power of two that divides the channels.
        FACTOR: 1 / √SPAN.
    """
    ROWS: tl.constexpr = x.shape[0]
    CHANNELS: tl.constexpr = x.shape[1]
    if SPAN <= 16:
        x = _rotate_rows(tl.reshape(x, (ROWS * CHANNELS // SPAN, SPAN)), SPAN)
        x = tl.reshape(x, (ROWS, CHANNELS))
    else:
        # in two turns, so that a thread never holds more than a short row
        INNER: tl.constexpr = 8 if SPAN <= 128 else 16
        OUTER: tl.constexpr = SPAN // INNER
        x = _rotate_rows(tl.reshape(x, (ROWS * CHANNELS // INNER, INNER)), INNER)
        x = tl.permute(tl.reshape(x, (ROWS, CHANNELS // SPAN, OUTER, INNER)), (0, 1, 3, 2))
        x = _rotate_rows(tl.reshape(x, (ROWS * CHANNELS // OUTER, OUTER)), OUTER)
        x = tl.permute(tl.reshape(x, (ROWS, CHANNELS // SPAN, INNER, OUTER)), (0, 1, 3, 2))
        x = tl.reshape(x, (ROWS, CHANNELS))
    return x * FACTOR


@triton.jit
def _rotate_rows(x, SPAN: tl.constexpr):
    for stage in tl.static_range(SPAN.bit_length() - 1):
        x = _butterflies(x, 1 << stage)
    return x


@triton.jit
def _butterflies(x, WIDTH: tl.constexpr):
    ROWS: tl.constexpr = x.shape[0]
    SPAN: tl.constexpr = x.shape[1]
    pairs = tl.reshape(x, (ROWS, SPAN // (2 * WIDTH), 2, WIDTH))
    a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    pairs = tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2))
    return tl.reshape(pairs, (ROWS, SPAN))

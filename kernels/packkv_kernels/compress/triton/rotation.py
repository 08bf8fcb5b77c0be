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
    for stage in tl.static_range(SPAN.bit_length() - 1):
        x = _butterflies(x, 1 << stage)
    return x * FACTOR


@triton.jit
def _butterflies(x, WIDTH: tl.constexpr):
    ROWS: tl.constexpr = x.shape[0]
    CHANNELS: tl.constexpr = x.shape[1]
    pairs = tl.reshape(x, (ROWS, CHANNELS // (2 * WIDTH), 2, WIDTH))
    a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    pairs = tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2))
    return tl.reshape(pairs, (ROWS, CHANNELS))

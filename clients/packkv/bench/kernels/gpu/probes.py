"""Kernels that exist to ask the device something."""

import triton
import triton.language as tl

__all__ = ["multiply_codes"]


@triton.jit
def multiply_codes(codes_ptr, query_ptr, out_ptr, rounds):
    """Products of 4-bit codes, as subnormal fp16, with a query, the same one over and over.

    Args:
        codes_ptr: int32 [64, 64], 0 … 15.
        query_ptr: fp16 [64, 16].
        out_ptr: float32 [2, 64, 16], written: codes · 2⁻²⁴ and codes · 2⁻²⁰ times the query.
        rounds: how often the products are made; the last ones are kept.
    """
    i, j, n = tl.arange(0, 64)[:, None], tl.arange(0, 64)[None, :], tl.arange(0, 16)[None, :]
    codes = tl.load(codes_ptr + i * 64 + j)
    query = tl.load(query_ptr + i * 16 + n)
    low = codes.to(tl.int16).to(tl.float16, bitcast=True)
    high = (codes << 4).to(tl.int16).to(tl.float16, bitcast=True)
    first, second = tl.zeros([64, 16], tl.float32), tl.zeros([64, 16], tl.float32)
    for step in range(rounds):
        # of the products before nothing is kept, but a compiler does not see that
        kept = tl.where(step < 0, 1.0, 0.0)
        first = tl.dot(low, query, acc=first * kept)
        second = tl.dot(high, query, acc=second * kept)
    tl.store(out_ptr + i * 16 + n, first)
    tl.store(out_ptr + 64 * 16 + i * 16 + n, second)

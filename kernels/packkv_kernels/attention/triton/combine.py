"""Partial states of one attention to its result: a log-sum-exp merge, then the rotation back."""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.rotation import rotate

__all__ = ["combine_states"]

_NONE = tl.constexpr(float("-inf"))


@triton.jit
def combine_states(
    mean_ptr, lse_ptr, out_ptr, out_lse_ptr, rows, states,
    D: tl.constexpr, D_PAD: tl.constexpr, SPAN: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """Merges the states of 8 queries of one (sequence, KV head).

    Args:
        mean_ptr: float32 [batch · heads · groups, states, D, 8].
        lse_ptr: float32 [batch · heads · groups, states, 8], log₂.
        out_ptr: float32 [batch · heads, rows, D], written.
        out_lse_ptr: float32 [batch · heads, rows], written; natural logarithm, −∞ of no token.
        SPAN, FACTOR: of the rotation; SPAN 1 for codecs without one.
    """
    work, groups = tl.program_id(0).to(tl.int64), tl.cdiv(rows, 8)
    column, channel = tl.arange(0, 8), tl.arange(0, D_PAD)
    best = tl.full([8], _NONE, tl.float32)
    total = tl.zeros([8], tl.float32)
    mean = tl.zeros([8, D_PAD], tl.float32)
    for state in range(states):
        at = work * states + state
        lse = tl.load(lse_ptr + at * 8 + column)
        part = tl.load(
            mean_ptr + at * (D * 8) + channel[None, :] * 8 + column[:, None],
            mask=(channel < D)[None, :], other=0.0,
        )  # fmt: skip
        before = best
        best = tl.maximum(best, lse)
        floor = tl.where(best == _NONE, 0.0, best)
        shrink, weight = tl.exp2(before - floor), tl.exp2(lse - floor)
        total = total * shrink + weight
        mean = mean * shrink[:, None] + part * weight[:, None]
    # without a token best is −∞, and so is the result
    mean /= tl.where(total == 0, 1.0, total)[:, None]
    if SPAN > 1:
        mean = rotate(mean, SPAN, FACTOR)
    row = work % groups * 8 + column
    at = work // groups * rows + row
    inside = (row < rows)[:, None] & (channel < D)[None, :]
    tl.store(out_ptr + at[:, None] * D + channel[None, :], mean, mask=inside)
    lse = (best + tl.log2(tl.where(total == 0, 1.0, total))) * 0.6931471805599453
    tl.store(out_lse_ptr + at, lse, mask=row < rows)

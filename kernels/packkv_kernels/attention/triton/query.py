"""Queries in the packed domain of K, as every attention kernel reads them."""

import triton
import triton.language as tl

__all__ = ["fold_query", "score_rows"]


@triton.jit
def fold_query(
    query_ptr,
    order_ptr,
    step_ptr,
    first_row,
    rows,
    head,
    factor,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """float32 [8, D_PAD]: query · step · factor in stored channel order; zeros past rows and D.

    Args:
        query_ptr: the rows of one KV head, [rows, D], natural channel order.
        order_ptr, step_ptr: int16, float32 [heads, D].
    """
    row = first_row + tl.arange(0, 8)
    channel = tl.arange(0, D_PAD)
    inside = channel < D
    order = tl.load(order_ptr + head * D + channel, mask=inside, other=0).to(tl.int32)
    step = tl.load(step_ptr + head * D + order, mask=inside, other=0.0)
    values = tl.load(
        query_ptr + row[:, None] * D + order[None, :],
        mask=(row < rows)[:, None] & inside[None, :],
        other=0.0,
    )
    return values.to(tl.float32) * step[None, :] * factor


@triton.jit
def score_rows(rows, query):
    """Float32 products rows · queryᵀ: [rows, 8] from [rows, channels] and [8, channels].

    For the few rows that are not worth a tensor core, and must not lose bits to one.
    """
    column = tl.arange(0, 8)
    scores = tl.zeros([rows.shape[0], 8], tl.float32)
    for n in tl.static_range(8):
        own = tl.sum(tl.where(column[:, None] == n, query, 0.0), 0)
        score = tl.sum(rows * own[None, :], 1)
        scores = tl.where(column[None, :] == n, score[:, None], scores)
    return scores

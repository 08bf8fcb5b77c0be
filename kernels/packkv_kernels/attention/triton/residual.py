"""Attention over the uncompressed tokens of a sequence, as one more state to be merged."""

import triton
import triton.language as tl

from packkv_kernels.attention.triton.window import lows
from packkv_kernels.compress.triton.rotation import rotate

__all__ = ["attend_residual"]

_NONE = tl.constexpr(float("-inf"))


@triton.jit
def attend_residual(
    query_ptr, keys_ptr, values_ptr, pages_ptr, exact_ptr, mean_ptr, lse_ptr,
    rows, room, new, window, states, first_state, factor,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, SPAN: tl.constexpr,
    FACTOR: tl.constexpr, TOKENS: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One split of one (sequence, KV head, 8 queries); causal over the queries' own tokens.

    Args:
        query_ptr: [batch, HEADS, rows, D]; row r is the query of the new token r % new.
        keys_ptr, values_ptr: [batch, HEADS, room, D], natural channels; never looked at past the
            exact tokens of a sequence.
        pages_ptr, exact_ptr: int32 [batch], pages before, and tokens here; the last are the
            queries' own.
        mean_ptr, lse_ptr: like those of `attend_tiles`; this kernel writes the states from
            first_state on. The mean is rotated, as that of packed V is.
        SPAN, FACTOR: of the rotation; SPAN 1 for codecs without one.
        PRECISION: of a product that loses no more than float32 does.
    """
    work, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    groups = tl.cdiv(rows, 8)
    group, head, sequence = work % groups, work // groups % HEADS, work // groups // HEADS
    row, channel, column = group * 8 + tl.arange(0, 8), tl.arange(0, D_PAD), tl.arange(0, 8)
    inside = channel < D
    query = tl.load(
        query_ptr + ((sequence * HEADS + head) * rows + row)[:, None] * D + channel[None, :],
        mask=(row < rows)[:, None] & inside[None, :], other=0.0,
    ).to(tl.float32) * factor  # fmt: skip
    exact, pages = tl.load(exact_ptr + sequence), tl.load(pages_ptr + sequence)
    seen = exact - new + row % new + 1
    low = tl.zeros([8], tl.int32)
    if WINDOW:
        low = (lows(pages, exact, new, window, group * 8) - pages * 64).to(tl.int32)
    share = tl.cdiv(tl.cdiv(exact, splits), TOKENS) * TOKENS
    first = split * share
    at = (sequence * HEADS + head) * room * D
    best = tl.full([8], _NONE, tl.float32)
    total = tl.zeros([8], tl.float32)
    mean = tl.zeros([D_PAD, 8], tl.float32)
    for start in range(first, tl.minimum(first + share, exact), TOKENS):
        t = start + tl.arange(0, TOKENS)
        here = at + t[:, None] * D + channel[None, :]
        held = (t < exact)[:, None] & inside[None, :]
        keys = tl.load(keys_ptr + here, mask=held, other=0.0).to(tl.float32)
        scores = tl.dot(keys, tl.trans(query), input_precision=PRECISION)
        visible = t[:, None] < seen[None, :]
        if WINDOW:
            visible = visible & (t[:, None] >= low[None, :])
        scores = tl.where(visible, scores, _NONE)
        before = best
        best = tl.maximum(best, tl.max(scores, 0))
        floor = tl.where(best == _NONE, 0.0, best)
        shrink, p = tl.exp2(before - floor), tl.exp2(scores - floor[None, :])
        total = total * shrink + tl.sum(p, 0)
        values = tl.load(values_ptr + here, mask=held, other=0.0).to(tl.float32)
        mean = tl.dot(
            tl.trans(values), p, acc=mean * shrink[None, :], input_precision=PRECISION
        )  # fmt: skip
    mean /= tl.where(total == 0, 1.0, total)[None, :]
    mean = tl.trans(mean)
    if SPAN > 1:
        mean = rotate(mean, SPAN, FACTOR)
    at = work * states + first_state + split
    tl.store(
        mean_ptr + at * (D * 8) + channel[None, :] * 8 + column[:, None], mean,
        mask=inside[None, :],
    )  # fmt: skip
    tl.store(
        lse_ptr + at * 8 + column,
        tl.where(total == 0, _NONE, best + tl.log2(tl.where(total == 0, 1.0, total))),
    )

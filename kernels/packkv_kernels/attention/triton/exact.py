"""Attention over the tokens that the fast kernel leaves aside: sinks, and tiles it cannot read.

One more pass over the same page tables, in float32. Where a page has only packed tokens it costs
two loads; the sinks of a sequence are a few rows of its first page.
"""

import triton
import triton.language as tl

from packkv_kernels.attention.triton.query import fold_query, score_rows
from packkv_kernels.attention.triton.window import first_place, lows
from packkv_kernels.compress.triton.unpack import load_k_tokens, load_v_tokens
from packkv_kernels.format import directory, tile

__all__ = ["attend_exact"]

_ROW = tl.constexpr(directory.DIRECTORY_WORDS)
_EXTENT = tl.constexpr(directory.EXTENT)
_DESCRIPTOR = tl.constexpr(tile.DESCRIPTOR_WORDS)
_TOKENS = tl.constexpr(tile.TOKENS)
_SINKS = tl.constexpr(tile.SINKS)
_NONE = tl.constexpr(float("-inf"))


@triton.jit
def attend_exact(
    query_ptr, order_ptr, step_ptr, inv_step_ptr, steps_ptr, spread_ptr,
    words_ptr, bases_ptr, descriptors_ptr, directory_ptr, table_ptr, pages_ptr, exact_ptr,
    mean_ptr, lse_ptr,
    rows, table_stride, new, window, states, first_state, factor,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, UNIT_V: tl.constexpr,
    SPAN: tl.constexpr, FACTOR: tl.constexpr, TOKENS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One split of one (sequence, KV head, 8 queries); arguments like `attend_tiles`.

    Args:
        inv_step_ptr: like step_ptr.
        steps_ptr, bases_ptr, descriptors_ptr: like `unpack_rotated`.
        mean_ptr, lse_ptr: [batch · HEADS · groups, states, …]; this kernel writes the states
            from first_state on, one per split.
    """
    work, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    groups = tl.cdiv(rows, 8)
    group, head, sequence = work % groups, work // groups % HEADS, work // groups // HEADS
    query = fold_query(
        query_ptr + (sequence * HEADS + head) * rows * D, order_ptr, step_ptr,
        group * 8, rows, head, factor, D, D_PAD,
    )  # fmt: skip
    pages = tl.load(pages_ptr + sequence)
    skipped, low = 0, tl.zeros([8], tl.int32)
    if WINDOW:
        held = tl.load(exact_ptr + sequence)
        skipped = first_place(pages, held, new, window, WINDOW)
        low = lows(pages, held, new, window, group * 8).to(tl.int32)
    share = tl.cdiv(pages - skipped, splits)
    first = skipped + split * share
    order_ptr, steps_ptr = order_ptr + head * D, steps_ptr + head * 256
    inv_step_ptr += head * D
    middle = tl.load(spread_ptr + head * 2 + 1)
    channel = tl.arange(0, D_PAD)[None, :]
    best = tl.full([8], _NONE, tl.float32)
    total = tl.zeros([8], tl.float32)
    mean = tl.zeros([8, D_PAD], tl.float32)
    for place in range(first, tl.minimum(first + share, pages)):
        page = tl.load(table_ptr + sequence * table_stride + place).to(tl.int64)
        section = page * HEADS + head
        row_ptr = descriptors_ptr + section * _DESCRIPTOR
        packed = tl.load(directory_ptr + section * _ROW + _EXTENT) != 0
        exact = tl.load(row_ptr + tl.where(packed, _SINKS, _TOKENS))
        section_ptr = words_ptr + tl.load(bases_ptr + section)
        # hoisted, the index arithmetic of all planes would not fit the registers
        for start in tl.range(0, exact, TOKENS, disable_licm=True):
            t = start + tl.arange(0, TOKENS)[:, None]
            keys = load_k_tokens(
                section_ptr, row_ptr, order_ptr, inv_step_ptr, steps_ptr, t, channel, D
            )
            scores = tl.where(t < exact, score_rows(keys, query), _NONE)
            if WINDOW:
                scores = tl.where(t + place * 64 >= low[None, :], scores, _NONE)
            before = best
            best = tl.maximum(best, tl.max(scores, 0))
            # a query whose window begins later has seen nothing yet
            floor = tl.where(best == _NONE, 0.0, best) if WINDOW else best
            shrink = tl.exp2(before - floor)
            p = tl.exp2(scores - floor[None, :])
            total = total * shrink + tl.sum(p, 0)
            values = load_v_tokens(
                section_ptr, row_ptr, steps_ptr, middle, t, channel,
                D, UNIT_V, SPAN, FACTOR,
            )  # fmt: skip
            mean = mean * shrink[:, None] + _weigh(p, values)
    at, column = work * states + first_state + split, tl.arange(0, 8)
    mean /= tl.where(total == 0, 1.0, total)[:, None]
    tl.store(
        mean_ptr + at * (D * 8) + channel * 8 + column[:, None], mean, mask=channel < D
    )  # fmt: skip
    tl.store(
        lse_ptr + at * 8 + column,
        tl.where(total == 0, _NONE, best + tl.log2(tl.where(total == 0, 1.0, total))),
    )


@triton.jit
def _weigh(p, values):
    """pᵀ · values: [8, channels] from [tokens, 8] and [tokens, channels]."""
    column = tl.arange(0, 8)
    means = tl.zeros([8, values.shape[1]], tl.float32)
    for n in tl.static_range(8):
        weight = tl.sum(tl.where(column[None, :] == n, p, 0.0), 1)
        means = tl.where(column[:, None] == n, tl.sum(values * weight[:, None], 0)[None, :], means)
    return means

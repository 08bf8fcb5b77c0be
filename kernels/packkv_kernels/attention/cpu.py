"""Attention over packed pages on the CPU: fused for few queries, unpack-once for many."""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from packkv_kernels.attention.packed import PackedLayer
from packkv_kernels.attention.state import AttentionState, dense_state
from packkv_kernels.backend import run_parallel
from packkv_kernels.compress.unpack import unpack_k_tile, unpack_v_tile
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format.compiled import compiled

# Up to this many query rows per KV head the dot products cost less inside the unpacking loop than
# a second pass over an unpacked workspace does.
FUSED_ROWS = 12

# A first token before any, for queries that see all.
_ALL = -(1 << 40)


def packed_states(
    queries: Sequence[torch.Tensor],
    layer: PackedLayer,
    page_tables: Sequence[NDArray[np.int32]],
    scaling: float,
    first_seen: Sequence[int | None] | None = None,
) -> list[AttentionState | None]:
    """Attention of each row's queries over the tokens of the row's pages.

    Args:
        queries: per row [q_heads, new, head_dim]; `new` may differ between rows.
        layer: the packed pages.
        page_tables: per row int32 [pages], page slots in order; may be empty.
        scaling: factor of the scores.
        first_seen: per row the position of the first token that its first query sees; each later
            query sees from one token later on. None, in all or for a row, shows all tokens. Pages
            that no query sees are not read.

    Returns:
        Per row the state, or None for a row without pages to look at. The lse of a query that sees
        no token is −∞, and its mean 0.
    """
    states: list[AttentionState | None] = [None] * len(queries)
    lowest = [_ALL if low is None else low for low in first_seen or [None] * len(queries)]
    skipped = [max(0, low) // BLOCK_TOKENS for low in lowest]
    page_tables = [table[skip:] for table, skip in zip(page_tables, skipped, strict=True)]
    lowest = [low - skip * BLOCK_TOKENS for low, skip in zip(lowest, skipped, strict=True)]
    fused: list[int] = []
    for row, (query, table) in enumerate(zip(queries, page_tables, strict=True)):
        if len(table) == 0:
            continue
        if query.shape[0] // layer.heads * query.shape[1] <= FUSED_ROWS:
            fused.append(row)
        else:
            states[row] = _unpacked_state(query, layer, table, scaling, lowest[row])
    # rows of one shape share a launch, so that a batch of short sequences fills the cores
    for shape in {queries[row].shape for row in fused}:
        rows = [row for row in fused if queries[row].shape == shape]
        found = _fused_states(
            [queries[row] for row in rows],
            layer,
            [page_tables[row] for row in rows],
            scaling,
            [lowest[row] for row in rows],
        )
        for row, state in zip(rows, found, strict=True):
            states[row] = state
    return states


def _unpacked_state(
    query: torch.Tensor,
    layer: PackedLayer,
    table: NDArray[np.int32],
    scaling: float,
    lowest: int,
) -> AttentionState:
    keys = torch.empty(layer.heads, len(table) * BLOCK_TOKENS, layer.head_dim)
    values = torch.empty_like(keys)
    packed, out = _arrays(layer), (keys.numpy(), values.numpy())

    def work(start: int, stop: int) -> None:
        _unpack_pages(start, stop, *packed, table, *out)

    run_parallel(work, layer.heads * len(table))
    # when even the last query sees the first token there is nothing to hide
    first = lowest if lowest + query.shape[1] > 1 else None
    folded = layer.fold_query(query, scaling)
    state = dense_state(folded, keys, values, causal=False, first_seen=first)
    return AttentionState(layer.unrotate(state.out), state.lse)


def _fused_states(
    queries: Sequence[torch.Tensor],
    layer: PackedLayer,
    page_tables: Sequence[NDArray[np.int32]],
    scaling: float,
    first_seen: Sequence[int],
) -> list[AttentionState]:
    q_heads, new, head_dim = queries[0].shape
    rows = q_heads // layer.heads * new
    folded = torch.stack([layer.fold_query(query, scaling) for query in queries])
    batch = len(queries)
    starts = np.zeros(batch + 1, np.int64)
    np.cumsum([len(table) for table in page_tables], out=starts[1:])
    tasks = batch * layer.heads
    longest = max(len(table) for table in page_tables)
    # enough splits to fill the cores twice over, but never one without a page
    splits = max(1, min(longest, -(-2 * torch.get_num_threads() // tasks)))
    out = np.empty((batch, layer.heads, splits, rows, head_dim), np.float32)
    lse = np.empty((batch, layer.heads, splits, rows), np.float32)
    query = folded.reshape(batch, layer.heads, rows, head_dim).numpy()
    packed, tables = _arrays(layer), np.concatenate(page_tables)
    lowest = np.array(first_seen, np.int64)

    def work(start: int, stop: int) -> None:
        _fused_attention(start, stop, query, *packed, tables, starts, lowest, new, out, lse)

    run_parallel(work, batch * layer.heads * splits)
    parts, weights = torch.from_numpy(out), torch.from_numpy(lse)
    total = torch.logsumexp(weights, dim=2)  # [batch, heads, rows]
    floor = total.masked_fill(total == float("-inf"), 0.0)
    share = torch.exp(weights - floor[:, :, None])
    merged = layer.unrotate((parts * share[..., None]).sum(dim=2))
    return [
        AttentionState(
            merged[row].reshape(q_heads, new, head_dim), total[row].reshape(q_heads, new)
        )
        for row in range(batch)
    ]


_Arrays = tuple[
    NDArray[np.uint32],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int16],
    NDArray[np.float32],
    NDArray[np.uint8],
]


def _arrays(layer: PackedLayer) -> _Arrays:
    """A layer as compiled loops take it."""
    plan = layer.plan
    return (layer.words, layer.bases, layer.descriptors, plan.order, plan.inv_step, plan.levels)


@compiled
def _unpack_pages(
    start: int,
    stop: int,
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    order: NDArray[np.int16],
    inv_step: NDArray[np.float32],
    levels: NDArray[np.uint8],
    table: NDArray[np.int32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
) -> None:
    """Unpacks the pages of `table` into keys and values [heads, pages · 64, head_dim].

    A task is a (head, page); start … stop are the tasks of this call.
    """
    pages = table.shape[0]
    for task in range(start, stop):
        head, place = task // pages, task % pages
        page = table[place]
        first = place * BLOCK_TOKENS
        unpack_k_tile(
            words,
            bases[page, head],
            descriptors[page, head],
            order[head],
            inv_step[head],
            keys[head, first : first + BLOCK_TOKENS],
        )
        unpack_v_tile(
            words,
            bases[page, head],
            descriptors[page, head],
            levels[head],
            values[head, first : first + BLOCK_TOKENS],
        )


# sums over channels and tokens may be reordered, or they would not vectorise; NaN stays NaN
@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _fused_attention(
    start: int,
    stop: int,
    queries: NDArray[np.float32],
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    order: NDArray[np.int16],
    inv_step: NDArray[np.float32],
    levels: NDArray[np.uint8],
    tables: NDArray[np.int32],
    starts: NDArray[np.int64],
    lowest: NDArray[np.int64],
    new: int,
    out: NDArray[np.float32],
    lse: NDArray[np.float32],
) -> None:
    """One task per (sequence, KV head, split): unpack a tile, score it, weigh it, forget it.

    Args:
        start, stop: the tasks of this call.
        queries: [batch, heads, rows, head_dim] in the packed domain.
        tables, starts: page slots of all sequences, and where each sequence's begin.
        lowest: of each sequence, the first token that its first query sees.
        new: query row r is that of the new token r % new.
        out, lse: [batch, heads, splits, rows(, head_dim)], one partial state per task.
    """
    heads, splits, rows, head_dim = out.shape[1:]
    for task in range(start, stop):
        row, rest = task // (heads * splits), task % (heads * splits)
        head, split = rest // splits, rest % splits
        pages = starts[row + 1] - starts[row]
        first = starts[row] + pages * split // splits
        last = starts[row] + pages * (split + 1) // splits
        query = queries[row, head]
        tile = np.empty((BLOCK_TOKENS, head_dim), np.float32)
        scores = np.empty((rows, BLOCK_TOKENS), np.float32)
        top = np.full(rows, np.float32(-np.inf), np.float32)
        total = np.zeros(rows, np.float32)
        mean = np.zeros((rows, head_dim), np.float32)
        hidden = np.zeros(rows, np.int64)
        for place in range(first, last):
            page = tables[place]
            base, descriptor = bases[page, head], descriptors[page, head]
            unpack_k_tile(words, base, descriptor, order[head], inv_step[head], tile)
            before = lowest[row] - (place - starts[row]) * BLOCK_TOKENS
            for r in range(rows):
                hidden[r] = min(max(before + r % new, 0), BLOCK_TOKENS)
                if hidden[r] == BLOCK_TOKENS:
                    continue
                best = top[r]
                for t in range(hidden[r], BLOCK_TOKENS):
                    score = np.float32(0)
                    for c in range(head_dim):
                        score += query[r, c] * tile[t, c]
                    scores[r, t] = score
                    best = max(best, score)
                shrink = np.exp(top[r] - best)
                top[r] = best
                weight = np.float32(0)
                for t in range(hidden[r], BLOCK_TOKENS):
                    scores[r, t] = np.exp(scores[r, t] - best)
                    weight += scores[r, t]
                total[r] = total[r] * shrink + weight
                for c in range(head_dim):
                    mean[r, c] *= shrink
            unpack_v_tile(words, base, descriptor, levels[head], tile)
            for r in range(rows):
                for t in range(hidden[r], BLOCK_TOKENS):
                    weight = scores[r, t]
                    for c in range(head_dim):
                        mean[r, c] += weight * tile[t, c]
        for r in range(rows):
            if total[r] == 0:
                lse[row, head, split, r] = -np.inf
                out[row, head, split, r] = 0
            else:
                lse[row, head, split, r] = top[r] + np.log(total[r])
                for c in range(head_dim):
                    out[row, head, split, r, c] = mean[r, c] / total[r]

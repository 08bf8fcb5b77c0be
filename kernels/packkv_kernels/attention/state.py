"""AttentionState: attention over some of the tokens, ready to be merged with the rest."""

from typing import NamedTuple

import torch


class AttentionState(NamedTuple):
    """A softmax-weighted mean over a subset of the tokens, and the weight of that subset.

    Attributes:
        out: float32 [q_heads, new, head_dim].
        lse: float32 [q_heads, new], logarithm of the sum of exponentials of the subset's scores.
    """

    out: torch.Tensor
    lse: torch.Tensor


def merge(first: AttentionState, second: AttentionState) -> AttentionState:
    """Attention over the union of two disjoint subsets (Milakov and Gimelshein, 2018)."""
    lse = torch.logaddexp(first.lse, second.lse)
    out = (
        first.out * torch.exp(first.lse - lse)[..., None]
        + second.out * torch.exp(second.lse - lse)[..., None]
    )
    return AttentionState(out, lse)


def dense_state(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    causal: bool,
    first_seen: int | None = None,
) -> AttentionState:
    """Attention over uncompressed keys and values; the query already carries the scaling.

    Args:
        query: float32 [heads, group, new, head_dim].
        keys: float32 [heads, tokens, head_dim]; with `causal` the last `new` are the query's own.
        values: float32 [heads, tokens, head_dim].
        causal: whether a query sees only the tokens up to its own.
        first_seen: the first token that the first query sees, and each later one a token later;
            may be negative. None shows all.
    """
    heads, group, new, head_dim = query.shape
    tokens = keys.shape[1]
    out = torch.empty_like(query)
    lse = query.new_empty(heads, group, new)
    # bounds the scores to about 64 MiB, whatever the lengths
    slab = max(1, (16 << 20) // max(1, heads * group * tokens))
    for start in range(0, new, slab):
        stop = min(new, start + slab)
        # causal queries of this slab see nothing past the slab's own last token
        seen = tokens - new + stop if causal else tokens
        rows = query[:, :, start:stop].reshape(heads, group * (stop - start), head_dim)
        scores = (rows @ keys[:, :seen].transpose(1, 2)).view(heads, group, stop - start, seen)
        if first_seen is not None and first_seen + stop > 1:
            before = torch.ones_like(scores[0, 0], dtype=torch.bool).tril(first_seen + start - 1)
            scores.masked_fill_(before, float("-inf"))
        if causal and stop - start > 1:
            hidden = torch.ones_like(scores[0, 0, :, -(stop - start) :], dtype=torch.bool).triu(1)
            scores[..., seen - (stop - start) :].masked_fill_(hidden, float("-inf"))
        part = torch.logsumexp(scores, dim=-1)
        # a query that sees none of these tokens has a sum of nothing: weights 0, not NaN
        floor = part.masked_fill(part == float("-inf"), 0.0) if first_seen is not None else part
        weights = torch.exp_(scores.sub_(floor[..., None]))
        mean = weights.view(heads, group * (stop - start), seen) @ values[:, :seen]
        out[:, :, start:stop] = mean.view(heads, group, stop - start, head_dim)
        lse[:, :, start:stop] = part
    return AttentionState(out.view(heads * group, new, head_dim), lse.view(heads * group, new))

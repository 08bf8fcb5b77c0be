"""Attention over the exact tokens of a sequence, alone or merged with its pages."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from packkv_kernels.attention.state import AttentionState, dense_state, merge
from packkv_kernels.config import BLOCK_TOKENS

__all__ = ["exact_attention", "first_seen", "with_exact"]


def first_seen(
    table: NDArray[np.int32], query: torch.Tensor, keys: torch.Tensor, window: int | None
) -> int | None:
    """Position of the first token that the first query sees; each later query sees from one on.

    Args:
        table: pages before the exact tokens.
        query: [q_heads, new, head_dim].
        keys: [heads, exact, head_dim].
        window: tokens that a query sees, its own included; None for all.

    Returns:
        None without a window; may be negative.
    """
    if window is None:
        return None
    return len(table) * BLOCK_TOKENS + keys.shape[1] - query.shape[1] - window + 1


def with_exact(
    state: AttentionState,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Attention over the tokens of a state and the exact ones after them."""
    grouped = (query.float() * scaling).view(keys.shape[0], -1, *query.shape[1:])
    lowest = None if window is None else keys.shape[1] - query.shape[1] - window + 1
    exact = dense_state(grouped, keys.float(), values.float(), causal=True, first_seen=lowest)
    return merge(state, exact).out.to(query.dtype)


def exact_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Without pages this is ordinary attention, so the library's kernel does it."""
    new, tokens = query.shape[1], keys.shape[1]
    mask = None
    slides = window is not None and window < tokens
    if slides or (new != tokens and new > 1):
        mask = torch.ones(new, tokens, dtype=torch.bool, device=query.device)
        mask = mask.tril(tokens - new)
        if window is not None:
            mask = mask.triu(tokens - new - window + 1)
    return F.scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None and new > 1,
        scale=scaling,
        enable_gqa=query.shape[0] != keys.shape[0],
    )[0]

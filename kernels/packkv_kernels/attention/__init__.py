"""Attention over packed pages and uncompressed tokens at once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from packkv_kernels.attention import cpu, reference
from packkv_kernels.attention.packed import PackedLayer
from packkv_kernels.attention.state import AttentionState, dense_state, merge
from packkv_kernels.backend import choose_backend
from packkv_kernels.errors import InvalidInput

__all__ = ["AttentionState", "PackedLayer", "attend", "merge"]


def attend(
    queries: Sequence[torch.Tensor],
    layer: PackedLayer | None,
    page_tables: Sequence[NDArray[np.int32]],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    *,
    scaling: float,
    backend: str | None = None,
) -> list[torch.Tensor]:
    """Causal attention of a ragged batch over packed pages, then exact tokens.

    Args:
        queries: per row [q_heads, new, head_dim]; q_heads a multiple of the KV heads.
        layer: the packed pages of this layer; None while there are none anywhere.
        page_tables: per row int32 [pages]: the pages before the exact tokens, in order.
        keys: per row [heads, exact, head_dim]; the last `new` tokens are the queries' own.
        values: like keys.
        scaling: factor of the scores, usually head_dim ** -0.5.
        backend: a name from `available_backends`; None takes the best for the device.

    Returns:
        Per row [q_heads, new, head_dim] in the dtype of the query.

    Raises:
        InvalidInput: shapes that do not fit each other.
    """
    for query, own, other in zip(queries, keys, values, strict=True):
        _check_shapes(query, own, other)
    states: Sequence[AttentionState | None] = [None] * len(queries)
    if layer is not None and queries:
        choice = choose_backend(backend, queries[0].device)
        states = _over_pages(choice)(queries, layer, page_tables, scaling)
    return [
        _exact_attention(query, own, other, scaling)
        if state is None
        else _with_exact(state, query, own, other, scaling)
        for query, state, own, other in zip(queries, states, keys, values, strict=True)
    ]


def _over_pages(backend: str) -> Callable[..., Sequence[AttentionState | None]]:
    if backend == "triton":
        # machines without a GPU never load it
        from packkv_kernels.attention import triton

        return triton.packed_states
    return reference.packed_states if backend == "reference" else cpu.packed_states


def _with_exact(
    state: AttentionState,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    grouped = (query.float() * scaling).view(keys.shape[0], -1, *query.shape[1:])
    exact = dense_state(grouped, keys.float(), values.float(), causal=True)
    return merge(state, exact).out.to(query.dtype)


def _exact_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Without pages this is ordinary attention, so the library's kernel does it."""
    new, tokens = query.shape[1], keys.shape[1]
    mask = None
    if new != tokens and new > 1:
        mask = torch.ones(new, tokens, dtype=torch.bool, device=query.device)
        mask = mask.tril(tokens - new)
    return F.scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=new == tokens and new > 1,
        scale=scaling,
        enable_gqa=query.shape[0] != keys.shape[0],
    )[0]


def _check_shapes(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    q_heads, new, head_dim = query.shape
    heads, tokens, _ = keys.shape
    if keys.shape != values.shape or keys.shape[2] != head_dim:
        raise InvalidInput(
            f"K {tuple(keys.shape)} and V {tuple(values.shape)} must both be "
            f"[heads, tokens, {head_dim}]"
        )
    if q_heads % heads:
        raise InvalidInput(f"{q_heads} query heads are not a multiple of {heads} KV heads")
    if new > tokens:
        raise InvalidInput(
            f"{new} queries but only {tokens} exact tokens: a query's own K and V must be there"
        )

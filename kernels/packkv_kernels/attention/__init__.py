"""Attention over packed pages and uncompressed tokens at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention import cpu, reference
from packkv_kernels.attention.dense import exact_attention, first_seen, with_exact
from packkv_kernels.attention.packed import PackedLayer
from packkv_kernels.attention.state import AttentionState, merge
from packkv_kernels.attention.tables import PageTables
from packkv_kernels.backend import choose_backend
from packkv_kernels.errors import InvalidInput

if TYPE_CHECKING:
    from packkv_kernels.attention.triton import DeviceLayer

__all__ = ["AttentionState", "PackedLayer", "PageTables", "attend", "merge"]


def attend(
    queries: Sequence[torch.Tensor],
    layer: "PackedLayer | DeviceLayer | None",
    page_tables: Sequence[NDArray[np.int32]],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    *,
    scaling: float,
    exact: Sequence[int] | None = None,
    window: int | None = None,
    backend: str | None = None,
) -> list[torch.Tensor]:
    """Causal attention of a ragged batch over packed pages, then exact tokens.

    Args:
        queries: per row [q_heads, new, head_dim]; q_heads a multiple of the KV heads.
        layer: the packed pages of this layer; None while there are none anywhere.
        page_tables: per row int32 [pages]: the pages before the exact tokens, in order. For pages
            on a device a `PageTables` saves copying them there.
        keys: per row [heads, room, head_dim]: the exact tokens.
        values: like keys.
        scaling: factor of the scores, usually head_dim ** -0.5.
        exact: per row how many exact tokens there are, from the first on; None for all that there
            is room for. The last `new` are the queries' own.
        window: tokens that a query sees, its own included; None for all before it. Pages that are
            wholly outside are not read.
        backend: a name from `available_backends`; None takes the best for the device. Pages that
            lie on a device are always read there.

    Returns:
        Per row [q_heads, new, head_dim] in the dtype of the query.

    Raises:
        InvalidInput: shapes that do not fit each other, or an empty window.
    """
    counts = [own.shape[1] for own in keys] if exact is None else exact
    for query, own, other, count in zip(queries, keys, values, counts, strict=True):
        _check_shapes(query, own, other, count)
    if window is not None and window < 1:
        raise InvalidInput(f"a window of {window} tokens; it must be 1 or more")
    own_keys, own_values = (
        [part[:, :count] for part, count in zip(side, counts, strict=True)]
        for side in (keys, values)
    )
    if layer is None or not any(len(table) for table in page_tables):
        return [
            exact_attention(query, own, other, scaling, window)
            for query, own, other in zip(queries, own_keys, own_values, strict=True)
        ]
    if isinstance(layer, PackedLayer):
        choice = choose_backend(backend, queries[0].device)
        if choice != "triton":
            return _attend_on_host(
                queries, layer, page_tables, own_keys, own_values, scaling, window, choice
            )
    # machines without a GPU never load it
    from packkv_kernels.attention import triton

    return triton.attend_rows(queries, layer, page_tables, keys, values, counts, scaling, window)


def _attend_on_host(
    queries: Sequence[torch.Tensor],
    layer: PackedLayer,
    page_tables: Sequence[NDArray[np.int32]],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    scaling: float,
    window: int | None,
    backend: str,
) -> list[torch.Tensor]:
    lowest = [
        first_seen(table, query, own, window)
        for query, table, own in zip(queries, page_tables, keys, strict=True)
    ]
    over_pages = reference.packed_states if backend == "reference" else cpu.packed_states
    states = over_pages(queries, layer, page_tables, scaling, lowest)
    return [
        exact_attention(query, own, other, scaling, window)
        if state is None
        else with_exact(state, query, own, other, scaling, window)
        for query, state, own, other in zip(queries, states, keys, values, strict=True)
    ]


def _check_shapes(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, exact: int
) -> None:
    q_heads, new, head_dim = query.shape
    heads, room, _ = keys.shape
    if keys.shape != values.shape or keys.shape[2] != head_dim:
        raise InvalidInput(
            f"K {tuple(keys.shape)} and V {tuple(values.shape)} must both be "
            f"[heads, tokens, {head_dim}]"
        )
    if q_heads % heads:
        raise InvalidInput(f"{q_heads} query heads are not a multiple of {heads} KV heads")
    if not new <= exact <= room:
        raise InvalidInput(
            f"{new} queries but only {exact} exact tokens, in room for {room}: a query's own K and "
            "V must be there"
        )

"""The definition of right: unpack every page to ordinary K and V, then ordinary attention."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention.packed import PackedLayer
from packkv_kernels.attention.state import AttentionState
from packkv_kernels.compress.reference import decode_layer
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format import ResidentSections


def packed_states(
    queries: Sequence[torch.Tensor],
    layer: PackedLayer,
    page_tables: Sequence[NDArray[np.int32]],
    scaling: float,
    first_seen: Sequence[int | None] | None = None,
) -> list[AttentionState | None]:
    """Attention of each row's queries over the tokens of the row's pages; see `cpu`."""
    lowest = [None] * len(queries) if first_seen is None else first_seen
    skipped = [0 if low is None else max(0, low) // BLOCK_TOKENS for low in lowest]
    return [
        _state(
            query, layer, table[skip:], scaling, None if low is None else low - skip * BLOCK_TOKENS
        )
        if len(table) > skip
        else None
        for query, table, low, skip in zip(queries, page_tables, lowest, skipped, strict=True)
    ]


def _state(
    query: torch.Tensor,
    layer: PackedLayer,
    table: NDArray[np.int32],
    scaling: float,
    first_seen: int | None,
) -> AttentionState:
    pages = [_decode_page(layer, int(page)) for page in table]
    keys = torch.cat([keys for keys, _ in pages]).double()  # [tokens, heads, head_dim]
    values = torch.cat([values for _, values in pages]).double()
    grouped = query.double().view(layer.heads, -1, *query.shape[1:])
    scores = torch.einsum("hgnd,thd->hgnt", grouped, keys) * scaling
    if first_seen is not None:
        position, query_place = torch.arange(len(keys)), torch.arange(query.shape[1])
        hidden = position < first_seen + query_place[:, None]
        scores = scores.masked_fill(hidden, float("-inf"))
    # a query that sees none of the pages' tokens has no mean of them
    weights = scores.softmax(-1).nan_to_num(0.0)
    out = torch.einsum("hgnt,thd->hgnd", weights, values)
    return AttentionState(
        out.flatten(0, 1).float(), torch.logsumexp(scores, -1).flatten(0, 1).float()
    )


def _decode_page(layer: PackedLayer, page: int) -> tuple[torch.Tensor, torch.Tensor]:
    sections = ResidentSections(layer.words, layer.bases[page], layer.descriptors[page])
    return decode_layer(sections, range(layer.heads), layer.plan)

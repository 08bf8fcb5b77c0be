"""The definition of right: unpack every page to ordinary K and V, then ordinary attention."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention.packed import PackedLayer
from packkv_kernels.attention.state import AttentionState
from packkv_kernels.compress.reference import decode_layer
from packkv_kernels.format import ResidentSections


def packed_states(
    queries: Sequence[torch.Tensor],
    layer: PackedLayer,
    page_tables: Sequence[NDArray[np.int32]],
    scaling: float,
) -> list[AttentionState | None]:
    """Attention of each row's queries over all tokens of the row's pages; see `cpu`."""
    return [
        _state(query, layer, table, scaling) if len(table) else None
        for query, table in zip(queries, page_tables, strict=True)
    ]


def _state(
    query: torch.Tensor, layer: PackedLayer, table: NDArray[np.int32], scaling: float
) -> AttentionState:
    pages = [_decode_page(layer, int(page)) for page in table]
    keys = torch.cat([keys for keys, _ in pages]).double()  # [tokens, heads, head_dim]
    values = torch.cat([values for _, values in pages]).double()
    grouped = query.double().view(layer.heads, -1, *query.shape[1:])
    scores = torch.einsum("hgnd,thd->hgnt", grouped, keys) * scaling
    out = torch.einsum("hgnt,thd->hgnd", scores.softmax(-1), values)
    return AttentionState(
        out.flatten(0, 1).float(), torch.logsumexp(scores, -1).flatten(0, 1).float()
    )


def _decode_page(layer: PackedLayer, page: int) -> tuple[torch.Tensor, torch.Tensor]:
    sections = ResidentSections(layer.words, layer.bases[page], layer.descriptors[page])
    return decode_layer(sections, range(layer.heads), layer.plan)

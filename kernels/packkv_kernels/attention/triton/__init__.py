"""Attention over packed pages on a GPU: fused for few queries, unpack-once for many.

fragments  planes to tensor-core operands, in registers;  stepped  the query times channel steps
tiles      the decode kernel over packed tiles;  minima  what is taken out of its loop
exact      the tokens it leaves aside;  combine  the merge of all partial states
decode     the fixed sequence of launches;  resident  pages on the device
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention.packed import PackedLayer
from packkv_kernels.attention.state import AttentionState, dense_state
from packkv_kernels.attention.triton.decode import PackedDecode
from packkv_kernels.attention.triton.resident import DeviceLayer, resident_layer

__all__ = ["DeviceLayer", "PackedDecode", "packed_states", "resident_layer"]

# Up to this many query rows per KV head the pages are read once per 8 rows; past it, unpacked once.
FUSED_ROWS = 16

# Programs that keep a GPU busy, and the fewest pages worth one.
_PROGRAMS = 512
_SPLIT_PAGES = 4


def packed_states(
    queries: Sequence[torch.Tensor],
    layer: PackedLayer,
    page_tables: Sequence[NDArray[np.int32]],
    scaling: float,
) -> list[AttentionState | None]:
    """Attention of each row's queries over all tokens of the row's pages; see `cpu`.

    The pages lie in host memory: those that are needed are copied to the device, at every call.
    A server keeps a `DeviceLayer` and a `PackedDecode` instead.
    """
    states: list[AttentionState | None] = [None] * len(queries)
    rows = [row for row, table in enumerate(page_tables) if len(table)]
    if not rows:
        return states
    pages = np.unique(np.concatenate([page_tables[row] for row in rows]))
    resident = resident_layer(layer, pages, queries[rows[0]].device)
    tables = {row: np.searchsorted(pages, page_tables[row]).astype(np.int32) for row in rows}
    for shape in {queries[row].shape for row in rows}:
        alike = [row for row in rows if queries[row].shape == shape]
        if shape[0] // layer.heads * shape[1] > FUSED_ROWS:
            for row in alike:
                states[row] = _unpacked_state(queries[row], resident, tables[row], scaling)
            continue
        found = _fused_states(
            [queries[row] for row in alike], resident, [tables[row] for row in alike], scaling
        )
        for row, state in zip(alike, found, strict=True):
            states[row] = state
    return states


def _unpacked_state(
    query: torch.Tensor, layer: DeviceLayer, table: NDArray[np.int32], scaling: float
) -> AttentionState:
    pages = torch.from_numpy(table).to(query.device)
    keys, values = layer.unpack(pages)
    grouped = (query.float() * scaling).view(layer.heads, -1, *query.shape[1:])
    return dense_state(grouped, keys, values, causal=False)


def _fused_states(
    queries: Sequence[torch.Tensor],
    layer: DeviceLayer,
    page_tables: Sequence[NDArray[np.int32]],
    scaling: float,
) -> list[AttentionState]:
    q_heads, new, head_dim = queries[0].shape
    device, batch = queries[0].device, len(queries)
    longest = max(len(table) for table in page_tables)
    table = np.zeros((batch, longest), np.int32)
    for row, own in enumerate(page_tables):
        table[row, : len(own)] = own
    counts = torch.tensor([len(own) for own in page_tables], dtype=torch.int32, device=device)
    splits = max(1, min(longest // _SPLIT_PAGES, _PROGRAMS // (batch * layer.heads)))
    decode = PackedDecode(
        layer, batch=batch, rows=q_heads // layer.heads * new, max_pages=longest, splits=splits
    )
    query = torch.stack(list(queries)).view(batch, layer.heads, -1, head_dim)
    out, lse = decode(query.contiguous(), torch.from_numpy(table).to(device), counts, scaling)
    out, lse = out.view(batch, q_heads, new, head_dim), lse.view(batch, q_heads, new)
    return [AttentionState(out[row], lse[row]) for row in range(batch)]

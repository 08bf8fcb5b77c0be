"""Ragged batches on the device: rows of one shape share a launch, long suffixes unpack once."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention.dense import exact_attention, first_seen, with_exact
from packkv_kernels.attention.packed import PackedLayer
from packkv_kernels.attention.state import dense_state
from packkv_kernels.attention.tables import PageTables, send
from packkv_kernels.attention.triton.batch import BatchDecode, BatchShape
from packkv_kernels.attention.triton.resident import DeviceLayer, resident_layer
from packkv_kernels.config import BLOCK_TOKENS

__all__ = ["FUSED_ROWS", "attend_rows"]

Tables = Sequence[NDArray[np.int32]]

# Up to this many query rows per KV head the pages are read once per 8 rows; past it, unpacked once.
FUSED_ROWS = 16

# Programs that keep a GPU busy, and the fewest pages worth one.
_PROGRAMS = 512
_SPLIT_PAGES = 4

# Room for the residuals of several rows comes in steps of so many tokens.
_ROOM_STEP = 16


def attend_rows(
    queries: Sequence[torch.Tensor],
    layer: PackedLayer | DeviceLayer,
    page_tables: Tables,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    counts: Sequence[int],
    scaling: float,
    window: int | None,
) -> list[torch.Tensor]:
    """Causal attention of a ragged batch over packed pages, then exact tokens; see `attend`.

    The host waits for nothing. Rows of one shape take one sequence of launches; a `PageTables` is
    read where it is, and steps of one shape share its buffers. Pages in host memory are copied to
    the device, those that are needed, at every call.
    """
    if isinstance(layer, PackedLayer):
        layer, page_tables = _on_device(layer, page_tables, queries[0].device)
    found: dict[int, torch.Tensor] = {}
    for shape in {query.shape for query in queries}:
        rows = [row for row, query in enumerate(queries) if query.shape == shape]
        if shape[0] // layer.heads * shape[1] > FUSED_ROWS:
            for row in rows:
                exact = slice(0, counts[row])
                own = (page_tables[row], keys[row][:, exact], values[row][:, exact])
                found[row] = _attend_long(queries[row], layer, *own, scaling, window)
            continue
        out = _fused(
            [queries[row] for row in rows],
            layer,
            page_tables if len(rows) == len(queries) else [page_tables[row] for row in rows],
            [keys[row] for row in rows],
            [values[row] for row in rows],
            [counts[row] for row in rows],
            scaling,
            window,
        )
        found.update(zip(rows, out, strict=True))
    return [found[row] for row in range(len(queries))]


def _on_device(
    layer: PackedLayer, page_tables: Tables, device: torch.device
) -> tuple[DeviceLayer, Tables]:
    """The pages that tables name, copied to the device, and what the tables are there."""
    pages = np.unique(np.concatenate(list(page_tables)))
    tables = [np.searchsorted(pages, table).astype(np.int32) for table in page_tables]
    return resident_layer(layer, pages, device), tables


def _fused(
    queries: Sequence[torch.Tensor],
    layer: DeviceLayer,
    page_tables: Tables,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    counts: Sequence[int],
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Attention of rows of one shape, [batch, q_heads, new, head_dim]."""
    batch, longest = len(queries), max(len(table) for table in page_tables)
    if not isinstance(page_tables, PageTables):
        tables = PageTables(batch, max(1, longest), queries[0].device)
        tables.update(page_tables)
        page_tables = tables
    q_heads, new, head_dim = queries[0].shape
    shape = BatchShape(
        batch=batch,
        q_heads=q_heads,
        new=new,
        head_dim=head_dim,
        places=page_tables.table.shape[1],
        splits=max(1, min(longest // _SPLIT_PAGES, _PROGRAMS // (batch * layer.heads))),
        room=_room(keys),
        window=window,
        dtype=keys[0].dtype,
    )
    decode = page_tables.decodes.get(window)
    if decode is None or decode.shape != shape:
        decode = page_tables.decodes[window] = BatchDecode(layer, shape)
    return decode(queries, layer, page_tables, keys, values, counts, scaling)


def _room(keys: Sequence[torch.Tensor]) -> int:
    """Room for the residual of every row."""
    rooms = [part.shape[1] for part in keys]
    return rooms[0] if len(rooms) == 1 else -(-max(rooms) // _ROOM_STEP) * _ROOM_STEP


def _attend_long(
    query: torch.Tensor,
    layer: DeviceLayer,
    table: NDArray[np.int32],
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Attention of many queries of one row: its pages are unpacked once."""
    lowest = first_seen(table, query, keys, window)
    skipped = max(0, lowest or 0) // BLOCK_TOKENS
    if skipped >= len(table):
        return exact_attention(query, keys, values, scaling, window)
    pages = torch.empty(len(table) - skipped, dtype=torch.int32, device=query.device)
    send(table[skipped:], pages)
    own_keys, own_values = layer.unpack(pages)
    grouped = (query.float() * scaling).view(layer.heads, -1, *query.shape[1:])
    lowest = None if lowest is None else lowest - skipped * BLOCK_TOKENS
    state = dense_state(grouped, own_keys, own_values, causal=False, first_seen=lowest)
    return with_exact(state, query, keys, values, scaling, window)

"""BatchDecode: the decode steps of a batch, in buffers that stay while its shape does."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from packkv_kernels.attention.tables import PageTables
from packkv_kernels.attention.triton.decode import PackedDecode, Residual
from packkv_kernels.attention.triton.resident import DeviceLayer

__all__ = ["BatchDecode", "BatchShape"]


class BatchShape(NamedTuple):
    """All that the sizes of buffers follow from.

    Attributes:
        batch, q_heads, new, head_dim: of the queries.
        places: of a page table.
        splits: programs that share the pages of a sequence and KV head.
        room: tokens that the residual has room for.
        window: tokens that a query sees, its own included; None for all.
        dtype: of the residual.
    """

    batch: int
    q_heads: int
    new: int
    head_dim: int
    places: int
    splits: int
    room: int
    window: int | None
    dtype: torch.dtype


class BatchDecode:
    """Attention of a batch of one shape, layer after layer and step after step.

    A call takes no memory but that of its result, and never waits for the device.
    """

    # of inference mode, buffers could not be written outside of it
    @torch.inference_mode(False)
    def __init__(self, layer: DeviceLayer, shape: BatchShape) -> None:
        """
        Args:
            layer: any of the model.
            shape: of every call.
        """
        self.shape = shape
        self._decode = PackedDecode(
            layer,
            batch=shape.batch,
            rows=shape.q_heads // layer.heads * shape.new,
            max_pages=shape.places,
            splits=shape.splits,
            new=shape.new,
            room=shape.room,
            window=shape.window,
        )
        device = layer.words.device
        self._query = torch.empty(shape[:4], dtype=torch.float32, device=device)
        # the residual of one sequence is read where it lies
        together = shape.batch if shape.batch > 1 else 0
        size = (2, together, layer.heads, shape.room, shape.head_dim)
        self._residuals = torch.empty(size, dtype=shape.dtype, device=device)

    @torch.no_grad()
    def __call__(
        self,
        queries: Sequence[torch.Tensor],
        layer: DeviceLayer,
        tables: PageTables,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        counts: Sequence[int],
        scaling: float,
    ) -> torch.Tensor:
        """[batch, q_heads, new, head_dim] in the dtype of the queries; arguments as of `attend`."""
        tables.count_exact(counts)
        torch.stack(list(queries), out=self._query)
        residual = Residual(*self._side_by_side(keys, values, counts), tables.exact)
        query = self._query.view(self._decode.out.shape)
        out, _ = self._decode(query, tables.table, tables.pages, scaling, residual, layer=layer)
        # the next call overwrites it
        return out.view(self._query.shape).to(queries[0].dtype, copy=True)

    def _side_by_side(
        self,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        counts: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [batch, heads, room, head_dim] of all rows."""
        if len(counts) == 1:
            return keys[0][None].contiguous(), values[0][None].contiguous()
        for place, side in zip(self._residuals, (keys, values), strict=True):
            for row, (part, count) in enumerate(zip(side, counts, strict=True)):
                place[row, :, :count] = part[:, :count]
        return self._residuals[0], self._residuals[1]

"""PackedDecode: attention of few queries over all tokens, as a fixed sequence of launches."""

from typing import NamedTuple

import torch

from packkv_kernels.attention.triton.launch import QUERIES, decode_attention, reads_tiles
from packkv_kernels.attention.triton.resident import DeviceLayer
from packkv_kernels.errors import InvalidInput

__all__ = ["PackedDecode", "Residual"]

# Tokens of the residual that are worth a program more.
_RESIDUAL_SHARE = 256


class Residual(NamedTuple):
    """The exact tokens after the pages.

    Attributes:
        keys, values: [batch, heads, room, head_dim], contiguous; float16, bfloat16 or float32.
            What lies past a sequence's tokens is never looked at.
        tokens: int32 [batch], how many there are; the last `new` are the queries' own.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tokens: torch.Tensor


class PackedDecode:
    """Attention of one shape of batch, ready to be captured in a CUDA graph or compiled.

    Buffers are taken once. A call launches five kernels at most on the current stream, allocates
    nothing and never waits for the device; the result is overwritten by the next call. All lengths
    are read on the device, so that a captured graph follows growing sequences.
    """

    def __init__(
        self,
        layer: DeviceLayer,
        *,
        batch: int,
        rows: int,
        max_pages: int,
        splits: int,
        new: int = 1,
        room: int = 0,
        window: int | None = None,
    ) -> None:
        """
        Args:
            layer: the pages that a call attends over unless it names others.
            batch: sequences.
            rows: queries per KV head: group · new.
            max_pages: places of a page table.
            splits: programs that share the pages of a sequence and KV head.
            new: new tokens of each sequence.
            room: tokens that the residual has room for; 0 without one.
            window: tokens that a query sees, its own included; None for all.

        Raises:
            InvalidInput: a number that is too small, or rows that new does not divide.
        """
        least = min(batch, rows, max_pages, splits, new, 1 if window is None else window)
        if least < 1 or room < 0 or rows % new:
            raise InvalidInput(
                f"batch {batch}, {rows} rows of {new} new tokens, {max_pages} pages, {splits} "
                f"splits, room {room}, window {window}: all must be 1 or more (room: 0), and new "
                "must divide rows"
            )
        device = layer.words.device
        self.layer, self.rows, self.splits = layer, rows, splits
        self.new, self.window, self.room = new, window or 0, room
        groups = -(-rows // QUERIES)
        work = batch * layer.heads * groups
        packed = (2 if reads_tiles(layer.head_dim) else 1) * splits
        states = packed + -(-room // _RESIDUAL_SHARE)

        def floats(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        self.minima_scores = floats(batch, layer.heads, max_pages, QUERIES * groups)
        self.means = floats(work, states, layer.head_dim, QUERIES)
        self.weights = floats(work, states, QUERIES)
        self.out = floats(batch, layer.heads, rows, layer.head_dim)
        self.lse = floats(batch, layer.heads, rows)

    def __call__(
        self,
        query: torch.Tensor,
        table: torch.Tensor,
        pages: torch.Tensor,
        scaling: float,
        residual: Residual | None = None,
        *,
        layer: DeviceLayer | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over all tokens of the pages and of the residual.

        Args:
            query: [batch, heads, rows, head_dim], contiguous; float16, bfloat16 or float32. Row r
                belongs to new token r % new.
            table: int32 [batch, max_pages], contiguous; pages of the layer in order.
            pages: int32 [batch], how many of them a sequence has.
            scaling: factor of the scores.
            residual: the exact tokens; required if there was room for them or a window.
            layer: another layer of the same shape.

        Returns:
            (out float32 [batch, heads, rows, head_dim], lse float32 [batch, heads, rows]);
            lse is −∞ for a sequence without tokens.

        Raises:
            InvalidInput: shapes other than those that the buffers were taken for.
        """
        self._check(query, table, residual)
        found = self.layer if layer is None else layer
        decode_attention(
            query,
            *((None, None) if residual is None or not self.room else residual[:2]),
            None if residual is None else residual.tokens,
            *(table, pages, found.tensors, found.modes),
            *(self.minima_scores, self.means, self.weights, self.out, self.lse),
            *(scaling, self.new, self.window, self.splits),
        )
        return self.out, self.lse

    def _check(self, query: torch.Tensor, table: torch.Tensor, residual: Residual | None) -> None:
        batch, heads, places, _ = self.minima_scores.shape
        if query.shape != self.out.shape or table.shape != (batch, places):
            raise InvalidInput(
                f"queries {list(query.shape)} and tables {list(table.shape)}; buffers were taken "
                f"for {list(self.out.shape)} and {[batch, places]}"
            )
        if residual is None and (self.room or self.window):
            raise InvalidInput("without its residual nobody knows which tokens a query sees")
        if residual is None or not self.room:
            return
        wanted = (batch, heads, self.room, query.shape[3])
        if residual.keys.shape != wanted or residual.values.shape != wanted:
            raise InvalidInput(
                f"a residual of K {list(residual.keys.shape)} and V "
                f"{list(residual.values.shape)}; buffers were taken for {list(wanted)}"
            )

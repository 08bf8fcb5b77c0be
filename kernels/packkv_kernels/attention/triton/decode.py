"""PackedDecode: attention of few queries over packed pages, as a fixed sequence of launches."""

import math

import torch

from packkv_kernels.attention.triton.combine import combine_states
from packkv_kernels.attention.triton.exact import attend_exact
from packkv_kernels.attention.triton.minima import PAGES, score_minima
from packkv_kernels.attention.triton.resident import DeviceLayer
from packkv_kernels.attention.triton.tiles import attend_tiles
from packkv_kernels.compress.triton.target import Target
from packkv_kernels.format.directory import MAX_UNITS
from packkv_kernels.format.tile import K_UNIT, v_unit

__all__ = ["DECODE_REGISTERS", "EXACT_TOKENS", "PackedDecode", "decode_options"]

# Queries of one program: columns of the smallest mma.
QUERIES = 8

# Of a thread of the kernel over packed tiles: three programs share a multiprocessor.
DECODE_REGISTERS = 168

# Tokens of one step of the exact kernel: as many as there are sinks, and few enough registers.
EXACT_TOKENS = 4


def decode_options(target: Target, padded: int) -> dict[str, int]:
    """Launch options of the kernel over packed tiles.

    Args:
        target: of the launch.
        padded: channels that the kernel reckons with.
    """
    options = {"num_warps": 4, "num_stages": 1}
    # of 128 channels NVIDIA's compiler keeps to this bound by itself, and does better unasked
    return options | target.registers(DECODE_REGISTERS) if padded <= 64 else options


class PackedDecode:
    """Attention of one shape of batch, ready to be captured in a CUDA graph.

    Buffers are taken once. A call launches four kernels on the current stream, allocates nothing
    and never waits for the device; the result is overwritten by the next call. The table and the
    number of pages are read on the device, so that a captured graph follows a growing sequence.
    """

    def __init__(
        self, layer: DeviceLayer, *, batch: int, rows: int, max_pages: int, splits: int
    ) -> None:
        """
        Args:
            layer: the pages.
            batch: sequences.
            rows: queries per KV head: group · new.
            max_pages: places of a page table.
            splits: programs that share the pages of a sequence and KV head.
        """
        device = layer.words.device
        self.layer, self.rows, self.splits = layer, rows, splits
        self.groups = -(-rows // QUERIES)
        self.work = batch * layer.heads * self.groups
        # sections of larger heads are all left to the exact kernel
        self.fast = layer.head_dim <= K_UNIT * MAX_UNITS
        self.states = (2 if self.fast else 1) * splits

        def floats(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        self.minima_scores = floats(batch, layer.heads, max_pages, QUERIES * self.groups)
        self.means = floats(self.work, self.states, layer.head_dim, QUERIES)
        self.weights = floats(self.work, self.states, QUERIES)
        self.out = floats(batch, layer.heads, rows, layer.head_dim)
        self.lse = floats(batch, layer.heads, rows)

    def __call__(
        self, query: torch.Tensor, table: torch.Tensor, pages: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over all tokens of the pages.

        Args:
            query: [batch, heads, rows, head_dim], contiguous; float16, bfloat16 or float32.
            table: int32 [batch, max_pages], contiguous; pages of the layer in order.
            pages: int32 [batch], how many of them a sequence has.
            scaling: factor of the scores.

        Returns:
            (out float32 [batch, heads, rows, head_dim], lse float32 [batch, heads, rows]);
            lse is −∞ for a sequence without pages.
        """
        factor = scaling * math.log2(math.e)
        if self.fast:
            self._attend_tiles(query, table, pages, factor)
        self._attend_exact(query, table, pages, factor)
        layer = self.layer
        combine_states[(self.work,)](
            self.means, self.weights, self.out, self.lse, self.rows, self.states,
            D=layer.head_dim, D_PAD=layer.padded, SPAN=layer.span, FACTOR=layer.span**-0.5,
        )  # fmt: skip
        return self.out, self.lse

    def _attend_tiles(
        self, query: torch.Tensor, table: torch.Tensor, pages: torch.Tensor, factor: float
    ) -> None:
        layer, target = self.layer, Target.of(query.device)
        head_dim, places = layer.head_dim, table.shape[1]
        score_minima[(self.work, -(-places // PAGES))](
            query, layer.order, layer.step, layer.words, layer.directory, table, pages,
            self.minima_scores, self.rows, places, factor,
            HEADS=layer.heads, D=head_dim, D_PAD=layer.padded, PRECISION=target.precision,
        )  # fmt: skip
        attend_tiles[(self.work, self.splits)](
            query, layer.order, layer.step, layer.spread, self.minima_scores, layer.words,
            layer.directory, table, pages, self.means, self.weights,
            self.rows, places, self.states, factor,
            HEADS=layer.heads, D=head_dim, D_PAD=layer.padded, UNIT_V=v_unit(head_dim),
            WIDE_UNITS=layer.wide_units, V_A=layer.v_planes[0], V_C=layer.v_planes[1],
            V_B=layer.v_planes[2], TILES=target.tiles, ASM=target.asm,
            **decode_options(target, layer.padded),
        )  # fmt: skip

    def _attend_exact(
        self, query: torch.Tensor, table: torch.Tensor, pages: torch.Tensor, factor: float
    ) -> None:
        layer = self.layer
        attend_exact[(self.work, self.splits)](
            query, layer.order, layer.step, layer.inv_step, layer.steps, layer.spread,
            layer.words, layer.bases, layer.descriptors, layer.directory, table, pages,
            self.means, self.weights,
            self.rows, table.shape[1], self.states, self.states - self.splits, factor,
            HEADS=layer.heads, D=layer.head_dim, D_PAD=layer.padded,
            UNIT_V=v_unit(layer.head_dim), SPAN=layer.span, FACTOR=layer.span**-0.5,
            TOKENS=EXACT_TOKENS, num_warps=4, num_stages=1,
        )  # fmt: skip

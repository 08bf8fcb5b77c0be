"""The launches of decode attention, as one operator of torch: `packkv::decode_attention`.

An operator has a schema and knows shapes without running, so that torch.compile takes it as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from packkv_kernels.attention.triton.combine import combine_states
from packkv_kernels.attention.triton.exact import attend_exact
from packkv_kernels.attention.triton.minima import PAGES, score_minima
from packkv_kernels.attention.triton.resident import DeviceLayer
from packkv_kernels.attention.triton.residual import attend_residual
from packkv_kernels.attention.triton.tiles import attend_tiles
from packkv_kernels.compress.triton.target import Target
from packkv_kernels.format.directory import MAX_UNITS
from packkv_kernels.format.tile import K_UNIT, v_unit

__all__ = [
    "DECODE_REGISTERS",
    "EXACT_TOKENS",
    "QUERIES",
    "RESIDUAL_TOKENS",
    "decode_attention",
    "decode_options",
    "reads_tiles",
]

# Queries of one program: columns of the smallest mma.
QUERIES = 8

# Of a thread of the kernel over packed tiles: three programs share a multiprocessor.
DECODE_REGISTERS = 168

# Tokens of one step of the exact kernel: as many as there are sinks, and few enough registers.
EXACT_TOKENS = 4

# Tokens of one step over the residual: rows of the smallest mma.
RESIDUAL_TOKENS = 16


def decode_options(target: Target, padded: int) -> dict[str, int]:
    """Launch options of the kernel over packed tiles.

    Args:
        target: of the launch.
        padded: channels that the kernel reckons with.
    """
    options = {"num_warps": 4, "num_stages": 1}
    # of 128 channels NVIDIA's compiler keeps to this bound by itself, and does better unasked
    return options | target.registers(DECODE_REGISTERS) if padded <= 64 else options


def reads_tiles(head_dim: int) -> bool:
    """Whether the kernel for packed tiles reads those of that size.

    Larger ones are all left to the exact kernel.
    """
    return head_dim <= K_UNIT * MAX_UNITS


@torch.library.custom_op(
    "packkv::decode_attention", mutates_args=("minima_scores", "means", "weights", "out", "lse")
)
def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor | None,
    values: torch.Tensor | None,
    exact: torch.Tensor | None,
    table: torch.Tensor,
    pages: torch.Tensor,
    layer: Sequence[torch.Tensor],
    modes: Sequence[int],
    minima_scores: torch.Tensor,
    means: torch.Tensor,
    weights: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scaling: float,
    new: int,
    window: int,
    splits: int,
) -> None:
    """Attention over packed pages, exact sinks and the residual; writes `out` and `lse`.

    Launches kernels on the current stream, takes no memory and never waits for the device.

    Args:
        query: [batch, heads, rows, head_dim], contiguous; row r belongs to new token r % new.
        keys, values: the residual, [batch, heads, room, head_dim], contiguous; None without one.
        exact: int32 [batch], tokens of the residual, those of the queries included; None without
            residual and window.
        table, pages: see `PageTables`.
        layer, modes: of a `DeviceLayer`.
        minima_scores, means, weights, out, lse: see `PackedDecode`.
        scaling: factor of the scores.
        new: new tokens, the same number for every sequence.
        window: tokens that a query sees, its own included; 0 for all.
        splits: programs that share the pages of a sequence and KV head.
    """
    call = _Call(
        layer=DeviceLayer.of(layer, modes),
        target=Target.of(query.device),
        query=query,
        # without a window nothing reads it
        exact=pages if exact is None else exact,
        table=table,
        pages=pages,
        minima_scores=minima_scores,
        means=means,
        weights=weights,
        out=out,
        lse=lse,
        factor=scaling * math.log2(math.e),
        new=new,
        window=window,
        splits=splits,
    )
    states = splits
    # Triton launches on the current device, which need not be that of the tensors
    with torch.cuda.device_of(query):
        if reads_tiles(call.layer.head_dim):
            call.attend_tiles()
            states += splits
        call.attend_exact(states - splits)
        if keys is not None and values is not None:
            call.attend_residual(keys, values, states)
        call.combine()


@decode_attention.register_fake
def _(query: torch.Tensor, *_: object) -> None:
    """Shapes are the buffers'; nothing is returned."""


@dataclass(frozen=True)
class _Call:
    """The arguments of one call, as the launches share them."""

    layer: DeviceLayer
    target: Target
    query: torch.Tensor
    exact: torch.Tensor
    table: torch.Tensor
    pages: torch.Tensor
    minima_scores: torch.Tensor
    means: torch.Tensor
    weights: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    factor: float
    new: int
    window: int
    splits: int

    @property
    def work(self) -> int:
        return self.means.shape[0]

    @property
    def states(self) -> int:
        return self.means.shape[1]

    @property
    def rows(self) -> int:
        return self.query.shape[2]

    def attend_tiles(self) -> None:
        layer, target, places = self.layer, self.target, self.table.shape[1]
        shape = {"HEADS": layer.heads, "D": layer.head_dim, "D_PAD": layer.padded}
        score_minima[(self.work, -(-places // PAGES))](
            self.query, layer.order, layer.step, layer.words, layer.directory, self.table,
            self.pages, self.exact, self.minima_scores,
            self.rows, places, self.new, self.window, self.factor,
            **shape, WINDOW=self.window > 0, PRECISION=target.precision,
        )  # fmt: skip
        attend_tiles[(self.work, self.splits)](
            self.query, layer.order, layer.step, layer.spread, self.minima_scores, layer.words,
            layer.directory, self.table, self.pages, self.exact, self.means, self.weights,
            self.rows, places, self.new, self.window, self.states, self.factor,
            **shape, UNIT_V=v_unit(layer.head_dim),
            WIDE_UNITS=layer.wide_units, V_A=layer.v_planes[0], V_C=layer.v_planes[1],
            V_B=layer.v_planes[2], TILES=target.tiles, ASM=target.asm, WINDOW=self.window > 0,
            **decode_options(target, layer.padded),
        )  # fmt: skip

    def attend_exact(self, first_state: int) -> None:
        layer = self.layer
        attend_exact[(self.work, self.splits)](
            self.query, layer.order, layer.step, layer.inv_step, layer.steps, layer.spread,
            layer.words, layer.bases, layer.descriptors, layer.directory, self.table, self.pages,
            self.exact, self.means, self.weights,
            self.rows, self.table.shape[1], self.new, self.window, self.states, first_state,
            self.factor,
            HEADS=layer.heads, D=layer.head_dim, D_PAD=layer.padded,
            UNIT_V=v_unit(layer.head_dim), SPAN=layer.span, FACTOR=layer.span**-0.5,
            TOKENS=EXACT_TOKENS, WINDOW=self.window > 0, num_warps=4, num_stages=1,
        )  # fmt: skip

    def attend_residual(self, keys: torch.Tensor, values: torch.Tensor, first_state: int) -> None:
        layer = self.layer
        attend_residual[(self.work, self.states - first_state)](
            self.query, keys, values, self.pages, self.exact, self.means, self.weights,
            self.rows, keys.shape[2], self.new, self.window, self.states, first_state, self.factor,
            HEADS=layer.heads, D=layer.head_dim, D_PAD=layer.padded, SPAN=layer.span,
            FACTOR=layer.span**-0.5, TOKENS=RESIDUAL_TOKENS, WINDOW=self.window > 0,
            PRECISION=self.target.precision, num_warps=4, num_stages=1,
        )  # fmt: skip

    def combine(self) -> None:
        layer = self.layer
        combine_states[(self.work,)](
            self.means, self.weights, self.out, self.lse, self.rows, self.states,
            D=layer.head_dim, D_PAD=layer.padded, SPAN=layer.span, FACTOR=layer.span**-0.5,
        )  # fmt: skip

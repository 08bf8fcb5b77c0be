"""KVCompDecode: attention of few queries over KVComp's blocks, as a fixed sequence of launches."""

import math

import torch

from packkv_kernels.compress.triton.target import Target
from packkv_kernels.entropy.kvcomp import Units
from packkv_kernels.entropy.triton.attend import attend_blocks
from packkv_kernels.entropy.triton.side import KINDS, DeviceSide, slice_warps
from packkv_kernels.errors import InvalidInput

__all__ = ["ATTEND_REGISTERS", "KVCompDecode"]

# Queries of one program: columns of the smallest mma.
QUERIES = 8

# Of a thread: left to itself, NVIDIA's compiler takes fewer and spills.
ATTEND_REGISTERS = 168


class KVCompDecode:
    """Attention of one shape of batch. A call launches on the current stream and never waits.

    Nothing decompressed is written: bits become codes in registers, and codes a product.
    """

    def __init__(
        self, keys: DeviceSide, values: DeviceSide, *, batch: int, rows: int, splits: int,
        tree: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            keys, values: of one layer, with blocks in them.
            batch: sequences.
            rows: queries per KV head: group · new.
            splits: programs that share the blocks of a sequence and KV head.
            tree: read bit by bit down the array tree, as the paper does.

        Raises:
            InvalidInput: sides that do not go together, or units that attention does not read.
        """
        if keys.tables is None or values.tables is None:
            raise InvalidInput("no blocks to attend to yet")
        if keys.offsets.shape != values.offsets.shape or keys.head_dim != values.head_dim:
            raise InvalidInput("K and V are not of the same tokens")
        if keys.units is Units.TOKEN or values.units is not Units.TOKEN:
            raise InvalidInput("attention reads K by channel or block, and V by token")
        self._keys, self._values = keys, values
        self._codebooks = [
            side.tree if tree else side.table for side in (keys.tables, values.tables)
        ]
        self.rows, self.splits, self.tree = rows, splits, tree
        heads = keys.offsets.shape[1]
        self.groups = -(-rows // QUERIES)
        work, device = batch * heads * self.groups, keys.words.device
        self.means = torch.empty(work, splits, keys.head_dim, QUERIES, device=device)
        self.weights = torch.empty(work, splits, QUERIES, device=device)

    def __call__(
        self, query: torch.Tensor, table: torch.Tensor, pages: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over all tokens of the blocks.

        Args:
            query: [batch, heads, rows, head_dim], contiguous; any float type.
            table: int32 [batch, places], contiguous; blocks in order.
            pages: int32 [batch], how many of them a sequence has.
            scaling: factor of the scores.

        Returns:
            (out float32 [batch, heads, rows, head_dim], lse float32 [batch, heads, rows]);
            lse is −∞ for a sequence without blocks.
        """
        keys, values, target = self._keys, self._values, Target.of(query.device)
        batch, heads, rows, head_dim = query.shape
        attend_blocks[(len(self.means), self.splits)](
            query, keys.words, keys.offsets, self._codebooks[0],
            values.words, values.offsets, self._codebooks[1], table, pages,
            self.means, self.weights,
            rows, table.shape[1], scaling * math.log2(math.e), keys.per_block,
            HEADS=heads, D=head_dim, D_PAD=max(16, 1 << (head_dim - 1).bit_length()),
            K_UNITS=KINDS[keys.units], TREE=self.tree, PRECISION=target.precision,
            num_warps=slice_warps(target), num_stages=1, **target.registers(ATTEND_REGISTERS),
        )  # fmt: skip
        lse = self.weights * math.log(2)
        total = torch.logsumexp(lse, 1)
        share = torch.exp(lse - torch.where(total.isneginf(), 0, total)[:, None])
        out = (self.means * share[:, :, None]).sum(1).transpose(1, 2)
        shape = (batch, heads, self.groups * QUERIES)
        return out.reshape(*shape, head_dim)[:, :, :rows], total.reshape(shape)[:, :, :rows]

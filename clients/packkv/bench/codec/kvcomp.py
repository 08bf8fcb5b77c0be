"""KVComp as published (arXiv 2509.00579): the codec of `packkv_kernels.entropy.kvcomp`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.kvcomp import KVCompConfig, KVCompSide

__all__ = ["KVCompKeys", "KVCompValues"]


@dataclass(frozen=True)
class KVCompKeys:
    """K in blocks of 64 tokens, one Huffman codebook per layer.

    Attributes:
        rel: step as a share of the range of a unit.
        units: what has a step of its own: "channel" of a block, or all of a "block".
    """

    rel: float
    units: str = "channel"

    @property
    def label(self) -> str:
        return f"{self.rel:g} by {self.units}"

    def encode(self, values: torch.Tensor) -> _StoredSides:
        config = KVCompConfig(rel_k=self.rel, k_units=self.units)
        return _encode(values, [config.keys() for _ in values])


@dataclass(frozen=True)
class KVCompValues:
    """V with a step per token and head, one Huffman codebook per layer.

    Attributes:
        rel: step as a share of the token's range.
    """

    rel: float

    @property
    def label(self) -> str:
        return f"{self.rel:g}"

    def encode(self, values: torch.Tensor) -> _StoredSides:
        return _encode(values, [KVCompConfig(rel_v=self.rel).values() for _ in values])


@dataclass(frozen=True)
class _StoredSides:
    """K or V of every layer."""

    layers: list[KVCompSide]
    tokens: int

    @property
    def nbytes(self) -> int:
        return sum(side.nbytes for side in self.layers)

    def decode(self) -> torch.Tensor:
        return torch.stack([torch.from_numpy(side.decode()) for side in self.layers])[
            :, : self.tokens
        ]


def _encode(values: torch.Tensor, sides: list[KVCompSide]) -> _StoredSides:
    """Feeds each side its layer of values [layers, tokens, heads, head_dim]."""
    tokens = values.shape[1]
    # whole blocks only: copies of the last token fill up what the sinks took, 0.4 % of 1,024
    filler = values[:, -1:].expand(-1, -tokens % BLOCK_TOKENS, -1, -1)
    for side, layer in zip(sides, torch.cat([values, filler], 1), strict=True):
        side.append(layer.numpy())
    return _StoredSides(sides, tokens)

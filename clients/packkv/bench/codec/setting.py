"""What a codec under test must do, and what it is charged for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format.header import ALIGNMENT, HEADER_BYTES

__all__ = ["SINKS", "Encoded", "Family", "KeysValues", "Setting", "head_bytes"]

# First tokens of a text that every codec keeps exactly, as fp16.
SINKS = 4

# One row of a payload's section table: offset, length, digest.
_ROW_BYTES = 24

# K and V, each float32 [layers, tokens, heads, head_dim]
KeysValues = tuple[torch.Tensor, torch.Tensor]


class Encoded(Protocol):
    """A cache as a codec stores it."""

    @property
    def nbytes(self) -> int:
        """Every byte that is stored: codes, metadata, exact tokens, heads of the blocks."""
        ...

    def decode(self) -> KeysValues:
        """K and V; past the sinks, tokens of a block may come back in another order."""
        ...


class Setting(Protocol):
    """One codec with all its parameters."""

    @property
    def label(self) -> str:
        """The parameters, for people and for rows of results."""
        ...

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> Encoded:
        """Compresses K and V, each float32 [layers, tokens, heads, head_dim], of a whole text."""
        ...


@dataclass(frozen=True)
class Family:
    """A codec and the settings among which its operating points are chosen."""

    codec: str
    settings: Sequence[Setting]


def head_bytes(keys: torch.Tensor) -> int:
    """Header and section table of the blocks of K [layers, tokens, heads, head_dim].

    They name and guard a block whatever its codec, so every codec is charged for them.
    """
    layers, tokens, heads, _ = keys.shape
    block = HEADER_BYTES + _ROW_BYTES * layers * heads
    return -(-tokens // BLOCK_TOKENS) * -(-block // ALIGNMENT) * ALIGNMENT

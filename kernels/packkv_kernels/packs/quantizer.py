"""PackKVQuantizer: values to integers with one step and one integer zero per token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.quantise import packkv_integers, packkv_scales
from packkv_kernels.config import PackKVConfig
from packkv_kernels.errors import InvalidInput

__all__ = ["PackKVQuantizer", "TokenIntegers"]


@dataclass(frozen=True)
class TokenIntegers:
    """K or V of one layer as integers.

    Attributes:
        integers: int32 [tokens, heads, head_dim], ≥ 0: rint(x / scale) − zero.
        scale: float32 [tokens], the token's step over all its KV heads; > 0.
        zero: int16 [tokens], rint(min / scale).
    """

    integers: NDArray[np.int32]
    scale: NDArray[np.float32]
    zero: NDArray[np.int16]

    def values(self) -> NDArray[np.float32]:
        """float32 [tokens, heads, head_dim]: (integer + zero) · scale."""
        whole = self.integers + self.zero.astype(np.int32)[:, None, None]
        return whole.astype(np.float32) * self.scale[:, None, None]

    def take(self, order: NDArray[np.int64]) -> TokenIntegers:
        """The tokens in another order, or some of them."""
        return TokenIntegers(self.integers[order], self.scale[order], self.zero[order])


class PackKVQuantizer:
    """The token-wise quantiser of the paper, with the arithmetic of the codec `packkv`.

    step = rel · (max − min) over all channels of all KV heads of a token, and
    integer = round(x / step) − round(min / step). The paper calls this the integer zero point.
    """

    def __init__(self, rel: float) -> None:
        """
        Args:
            rel: step as a share of a token's range, 1/1024 … 1. The paper sweeps 0.03 … 0.24
                for K and 0.1 … 0.7 for V.

        Raises:
            InvalidInput: it is outside.
        """
        self.rel = PackKVConfig(rel_k=rel).rel_k

    def quantize(self, values: NDArray[np.float32]) -> TokenIntegers:
        """Integers of K or V of one layer.

        Args:
            values: float32 [tokens, heads, head_dim], finite.

        Raises:
            InvalidInput: a token so far from 0 for its range that its zero exceeds int16.
        """
        block = np.ascontiguousarray(values, np.float32)
        scale, zero = np.empty(len(block), np.float32), np.empty(len(block), np.float32)
        if not packkv_scales(block, np.float32(self.rel), 0, scale, zero):
            raise InvalidInput(f"a token's zero exceeds int16 at rel {self.rel}")
        integers = np.empty(block.shape, np.float32)
        for head in range(block.shape[1]):
            packkv_integers(block[:, head], 0, scale, zero, integers[:, head])
        return TokenIntegers(integers.astype(np.int32), scale, zero.astype(np.int16))

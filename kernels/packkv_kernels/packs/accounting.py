"""The size that the paper reports for packs, by the paper's own rules."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.errors import InvalidInput

__all__ = ["bit_lengths", "published_bytes"]


def bit_lengths(spread: NDArray[np.int32]) -> NDArray[np.int32]:
    """Bits that hold 0 … spread, elementwise: ceil(log2(spread + 1)), exactly."""
    # frexp is exact, where a rounded logarithm could be off by one near a power of two
    exponents: NDArray[np.int32] = np.frexp(spread.astype(np.float64))[1]
    return exponents


def published_bytes(blocks: Sequence[NDArray[np.int32]], pack_tokens: int = 16) -> int:
    """Bytes of K (or V) of one layer as the paper's public code counts them.

    A pack of one channel costs pack_tokens · ceil(log2(max − min + 1)) bits for its codes,
    b = ceil(log2(number of distinct integers of the layer)) for its minimum and
    ceil(log2(b + 1)) for its width. Scales and zeros of tokens, the order of tokens, offsets,
    exact tokens and headers are not counted: `encode_packs` is what a block really takes.

    Args:
        blocks: int32 [tokens, …] each, already repacked; tokens is a multiple of `pack_tokens`.
        pack_tokens: tokens per pack.

    Raises:
        InvalidInput: a block that packs do not fill, for which the paper has no rule.
    """
    if not blocks or any(len(block) % pack_tokens for block in blocks):
        raise InvalidInput(f"the paper counts whole packs of {pack_tokens} tokens only")
    packs = np.concatenate([b.reshape(-1, pack_tokens, b[0].size) for b in blocks])
    low = packs.min(axis=1)
    codes = int(bit_lengths(packs.max(axis=1) - low).sum()) * pack_tokens
    minimum = (len(np.unique(packs)) - 1).bit_length()
    per_pack = minimum + minimum.bit_length()
    return (codes + int(low.size) * per_pack) // 8

"""Bits in u32 words, lowest first."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format.compiled import compiled

__all__ = ["peek", "put"]


@compiled
def put(words: NDArray[np.uint32], at: int, value: int, length: int) -> int:
    """Writes the `length` ≤ 32 bits of `value` at bit `at`, over zeros; returns the next bit."""
    spread = np.uint64(value) << np.uint64(at & 31)
    words[at >> 5] |= np.uint32(spread & np.uint64(0xFFFFFFFF))
    if (at & 31) + length > 32:
        words[(at >> 5) + 1] |= np.uint32(spread >> np.uint64(32))
    return at + length


@compiled
def peek(words: NDArray[np.uint32], at: int) -> np.uint64:
    """At least 33 bits from bit `at` on; reads two words."""
    low, high = np.uint64(words[at >> 5]), np.uint64(words[(at >> 5) + 1])
    return (low | high << np.uint64(32)) >> np.uint64(at & 31)

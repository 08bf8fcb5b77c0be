"""Bits in u32 words, lowest first."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format.compiled import compiled

__all__ = ["Cursor", "bit_of", "peek", "push", "put"]

# Where words are written in turn: which word, how many bits of it are known, and those bits.
Cursor = tuple[int, int, np.uint64]


@compiled
def put(words: NDArray[np.uint32], at: int, value: int, length: int) -> int:
    """Writes the `length` ≤ 32 bits of `value` at bit `at`, over zeros; returns the next bit."""
    spread = np.uint64(value) << np.uint64(at & 31)
    words[at >> 5] |= np.uint32(spread & np.uint64(0xFFFFFFFF))
    if (at & 31) + length > 32:
        words[(at >> 5) + 1] |= np.uint32(spread >> np.uint64(32))
    return at + length


@compiled
def push(words: NDArray[np.uint32], cursor: Cursor, value: np.uint64, length: int) -> Cursor:
    """Writes the `length` ≤ 32 bits of `value` at a cursor, whatever was there."""
    word, filled, gathered = cursor
    gathered |= value << np.uint64(filled)
    filled += length
    # written whether or not the word is full: a branch would be guessed wrong too often
    words[word] = np.uint32(gathered & np.uint64(0xFFFFFFFF))
    full = filled >> 5
    return word + full, filled & 31, gathered >> np.uint64(full << 5)


@compiled
def bit_of(cursor: Cursor) -> int:
    """The next bit."""
    return 32 * cursor[0] + cursor[1]


@compiled
def peek(words: NDArray[np.uint32], at: int | np.uint64) -> np.uint64:
    """At least 33 bits from bit `at` ≥ 0 on; reads two words."""
    # unsigned: what may be negative is looked at before every access
    bit = np.uint64(at)
    word = bit >> np.uint64(5)
    low, high = np.uint64(words[word]), np.uint64(words[word + np.uint64(1)])
    return (low | high << np.uint64(32)) >> (bit & np.uint64(31))

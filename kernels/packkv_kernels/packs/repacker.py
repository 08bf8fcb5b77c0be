"""Repacker: reorders the tokens of a block so that its packs get narrower.

Attention over past tokens does not depend on their order as long as K and V share it, so one
permutation serves all heads, K and V, and it need not be stored.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.errors import InvalidInput
from packkv_kernels.format.compiled import compiled
from packkv_kernels.packs.accounting import bit_lengths

__all__ = ["Repacker", "Repacking"]


class Repacking(StrEnum):
    """How the tokens of a block are ordered before they are cut into packs."""

    NONE = "none"
    GREEDY = "greedy"
    MEDIAN = "median"


class Repacker:
    """Orders the tokens of one block; the orders are PackKV's."""

    def __init__(self, method: Repacking, pack_tokens: int = 16) -> None:
        """
        Args:
            method: `NONE` keeps the order; `MEDIAN` ("V-median") sorts by the lower median of a
                token's V integers, largest first, O(N log N + N·D); `GREEDY` fills one pack after
                another, each from a seed and then with the token that widens it least, O(N²·D).
            pack_tokens: length of the packs that `GREEDY` fills.
        """
        if pack_tokens < 1:
            raise InvalidInput(f"packs of {pack_tokens} tokens")
        self.method = method
        self.pack_tokens = pack_tokens

    def order(self, keys: NDArray[np.int32], values: NDArray[np.int32]) -> NDArray[np.int64]:
        """A permutation int64 [tokens] of a block's tokens.

        Args:
            keys, values: int32 [tokens, heads, head_dim], the quantised block.
        """
        k, v = (part.reshape(len(part), -1) for part in (keys, values))
        if self.method is Repacking.MEDIAN:
            middle = (v.shape[1] - 1) // 2
            medians = np.partition(v, middle, axis=1)[:, middle]
            return np.argsort(-medians, kind="stable")
        if self.method is Repacking.GREEDY:
            return _fill_packs(np.concatenate([k, v], axis=1), self.pack_tokens)
        return np.arange(len(k))


def _fill_packs(rows: NDArray[np.int32], pack_tokens: int) -> NDArray[np.int64]:
    spreads = np.arange(int(rows.max()) - int(rows.min()) + 1, dtype=np.int32)
    bit_length = bit_lengths(spreads).astype(np.uint8)
    left = np.arange(len(rows))
    packs = []
    while len(left):
        candidates = rows[left]
        count = min(pack_tokens, len(left))
        taken = _fill_pack(candidates, bit_length, _seed(candidates), count)
        packs.append(left[taken])
        left = np.delete(left, taken)
    return np.concatenate(packs)


def _seed(rows: NDArray[np.int32]) -> int:
    """The row whose direction is nearest to that of the rounded mean of all."""
    mean = rows.mean(axis=0).round()
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(mean)
    return int(np.argmax(rows @ mean / np.maximum(norms, 1e-8)))


@compiled
def _fill_pack(
    rows: NDArray[np.int32], bit_length: NDArray[np.uint8], seed: int, count: int
) -> NDArray[np.int64]:
    """Indices of `count` rows: the seed, then whichever adds fewest bits, the first of equals."""
    tokens, width = rows.shape
    taken = np.empty(count, np.int64)
    free = np.ones(tokens, np.bool_)
    low, high = rows[seed].copy(), rows[seed].copy()
    taken[0] = seed
    free[seed] = False
    for place in range(1, count):
        best, least = -1, 0
        for token in range(tokens):
            if not free[token]:
                continue
            # the bits before are the same for all candidates, so the bits after decide
            bits = 0
            for c in range(width):
                spread = max(high[c], rows[token, c]) - min(low[c], rows[token, c])
                bits += bit_length[spread]
            if best < 0 or bits < least:
                best, least = token, bits
        taken[place] = best
        free[best] = False
        for c in range(width):
            low[c] = min(low[c], rows[best, c])
            high[c] = max(high[c], rows[best, c])
    return taken

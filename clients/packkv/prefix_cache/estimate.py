"""Load or recompute: what a prefix costs to fetch, and what it saves.

With `R` tokens per second of prefill, `B` bytes per second of fetching and `c` seconds that a fetch
costs before its first byte, taking the first `k` blocks saves

    gain(k) = tokens(k) / R − c − bytes(k) / B

and the best `k` is the one with the largest gain, or 0 when no gain is above 0. Prefill gets slower
with length, so `tokens(k) / R` with an average `R` errs on the side of computing. Rates that nobody
has measured yet are taken as infinite (`B`) or zero (`R`): the first loads explore.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

# The weight of what came before when something new is measured: half of it after three more.
_FADE = 0.8


class Rate:
    """Amount per second, averaged over time spent, so that a long measurement weighs more.

    Thread-safe. Measurements without amount or time are left out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._amount = 0.0
        self._seconds = 0.0

    def observe(self, amount: float, seconds: float) -> None:
        if amount <= 0 or seconds <= 0:
            return
        with self._lock:
            self._amount = _FADE * self._amount + amount
            self._seconds = _FADE * self._seconds + seconds

    def replace(self, amount: float, seconds: float) -> None:
        """Forget what was measured before, if there is something new."""
        if amount > 0 and seconds > 0:
            with self._lock:
                self._amount, self._seconds = amount, seconds

    def per_s(self) -> float | None:
        """None until something has been measured."""
        with self._lock:
            return self._amount / self._seconds if self._seconds else None


def blocks_worth_loading(
    lengths: Sequence[int],
    *,
    block_tokens: int,
    tokens_per_s: float | None,
    bytes_per_s: float | None,
    overhead_s: float,
    budget_s: float,
) -> int:
    """How many blocks from the front to fetch: the largest gain that fits into the budget.

    Args:
        lengths: payload bytes of each block that could be fetched, in order.
        block_tokens: tokens of a block.
        tokens_per_s: prefill rate, None when unknown.
        bytes_per_s: fetch rate, None when unknown.
        overhead_s: seconds before the first byte.
        budget_s: seconds left to the load.
    """
    if not lengths or budget_s <= 0:
        return 0
    count = np.arange(1, len(lengths) + 1, dtype=np.float64)
    cost_s = np.full(len(lengths), overhead_s)
    if bytes_per_s is not None:
        cost_s += np.cumsum(np.asarray(lengths, dtype=np.float64)) / bytes_per_s
    within = cost_s <= budget_s
    if tokens_per_s is None or bytes_per_s is None:
        return int(within.sum())
    gain_s = np.where(within, count * block_tokens / tokens_per_s - cost_s, -np.inf)
    best = int(np.argmax(gain_s))
    return best + 1 if gain_s[best] > 0 else 0

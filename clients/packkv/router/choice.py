"""Which worker gets a request."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from packkv.router.config import Policy
from packkv.router.worker import Worker


class Choice:
    """Chooses among workers, by one policy.

    `prefix` takes the worker where the prompt would be computed first: least blocks to compute of
    all that is under way there and of this prompt. So a prefix draws requests to where it is, until
    so many wait there that computing it elsewhere is quicker; then it is held in two places. Among
    equals the one that has it in its own memory, then the one with fewer requests, then in turn.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._turn = 0

    def of(
        self, workers: Sequence[Worker], names: Sequence[int], tried: Collection[Worker] = ()
    ) -> Worker | None:
        """One that is up and has not been tried; None when there is none."""
        fit = [one for one in workers if one.is_up and one not in tried]
        if not fit:
            return None
        if self._policy is Policy.ROUND_ROBIN:
            chosen = min(fit, key=lambda one: one.turn)
        else:
            chosen = min(fit, key=lambda one: _cost(one, names))
        self._turn += 1
        chosen.turn = self._turn
        return chosen

    @property
    def wants_names(self) -> bool:
        """Whether the blocks of a request make a difference."""
        return self._policy is Policy.PREFIX


def _cost(worker: Worker, names: Sequence[int]) -> tuple[int, int, int, int]:
    to_compute = len(names) - worker.held(names)
    in_memory = worker.recent.run(names)
    return worker.load + to_compute, -in_memory, worker.under_way, worker.turn

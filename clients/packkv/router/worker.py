"""One worker, as the router sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from packkv.router.holdings import Holdings, Recent

# What an answer costs the others on its worker beside the blocks of its prompt that are computed:
# as much as a prompt of so many blocks.
ANSWER_BLOCKS = 4


@dataclass(slots=True, eq=False)
class Worker:
    """A worker that may be sent requests. Belongs to the event loop.

    Attributes:
        number: its place on the command line, from 0.
        url: of its API.
        holdings: of its store; None: nobody knows.
        is_up: whether it said that it is ready when it was last asked.
        under_way: requests that it has been sent and has not answered.
        load: of those, blocks to compute, and ANSWER_BLOCKS for each.
        turn: when it was last chosen: counts all choices.
    """

    number: int
    url: str
    holdings: Holdings | None = None
    is_up: bool = False
    under_way: int = 0
    load: int = 0
    turn: int = -1
    recent: Recent = field(default_factory=Recent)

    def held(self, names: Sequence[int]) -> int:
        """How many of the blocks from the front it need not compute."""
        stored = self.holdings.run(names) if self.holdings is not None else 0
        return max(stored, self.recent.run(names))

    def lose(self) -> None:
        """It is gone, or broke off: it gets no more, and what comes back may remember nothing."""
        self.is_up = False
        self.recent.forget()

    @contextmanager
    def carrying(self, names: Sequence[int]) -> Iterator[Burden]:
        """A request with these blocks is under way there."""
        burden = Burden(self, len(names) - self.held(names))
        self.recent.add(names)
        self.under_way += 1
        self.load += burden.to_compute + ANSWER_BLOCKS
        try:
            yield burden
        finally:
            burden.computed()
            self.under_way -= 1
            self.load -= ANSWER_BLOCKS


@dataclass(slots=True, eq=False)
class Burden:
    """What one request is to its worker: blocks to compute, until they are."""

    worker: Worker
    to_compute: int

    def computed(self) -> None:
        """Its prompt is done: the answer has begun, or will not come."""
        self.worker.load -= self.to_compute
        self.to_compute = 0

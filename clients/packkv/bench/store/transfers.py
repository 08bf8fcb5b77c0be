"""All movers in turn, round after round, so that what disturbs one disturbs the others too."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from packkv.bench.store.blocks import Blocks
from packkv.bench.store.cpu import cpu_seconds
from packkv.bench.store.movers import Mover, WrongResult
from packkv.bench.store.spinning import spinning_thread

__all__ = ["MEMCPY", "Progress", "Transfer", "measure", "warm_up"]

MEMCPY: Final = "memcpy"
_GB: Final = 1e9


class Progress(Protocol):
    """Is told what happens."""

    def begin(self, what: str, steps: int) -> None:
        """A part that takes some steps."""

    def step(self) -> None:
        """One of them is done."""


@dataclass(frozen=True)
class Transfer:
    """How long it took to move all blocks one way, in each round.

    Attributes:
        mover: its name.
        call: "put" or "get".
        is_busy: another thread of the client wanted the interpreter all the time.
        moved_bytes: in each round.
        seconds, cpu_s: of each round; CPU time of both ends, or of this one alone.
    """

    mover: str
    call: str
    is_busy: bool
    moved_bytes: int
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def gbs(self) -> float:
        """10⁹ bytes a second, the median over rounds."""
        return self.moved_bytes / _GB / statistics.median(self.seconds)

    @property
    def best_gbs(self) -> float:
        """The same of the best round."""
        return self.moved_bytes / _GB / min(self.seconds)

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds for 10⁹ bytes, the median over rounds."""
        return statistics.median(self.cpu_s) * _GB / self.moved_bytes

    def take(self, move: Callable[[], object], processes: Sequence[int]) -> None:
        """Moves once and notes what it took. What comes back is let go of after the clock stops."""
        cpu_before, began = cpu_seconds(processes), time.perf_counter()
        result = move()
        self.seconds.append(time.perf_counter() - began)
        self.cpu_s.append(cpu_seconds(processes) - cpu_before)
        del result


def warm_up(mover: Mover, blocks: Blocks) -> None:
    """Everything once, and twice over, with a look at what came back.

    Raises:
        WrongResult: other bytes than were put.
        StoreError: a store does not do it, or not over this path.
    """
    for _ in range(2):
        mover.clear()
        mover.put()
        got = mover.get()
    # the raw peer hands out what it was given last, so this is true of it as well
    pairs = zip(got, blocks.payloads, strict=True)
    if any(bytes(payload) != wanted for payload, wanted in pairs):
        raise WrongResult(f"{mover.name}: what came back is not what was put")


def measure(
    movers: Sequence[Mover], blocks: Blocks, rounds: int, progress: Progress
) -> list[Transfer]:
    """A copy in memory, then a Put and a Get by every mover; then the same by every mover beside a
    busy thread; and all of that again."""
    size = blocks.total_bytes
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    memcpy = Transfer(MEMCPY, "get", False, size)
    moved = {
        (mover.name, call, is_busy): Transfer(mover.name, call, is_busy, size)
        for mover in movers
        for call in ("put", "get")
        for is_busy in (False, True)
    }
    progress.begin("transfers", rounds * (1 + 2 * len(movers)))
    for _ in range(rounds):
        memcpy.take(lambda: np.copyto(target, source), (os.getpid(),))
        progress.step()
        for is_busy in (False, True):
            for mover in movers:
                _both_ways(mover, moved, is_busy)
                progress.step()
    return [memcpy, *moved.values()]


def _both_ways(mover: Mover, moved: dict[tuple[str, str, bool], Transfer], is_busy: bool) -> None:
    mover.clear()
    calls = (("put", mover.put), ("get", mover.get))
    for call, move in calls:
        transfer = moved[mover.name, call, is_busy]
        if not is_busy:
            transfer.take(move, (os.getpid(), *mover.others))
            continue
        with spinning_thread():
            # its CPU time would be counted as ours: that column is of the idle rounds
            transfer.take(move, mover.others)

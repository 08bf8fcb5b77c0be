"""Clocks: how long a call takes on a GPU, or that it runs at all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Protocol

import torch

__all__ = ["Clock", "GraphClock", "Rehearsal", "clock_for"]

_REPLAYS = 30

# More than any L2 cache holds.
_FLUSHED_BYTES = 256 << 20


class Clock(Protocol):
    """Times calls."""

    def us(self, call: Callable[[], object]) -> float | None:
        """Median µs of a call that is captured in a CUDA graph, with a cold L2 cache."""
        ...

    def wall_us(self, call: Callable[[], object]) -> float | None:
        """Median µs of a call as a program makes it: launches, host and device."""
        ...


class GraphClock:
    """The clock of a GPU."""

    def __init__(self) -> None:
        self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device="cuda")

    def us(self, call: Callable[[], object]) -> float | None:
        graph = self._captured(call)
        times: list[float] = []
        for _ in range(_REPLAYS):
            self._flushed.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(1e3 * start.elapsed_time(end))
        return statistics.median(times)

    def wall_us(self, call: Callable[[], object]) -> float | None:
        call()
        times = []
        for _ in range(3):
            torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append(1e6 * (time.perf_counter() - began))
        return statistics.median(times)

    @staticmethod
    def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph


class Rehearsal:
    """The clock where nothing is timed: every call is made once."""

    def us(self, call: Callable[[], object]) -> float | None:
        call()
        return None

    wall_us = us


def clock_for(*, rehearsed: bool) -> Clock:
    """The clock of a run."""
    return Rehearsal() if rehearsed else GraphClock()

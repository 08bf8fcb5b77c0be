"""CPU time: of a process, and of what else a machine does meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Foreign", "cpu_seconds"]

# clock_getcpuclockid(3) of Linux: a process's id, inverted, and the clock that the scheduler keeps
_SCHEDULER = 2


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that processes have taken so far, with all their threads, dead ones included."""
    return sum(time.clock_gettime(~pid << 3 | _SCHEDULER) for pid in pids)


class Foreign:
    """How many cores others kept busy since this was made.

    Args:
        pids: processes that are not others.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = tuple(pids)
        self._began = self._now()

    def cores(self) -> float | None:
        """The mean; None where the system does not tell."""
        now = self._now()
        if now is None or self._began is None:
            return None
        (wall, busy, own), (wall_before, busy_before, own_before) = now, self._began
        return max(0.0, (busy - busy_before) - (own - own_before)) / (wall - wall_before)

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds on the clock, of all cores at work, and of those that worked for us."""
        try:
            fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        except OSError:
            return None
        user, nice, system, _, _, interrupt, soft = map(int, fields[1:8])
        busy = (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, cpu_seconds(self._pids)

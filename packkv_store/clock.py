"""The two clocks of a server, behind one seam so that tests can move time by hand."""

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for durations, wall seconds for what must survive a restart."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

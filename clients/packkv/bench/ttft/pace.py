"""When bytes are through a link of some bandwidth: a token bucket without a burst."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pace:
    """One direction of a link that several connections share. Thread-safe.

    The link is busy until some time, and further bytes are through so much later as they take. It
    rests only when nothing waits for it: a thread that was woken too late catches up, so the
    bandwidth is met over any time that is long to a scheduler, and never exceeded by more than
    what such a delay held up.

    Args:
        bytes_per_s: its bandwidth.
        clock, sleep: seconds that only go forward, and how to let them pass.
    """

    def __init__(
        self,
        bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._busy_until = float("-inf")

    def pass_through(self, count: int, ready_at: float) -> float:
        """Returns when `count` bytes, which are there since `ready_at`, are through; and when that
        should have been, which is when bytes behind them were ready if they waited already."""
        with self._lock:
            self._busy_until = max(self._busy_until, ready_at) + count / self._bytes_per_s
            through_at = self._busy_until
        wait_s = through_at - self._clock()
        if wait_s > 0:
            self._sleep(wait_s)
        return through_at

"""A circuit breaker: a store that keeps failing is left alone, and always asked again.

closed ── `failures` in a row ──► open ── the pause is over ──► half-open: one call may try
  ▲                                 ▲                               │
  └──────────── it succeeds ────────┼───────────────────────────────┤
                                    └──── it fails: pause doubles ──┘
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class CircuitBreaker:
    """Says whether a call is worth its deadline. Thread-safe; sleeps and starts nothing.

    A try that never reports back counts as failed after one more pause, so that no lost caller can
    keep the circuit open: after any history, `admit` answers at most `max_pause_s`.

    Args:
        failures: so many in a row open the circuit.
        pause_s: how long it stays open the first time; each failed try doubles it.
        max_pause_s: the longest pause.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        failures: int,
        pause_s: float,
        max_pause_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._first_pause_s = pause_s
        self._max_pause_s = max_pause_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause_s = pause_s
        self._next_try_at: float | None = None

    def admit(self) -> float:
        """0 when a call may go ahead; it must then report. Otherwise the seconds to wait.

        In the half-open state the first to ask gets the 0, everyone else waits for its outcome.
        """
        with self._lock:
            if self._next_try_at is None:
                return 0.0
            now = self._clock()
            if now < self._next_try_at:
                return self._next_try_at - now
            self._next_try_at = now + self._pause_s
            return 0.0

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0
            self._pause_s = self._first_pause_s
            self._next_try_at = None

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures < self._limit:
                return
            if self._failures > self._limit:
                self._pause_s = min(2 * self._pause_s, self._max_pause_s)
            self._next_try_at = self._clock() + self._pause_s

    @property
    def is_closed(self) -> bool:
        with self._lock:
            return self._next_try_at is None

"""What a prefix cache did, in numbers and, sparingly, in log lines."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from packkv.errors import (
    AccessDenied,
    DeadlineExceeded,
    LimitExceeded,
    ProtocolViolation,
    StoreUnavailable,
)

_log = logging.getLogger("packkv.prefix_cache")


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot. Everything only grows.

    Args:
        loads: calls of `load`.
        asked_blocks: full blocks that those calls could have used.
        hit_blocks: blocks handed out, verified.
        hit_tokens: their tokens.
        shared_blocks: of the blocks handed out, those that another load was fetching anyway.
        fetched_bytes: payload bytes received, used or not.
        misses: loads that ended before the last block they could have used, by reason: "absent",
            "heads" and "corrupt" as the store says; a `PayloadError` reason when it sent something
            else than was asked; "slower" when computing is estimated to be faster; "late",
            "unavailable", "denied", "limit", "protocol" or "failure" when the store did not answer.
        loaded_cold: of the blocks received, those that came in cold form and were decoded.
        published_blocks: blocks that the store took.
        published_bytes: their payload bytes, as sent.
        published_cold: those of them that went in cold form.
        already_present: blocks that it had.
        dropped_blocks: blocks that were not published, by reason: "queue" (full), "rejected",
            "closed", or as in `misses`.
        errors: exceptions that were kept from the engine, by class.
    """

    loads: int = 0
    asked_blocks: int = 0
    hit_blocks: int = 0
    hit_tokens: int = 0
    shared_blocks: int = 0
    fetched_bytes: int = 0
    published_blocks: int = 0
    loaded_cold: int = 0
    published_bytes: int = 0
    published_cold: int = 0
    already_present: int = 0
    misses: Mapping[str, int] = field(default_factory=dict)
    dropped_blocks: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)


class Tally:
    """Counts and logs for one prefix cache. Thread-safe.

    Args:
        log_interval_s: at most one log line of a kind in this time; the next one says how many
            were left out.
        clock: seconds that only go forward.
    """

    def __init__(self, log_interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = log_interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._sums: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._logged: dict[str, tuple[float, int]] = {}

    def add(self, **amounts: int) -> None:
        """Add to the plain fields of `Counters`."""
        with self._lock:
            self._sums.update(amounts)

    def miss(self, reason: str) -> None:
        with self._lock:
            self._misses[reason] += 1

    def dropped(self, reason: str, blocks: int) -> None:
        with self._lock:
            self._dropped[reason] += blocks

    def trouble(self, doing: str, error: Exception) -> str:
        """Count an error that ends here, log it unless its like was just logged; its reason."""
        kind = type(error).__name__
        with self._lock:
            self._errors[kind] += 1
        reason = reason_of(error)
        self.warn(
            f"{doing}/{reason}", f"{doing}: {kind}: {error!s:.500}; going on without the store"
        )
        return reason

    def warn(self, key: str, text: str) -> None:
        """One log line, unless one of this key was written less than an interval ago."""
        now = self._clock()
        with self._lock:
            last, left_out = self._logged.get(key, (float("-inf"), 0))
            if now - last < self._interval_s:
                self._logged[key] = (last, left_out + 1)
                return
            self._logged[key] = (now, 0)
        _log.warning("%s%s", text, f" ({left_out} more like it before)" if left_out else "")

    def snapshot(self) -> Counters:
        with self._lock:
            return Counters(
                **self._sums,
                misses=dict(self._misses),
                dropped_blocks=dict(self._dropped),
                errors=dict(self._errors),
            )


def reason_of(error: Exception) -> str:
    """The metric label of an error."""
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (StoreUnavailable, "unavailable"),
        (DeadlineExceeded, "late"),
        (AccessDenied, "denied"),
        (LimitExceeded, "limit"),
        (ProtocolViolation, "protocol"),
    )
    return next((reason for kind, reason in reasons if isinstance(error, kind)), "failure")

"""Leases: promises, with an expiry, that blocks stay."""

import heapq
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from packkv_store.block import BlockKey
from packkv_store.clock import Clock


@dataclass(slots=True)
class Lease:
    """Who holds which blocks until when, in seconds of the monotonic clock."""

    owner: bytes
    keys: tuple[BlockKey, ...]
    expires_at: float


class LeaseTable:
    """Bounded in number and in duration; a lease that is over is over at once.

    A stream that is being sent holds its blocks the same way, for as long as it runs.
    """

    def __init__(self, clock: Clock, max_leases: int, max_seconds: float) -> None:
        self._clock = clock
        self._max_leases = max_leases
        self._max_seconds = max_seconds
        self._leases: dict[int, Lease] = {}
        self._expiries: list[tuple[float, int]] = []
        self._holders: Counter[BlockKey] = Counter()

    def __len__(self) -> int:
        self._expire()
        return len(self._leases)

    def grant(self, owner: bytes, keys: Sequence[BlockKey], seconds: float) -> tuple[int, float]:
        """Lease id and seconds granted, which may be fewer than asked; (0, 0) when refused."""
        self._expire()
        if not keys or seconds <= 0 or len(self._leases) >= self._max_leases:
            return 0, 0.0
        granted = min(seconds, self._max_seconds)
        # random: an id cannot be guessed by another caller, nor met again after a restart
        lease_id = secrets.randbits(63) | 1
        self._leases[lease_id] = Lease(owner, tuple(keys), self._clock.monotonic() + granted)
        self._holders.update(self._leases[lease_id].keys)
        self._schedule(lease_id)
        return lease_id, granted

    def renew(self, owner: bytes, lease_id: int, seconds: float) -> float:
        """Seconds that remain from now; 0 when the lease is unknown, over or another's."""
        self._expire()
        lease = self._leases.get(lease_id)
        if lease is None or lease.owner != owner:
            return 0.0
        granted = min(seconds, self._max_seconds)
        lease.expires_at = self._clock.monotonic() + granted
        self._schedule(lease_id)
        self._expire()
        return max(granted, 0.0)

    def release(self, owner: bytes, lease_id: int) -> None:
        lease = self._leases.get(lease_id)
        if lease is not None and lease.owner == owner:
            self._end(lease_id)

    def holds(self, key: BlockKey) -> bool:
        """Whether a lease or a running stream needs the block to stay."""
        self._expire()
        return key in self._holders

    @contextmanager
    def holding(self, keys: Sequence[BlockKey]) -> Iterator[None]:
        """Holds the blocks for the length of the `with` body."""
        self._holders.update(keys)
        try:
            yield
        finally:
            self._drop(keys)

    def _schedule(self, lease_id: int) -> None:
        heapq.heappush(self._expiries, (self._leases[lease_id].expires_at, lease_id))

    def _expire(self) -> None:
        now = self._clock.monotonic()
        while self._expiries and self._expiries[0][0] <= now:
            _, lease_id = heapq.heappop(self._expiries)
            lease = self._leases.get(lease_id)
            # a renewed lease has a later date in the heap as well
            if lease is not None and lease.expires_at <= now:
                self._end(lease_id)

    def _end(self, lease_id: int) -> None:
        self._drop(self._leases.pop(lease_id).keys)

    def _drop(self, keys: Sequence[BlockKey]) -> None:
        # taken out and, where others hold the block too, put back: no look-up is made twice
        take = self._holders.pop
        for key in keys:
            others = take(key) - 1
            if others:
                self._holders[key] = others

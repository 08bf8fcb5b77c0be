"""Lets so many bytes a second pass, and has who wants more wait for his turn."""

import asyncio
from collections import deque
from dataclasses import dataclass
from math import ceil

from packkv_store.clock import Clock
from packkv_store.errors import RateExceeded

# What is paid at one time: an eighth of a second's bytes, within these bounds. Who waits is passed
# by nobody for longer than the others take for one instalment each.
LEAST_INSTALMENT = 64 << 10
MOST_INSTALMENT = 8 << 20
# Calls that wait at one time; one more is refused.
MAX_WAITING = 64
# Timers are not finer.
LEAST_PAUSE_SECONDS = 0.001


@dataclass(slots=True, eq=False)
class Waiter:
    """A call that waits for `part` of the `left` bytes that it still has to pay for."""

    left: int
    part: int
    turn: "asyncio.Future[None]"
    is_paid: bool = False


class Bucket:
    """Bytes that one tenant may move in one direction: `rate` a second, and after a rest as many as
    `burst` at once. Belongs to one event loop.

    Calls that wait take turns, an instalment each, so that a small one is not behind a large one.

    Args:
        name: what the rate is called, in errors.
        rate: bytes a second, of the monotonic clock.
        burst: bytes, at least `LEAST_INSTALMENT`.
    """

    def __init__(self, name: str, rate: int, burst: int, clock: Clock) -> None:
        self.name = name
        self.rate = rate
        self.burst = burst
        self.instalment = min(burst, max(rate // 8, LEAST_INSTALMENT), MOST_INSTALMENT)
        self.moved_bytes = 0
        self.waited_seconds = 0.0
        self.refused_calls = 0
        self._clock = clock
        self._level = float(burst)
        self._filled_at = clock.monotonic()
        self._waiting: deque[Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting_calls(self) -> int:
        return len(self._waiting)

    def take_at_once(self, size: int) -> bool:
        """Takes the bytes if nobody has to wait for them; answers whether it has."""
        if not self._pays_at_once(size):
            return False
        self.moved_bytes += size
        return True

    async def take(self, size: int, ends_at: float) -> None:
        """Returns when it is the turn of these bytes. If it is cancelled nothing has been taken.

        Raises RateExceeded as soon as that is not to be expected before `ends_at`.
        """
        if self.take_at_once(size):
            return
        if len(self._waiting) >= MAX_WAITING:
            raise self._refusal(size, ends_at)
        began_at = self._clock.monotonic()
        paid = 0
        try:
            while paid < size:
                self.check(size - paid, ends_at)
                paid += await self._instalment(size - paid)
        except BaseException:
            self.give_back(paid)
            raise
        finally:
            self.waited_seconds += self._clock.monotonic() - began_at
        self.moved_bytes += size

    def check(self, size: int, ends_at: float) -> None:
        """Raises RateExceeded unless so many bytes have their turn before `ends_at`, by what is
        known now."""
        if self._clock.monotonic() + self._due_seconds(size) > ends_at:
            raise self._refusal(size, ends_at)

    def give_back(self, size: int) -> None:
        """So many bytes that were taken will not be moved; below 0: so many more will be."""
        self._level = min(self._filled() + size, self.burst)
        self._serve()

    def _pays_at_once(self, size: int) -> bool:
        if self._waiting or self._filled() < size:
            return False
        self._level -= size
        return True

    def _filled(self) -> float:
        now = self._clock.monotonic()
        self._level = min(self._level + (now - self._filled_at) * self.rate, self.burst)
        self._filled_at = now
        return self._level

    def _due_seconds(self, size: int) -> float:
        """When so many more bytes have had their turn, if nobody comes later."""
        # of a larger one only as much as this one has goes before its end
        before = sum(min(waiter.left, size) for waiter in self._waiting)
        return max(0.0, before + size - self._filled()) / self.rate

    async def _instalment(self, left: int) -> int:
        """Pays for some of the bytes that are left; answers how many."""
        part = min(left, self.instalment)
        if self._pays_at_once(part):
            return part
        turn = asyncio.get_running_loop().create_future()
        waiter = Waiter(left, part, turn)
        self._waiting.append(waiter)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if waiter.is_paid:
                self.give_back(part)
            else:
                self._waiting.remove(waiter)
                self._serve()
            raise
        return part

    def _serve(self) -> None:
        """Whoever is first goes on, one after the other, as far as the bytes last."""
        while self._waiting and self._filled() >= self._waiting[0].part:
            waiter = self._waiting.popleft()
            waiter.is_paid = True
            self._level -= waiter.part
            # one that was cancelled a moment ago gives it back
            if not waiter.turn.done():
                waiter.turn.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            lacking = self._waiting[0].part - self._level
            pause = max(lacking / self.rate, LEAST_PAUSE_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(pause, self._serve)

    def _refusal(self, size: int, ends_at: float) -> RateExceeded:
        self.refused_calls += 1
        left = max(0.0, ends_at - self._clock.monotonic())
        return RateExceeded(self.name, self.rate, size, ceil(self._due_seconds(size)), left)

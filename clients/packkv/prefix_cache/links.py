"""Links: how fast payloads come to this process, by path and by the tier that they come from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from packkv.client import Tier

# The weight of what came before when something new is measured.
_FADE = 0.8


@dataclass(frozen=True, slots=True)
class Link:
    """One path from one tier.

    Args:
        share: of the bytes that lately came by this path, those that came from this tier.
        bytes_per_s: of the link alone, without what is done with the bytes afterwards.
        overlaps: whether they are decoded while others are still under way.
    """

    share: float
    bytes_per_s: float
    overlaps: bool


@dataclass(slots=True)
class _Sum:
    received: float = 0.0
    seconds: float = 0.0
    overlaps: bool = False


class Links:
    """What has lately been measured of a store. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, Tier], _Sum] = {}
        self._path: str | None = None

    def observe(
        self, path: str | None, tiers: Sequence[Tier], received: int, seconds: float, overlaps: bool
    ) -> None:
        """A fetch that took `seconds` on its way. It counts for the slowest tier that it drew on;
        one that brought nothing says nothing."""
        if path is None or received <= 0 or seconds <= 0:
            return
        tier = Tier.DISK if Tier.DISK in tiers else Tier.RAM
        with self._lock:
            self._path = path
            for (other, _), total in self._sums.items():
                if other == path:
                    total.received *= _FADE
                    total.seconds *= _FADE
            # what came too long ago to count for a byte is forgotten, before it is nothing at all
            self._sums = {link: total for link, total in self._sums.items() if total.received >= 1}
            here = self._sums.setdefault((path, tier), _Sum())
            here.received += received
            here.seconds += seconds
            here.overlaps = overlaps

    def measured(self) -> list[Link]:
        """Those of the path that the last fetch took; none before the first."""
        with self._lock:
            sums = [total for (path, _), total in self._sums.items() if path == self._path]
            received = sum(total.received for total in sums)
            return [
                Link(total.received / received, total.received / total.seconds, total.overlaps)
                for total in sums
            ]

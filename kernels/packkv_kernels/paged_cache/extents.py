"""Extents: which runs of a fixed arena are free."""

from bisect import bisect_left, insort


class Extents:
    """First-fit allocation of runs inside [0, size), in whatever unit the caller counts.

    Freed neighbours are joined at once, so the arena is whole again when everything is freed.
    """

    def __init__(self, size: int) -> None:
        self._starts = [0] if size else []
        self._lengths = {0: size} if size else {}
        self.size = size
        self.used = 0

    def take(self, length: int) -> int | None:
        """The start of a free run of `length`, now taken; None when no run is long enough."""
        for place, start in enumerate(self._starts):
            free = self._lengths[start]
            if free < length:
                continue
            del self._lengths[start]
            if free == length:
                del self._starts[place]
            else:
                self._starts[place] = start + length
                self._lengths[start + length] = free - length
            self.used += length
            return start
        return None

    def give_back(self, start: int, length: int) -> None:
        """Frees a run that `take` returned."""
        self.used -= length
        place = bisect_left(self._starts, start)
        if place < len(self._starts) and self._starts[place] == start + length:
            length += self._lengths.pop(self._starts.pop(place))
        if place and (before := self._starts[place - 1]) + self._lengths[before] == start:
            self._lengths[before] += length
            return
        insort(self._starts, start)
        self._lengths[start] = length

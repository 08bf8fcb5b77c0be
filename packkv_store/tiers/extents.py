"""Who owns which bytes of an arena or a file: best fit over holes, neighbours joined."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import NamedTuple

PAGE = 4096


class Extent(NamedTuple):
    """A run of bytes that belongs to one block."""

    offset: int
    size: int


def extent_size(length: int) -> int:
    """Bytes set aside for a payload: whole pages, in 16 sizes per doubling.

    Payloads of one model differ by a few per cent. Rounding to few sizes (3 % lost on average)
    lets the hole that one leaves take the next, so that space does not fall to pieces.
    """
    pages = max(1, -(-length // PAGE))
    step = max(1, (1 << (pages.bit_length() - 1)) >> 4)
    return -(-pages // step) * step * PAGE


class Extents:
    """The space [0, capacity). Extents never overlap; all that is not taken can be taken."""

    def __init__(self, capacity: int, taken: Iterable[Extent] = ()) -> None:
        self.capacity = capacity // PAGE * PAGE
        self.used = 0
        # no extent is handed out beyond it; a disk that fills up lowers it
        self.limit = self.capacity
        self._holes: list[tuple[int, int]] = []  # (size, offset), sorted
        self._size_at: dict[int, int] = {}  # start of a hole to its size
        self._start_of: dict[int, int] = {}  # end of a hole to its start
        end = 0
        for extent in sorted(taken):
            self._add_hole(end, extent.offset - end)
            end = extent.offset + extent.size
            self.used += extent.size
        self._add_hole(end, self.capacity - end)

    def take(self, length: int) -> Extent | None:
        """The smallest hole that holds `length` bytes, or None."""
        size = extent_size(length)
        for place in range(bisect_left(self._holes, (size, 0)), len(self._holes)):
            hole, offset = self._holes[place]
            if offset + size <= self.limit:
                self._drop_hole(offset, hole)
                self._add_hole(offset + size, hole - size)
                self.used += size
                return Extent(offset, size)
        return None

    def give(self, extent: Extent) -> None:
        """Takes an extent back and joins it with the holes beside it."""
        start, end = extent.offset, extent.offset + extent.size
        if end in self._size_at:
            end += self._drop_hole(end, self._size_at[end])
        if start in self._start_of:
            before = self._start_of[start]
            self._drop_hole(before, start - before)
            start = before
        self._add_hole(start, end - start)
        self.used -= extent.size

    def _add_hole(self, offset: int, size: int) -> None:
        if size > 0:
            insort(self._holes, (size, offset))
            self._size_at[offset] = size
            self._start_of[offset + size] = offset

    def _drop_hole(self, offset: int, size: int) -> int:
        del self._holes[bisect_left(self._holes, (size, offset))]
        del self._size_at[offset]
        del self._start_of[offset + size]
        return size

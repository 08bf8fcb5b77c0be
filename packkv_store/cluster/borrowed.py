"""Leases at other nodes that stand behind a lease of this one."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class Borrowed(NamedTuple):
    """A lease that another node granted."""

    address: str
    lease_id: int


class BorrowedLeases:
    """Forgets the oldest beyond `most`; what is forgotten ends by itself."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._behind: OrderedDict[int, Sequence[Borrowed]] = OrderedDict()

    def put(self, lease_id: int, behind: Sequence[Borrowed]) -> None:
        if lease_id and behind:
            self._behind[lease_id] = behind
        while len(self._behind) > self._most:
            self._behind.popitem(last=False)

    def behind(self, lease_id: int) -> Sequence[Borrowed]:
        return self._behind.get(lease_id, ())

    def pop(self, lease_id: int) -> Sequence[Borrowed]:
        return self._behind.pop(lease_id, ())

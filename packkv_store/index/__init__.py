"""The contract of an index: block to locations. A hint; the node that has the bytes decides."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from packkv_store.block import BlockKey, TierName


class Location(NamedTuple):
    """A place that has a block: a node, by its identity, and the tier there."""

    node: str
    tier: TierName


class Index(Protocol):
    """The index as one node sees it, and as it tells of itself.

    Locations are published after the bytes are in place and withdrawn before they go. No call
    raises for an index that is slow, lost or gone, and none waits for it longer than its short
    deadline: what this node holds is always located, what others hold is unknown meanwhile.
    """

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was last asked."""

    async def start(self, address: str) -> None:
        """From here on others find this node, at HOST:PORT."""

    async def stop(self) -> None:
        """The node leaves: its locations are not given to anybody any more."""

    async def publish(self, keys: Sequence[BlockKey], location: Location) -> None:
        """The blocks are at `location` of this node now. Publishing twice is publishing once."""

    async def withdraw(self, keys: Sequence[BlockKey], location: Location) -> None:
        """The blocks leave `location`. Withdrawing what is not there is not an error."""

    async def locate(self, keys: Sequence[BlockKey]) -> list[tuple[Location, ...]]:
        """Where each of the blocks is, on nodes that live; nowhere for one that is not known. Of a
        block that is on this node, other places may be left out."""

    async def repair(self, keys: Sequence[BlockKey]) -> None:
        """Others looked for these blocks on this node, and not all of them are here."""

    def address(self, node: str) -> str | None:
        """Where a node that `locate` named serves, as HOST:PORT; None once it is gone."""

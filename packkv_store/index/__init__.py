"""The contract of an index: block to locations. A hint; the node that has the bytes decides."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from packkv_store.block import BlockKey, TierName


class Location(NamedTuple):
    """A place that has a block: a node, by its identity, and the tier there."""

    node: str
    tier: TierName


class Member(NamedTuple):
    """Another node that lives: its identity, and where it serves as HOST:PORT."""

    node: str
    address: str


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

    async def leaving(self) -> None:
        """The node is about to leave: it is found as before, and nothing is copied to it."""

    async def stop(self, forget_seconds: float = 0.0) -> None:
        """The node leaves: its locations are not given to anybody any more. One that does not come
        back under its identity takes up to `forget_seconds` to remove them."""

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

    async def meet(self, node: str) -> str | None:
        """As `address`, of any node that lives."""

    async def members(self) -> Sequence[Member]:
        """The other nodes that live and are not about to leave, as of a few seconds ago."""

    async def only_here(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Of each block of this node, whether no other node that stays is known to have it."""

    async def claim(self, key: BlockKey, value: bytes, instead_of: bytes = b"") -> bytes | None:
        """The value in force under a name, which is `value` if it had none, or had `instead_of`;
        one and the same for all nodes that ask at one time. None: the index does not answer."""

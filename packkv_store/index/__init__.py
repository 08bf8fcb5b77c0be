"""The contract of an index: block to locations. A hint; the tier decides."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from packkv_store.block import BlockKey, TierName


class Location(NamedTuple):
    """A place that has a block."""

    node: str
    tier: TierName


class Index(Protocol):
    """Locations are published after the bytes are in place and withdrawn before they go."""

    async def publish(self, keys: Sequence[BlockKey], location: Location) -> None:
        """The blocks are at `location` now. Publishing twice is publishing once."""

    async def withdraw(self, keys: Sequence[BlockKey], location: Location) -> None:
        """The blocks leave `location`. Withdrawing what is not there is not an error."""

    async def locate(self, keys: Sequence[BlockKey]) -> list[tuple[Location, ...]]:
        """Locations of the longest run of known blocks from the front of `keys`."""

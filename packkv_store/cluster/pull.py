"""Blocks that are being brought here together, and which of them can be read meanwhile."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packkv_store.block import ChainHash
from packkv_store.cluster.coming import Coming
from packkv_store.tenant import Tenant


class Pull:
    """One call of the puller; `task` ends when each block is here or cannot be had."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.coming: dict[ChainHash, Coming] = {}
        # blocks that the index has at no other node
        self.nowhere: set[ChainHash] = set()
        self._unplaced = 0
        self._placed = asyncio.Event()

    def shared(self, count: int) -> None:
        """So many nodes send a share of it."""
        self._unplaced = count

    def placed(self, blocks: Iterable[Coming]) -> None:
        """A node's share has its places, of which these may be read from; or never will."""
        self.coming |= {one.chain_hash: one for one in blocks}
        self._unplaced -= 1
        if self._unplaced == 0:
            self._placed.set()

    async def readable(self) -> None:
        """Returns when `coming` has all that it will have."""
        placed = asyncio.ensure_future(self._placed.wait())
        try:
            await asyncio.wait([placed, self.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            placed.cancel()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a share of the blocks is to come from."""

    node: str
    address: str


class Share:
    """What one node is asked for, and what of it came whole."""

    def __init__(self, source: Source, pull: Pull, tenant: Tenant) -> None:
        self.source = source
        self.tenant = tenant
        self.done: list[ChainHash] = []
        self._pull = pull
        self._is_placed = False

    def place(self, blocks: Sequence[Coming]) -> None:
        """These can be read while they come. Only the first call counts."""
        if not self._is_placed:
            self._is_placed = True
            self._pull.placed(blocks)

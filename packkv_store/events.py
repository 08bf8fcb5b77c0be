"""Tells watchers which blocks this node has taken in and which have left it.

Nothing here waits: a block that is stored while a watcher is slow costs a word in a table, and a
watcher whose table is full is told to begin again.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from packkv_store.block import TAG_BYTES, BlockKey
from packkv_store.errors import Leaving, LimitExceeded

MAX_WATCHERS = 16
MAX_PENDING = 65_536
MAX_BATCH = 4096


@dataclass(frozen=True, slots=True)
class News:
    """What has become of some blocks: none of them is in both lists."""

    stored: list[BlockKey]
    removed: list[BlockKey]


@dataclass(slots=True, eq=False)
class Watcher:
    """What one watcher has yet to be told: of each block the latest, of MAX_PENDING blocks at most.

    `is_behind` once there was more; what comes then is not kept until `begin`.
    """

    is_behind: bool = False
    _pending: dict[BlockKey, bool] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_over: bool = False

    def begin(self) -> None:
        """From here on everything is kept, nothing from before."""
        self._pending.clear()
        self.is_behind = False

    async def news(self) -> News | None:
        """The next news, as soon as there are any; None when the watcher has fallen behind.

        Raises Leaving when there will be no more.
        """
        while not (self._pending or self.is_behind or self._is_over):
            self._changed.clear()
            await self._changed.wait()
        if self._is_over:
            raise Leaving
        if self.is_behind:
            return None
        batch = list(islice(self._pending, MAX_BATCH))
        is_here = [self._pending.pop(key) for key in batch]
        return News(
            [key for key, here in zip(batch, is_here, strict=True) if here],
            [key for key, here in zip(batch, is_here, strict=True) if not here],
        )

    def tell(self, key: BlockKey, is_here: bool) -> None:
        if self.is_behind:
            return
        self._pending[key] = is_here
        if len(self._pending) > MAX_PENDING:
            self.is_behind = True
            self._pending.clear()
        self._changed.set()

    def end(self) -> None:
        self._is_over = True
        self._changed.set()


class Events:
    """The watchers of a node."""

    def __init__(self) -> None:
        self._watchers: dict[bytes, set[Watcher]] = {}
        self._is_over = False

    def __len__(self) -> int:
        return sum(map(len, self._watchers.values()))

    @contextmanager
    def watching(self, tag: bytes) -> Iterator[Watcher]:
        """A watcher of one tenant's blocks. Raises LimitExceeded, Leaving."""
        if self._is_over:
            raise Leaving
        here = self._watchers.setdefault(tag, set())
        if len(here) >= MAX_WATCHERS:
            raise LimitExceeded("watchers of a tenant", len(here) + 1, MAX_WATCHERS)
        watcher = Watcher()
        here.add(watcher)
        try:
            yield watcher
        finally:
            here.discard(watcher)

    def stored(self, key: BlockKey) -> None:
        """The block can be matched from now on."""
        self._tell(key, True)

    def removed(self, keys: Iterable[BlockKey]) -> None:
        """The blocks cannot be matched any more."""
        for key in keys:
            self._tell(key, False)

    def close(self) -> None:
        """The node leaves: every watcher is told so."""
        self._is_over = True
        for here in self._watchers.values():
            for watcher in here:
                watcher.end()

    def _tell(self, key: BlockKey, is_here: bool) -> None:
        for watcher in self._watchers.get(key[:TAG_BYTES], ()):
            watcher.tell(key, is_here)

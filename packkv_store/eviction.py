"""Which block of a tier goes first."""

import heapq
from collections.abc import Callable, Generator
from typing import Protocol

from packkv_store.block import BlockKey

Rank = tuple[float, int, int, BlockKey]


class Evictable(Protocol):
    """What the order needs to know of a block. `used_at` only ever grows."""

    @property
    def key(self) -> BlockKey: ...

    @property
    def used_at(self) -> float: ...

    @property
    def first_token(self) -> int: ...

    @property
    def length(self) -> int: ...


class EvictionOrder:
    """The blocks of one tier, least valuable first.

    Longest unused first; of blocks last used together the deepest first, since a head without its
    tail still serves a shorter prefix and a tail without its head serves nobody; then the largest.
    A match or a put gives one `used_at` to its whole prefix, so a tail never outlives its head.
    """

    def __init__(self) -> None:
        self._blocks: dict[BlockKey, Evictable] = {}
        # ranks as they were when pushed; using a block costs nothing until it comes up here
        self._heap: list[Rank] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._blocks

    def add(self, block: Evictable) -> None:
        self._blocks[block.key] = block
        heapq.heappush(self._heap, _rank(block))

    def discard(self, key: BlockKey) -> None:
        self._blocks.pop(key, None)
        # ranks of blocks that are gone are dropped when met; this bounds how many there can be
        if len(self._heap) > 2 * len(self._blocks) + 64:
            self._heap = [_rank(block) for block in self._blocks.values()]
            heapq.heapify(self._heap)

    def victims(self, holds: Callable[[BlockKey], bool]) -> Generator[BlockKey, None, None]:
        """Blocks that may go, in the order to go. A held block is never among them.

        The blocks stay in the order until they are discarded.
        """
        passed: list[Rank] = []
        met: set[BlockKey] = set()
        try:
            while self._heap:
                rank = heapq.heappop(self._heap)
                block = self._blocks.get(rank[3])
                if block is None:
                    continue
                if rank != _rank(block):
                    heapq.heappush(self._heap, _rank(block))
                    continue
                if block.key in met:
                    continue  # a rank left from an earlier stay in this tier
                met.add(block.key)
                passed.append(rank)
                if not holds(block.key):
                    yield block.key
        finally:
            for rank in passed:
                heapq.heappush(self._heap, rank)


def _rank(block: Evictable) -> Rank:
    return block.used_at, -block.first_token, -block.length, block.key

"""Which block of a tier goes first."""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from typing import Protocol

from packkv_store.block import TAG_BYTES, BlockKey

Rank = tuple[float, float, int, int, BlockKey]
Holds = Callable[[BlockKey], bool]


class Evictable(Protocol):
    """What the order needs to know of a block. `used_at` and `value` only ever grow."""

    @property
    def key(self) -> BlockKey: ...

    @property
    def used_at(self) -> float: ...

    @property
    def value(self) -> float: ...

    @property
    def first_token(self) -> int: ...

    @property
    def length(self) -> int: ...


class EvictionOrder:
    """The blocks of one tenant in one tier, least valuable first.

    Longest unused first; of blocks last used together the deepest first, since a head without its
    tail still serves a shorter prefix and a tail without its head serves nobody; then the largest.
    A match or a put gives one `used_at` to its whole prefix, so a tail never outlives its head.

    With `by_value` the least value goes first, and of equal values the longest unused. That is
    GreedyDual: who uses a prefix gives all of it the value of the last block that went, the
    `level`, and on top of it what it is worth. The level rises by 1 while the tier is filled, then
    with what goes, about 1 each time the tier is filled anew; so what is worth twice as much stays
    twice as long unused.
    """

    def __init__(self, by_value: bool = False) -> None:
        self.level = 0.0
        self._by_value = by_value
        self._blocks: dict[BlockKey, Evictable] = {}
        # ranks as they were when pushed; using a block costs nothing until it comes up here
        self._heap: list[Rank] = []

    def level_at(self, filled: float) -> float:
        """The level, when the blocks take this part of their room. It never falls."""
        self.level = max(self.level, filled)
        return self.level

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._blocks

    def add(self, block: Evictable) -> None:
        self._blocks[block.key] = block
        heapq.heappush(self._heap, self._rank(block))

    def discard(self, key: BlockKey) -> None:
        self._blocks.pop(key, None)
        # ranks of blocks that are gone are dropped when met; this bounds how many there can be
        if len(self._heap) > 2 * len(self._blocks) + 64:
            self._heap = [self._rank(block) for block in self._blocks.values()]
            heapq.heapify(self._heap)

    def victims(self, holds: Holds) -> Generator[Evictable, None, None]:
        """Blocks that may go, in the order to go. A held block is never among them.

        The blocks stay in the order until they are discarded.
        """
        passed: list[Rank] = []
        met: set[BlockKey] = set()
        try:
            while self._heap:
                rank = heapq.heappop(self._heap)
                block = self._blocks.get(rank[-1])
                if block is None:
                    continue
                if rank != (current := self._rank(block)):
                    heapq.heappush(self._heap, current)
                    continue
                if block.key in met:
                    continue  # a rank left from an earlier stay in this tier
                met.add(block.key)
                passed.append(rank)
                if not holds(block.key):
                    self.level = max(self.level, rank[0])
                    yield block
        finally:
            for rank in passed:
                heapq.heappush(self._heap, rank)

    def _rank(self, block: Evictable) -> Rank:
        value = block.value if self._by_value else 0.0
        return value, block.used_at, -block.first_token, -block.length, block.key


class FairOrder:
    """The blocks of a tier that tenants share.

    A tenant is sure of its share and may take more for as long as nobody misses it. Who stores a
    block takes the place of whoever is beyond his share, and further than himself; else his own.
    A tenant within its share never loses a block to another.

    Args:
        shares: the part of the tier that each tenant's tag is sure of. Others have none.
        weigh: how many bytes of the tier a payload of some length takes.
        by_value: whether value counts before use, as in `EvictionOrder`.
    """

    def __init__(
        self,
        shares: Mapping[bytes, float],
        weigh: Callable[[int], int],
        by_value: bool = False,
    ) -> None:
        self._shares = shares
        self._weigh = weigh
        self._orders = defaultdict[bytes, EvictionOrder](lambda: EvictionOrder(by_value))
        self._used: defaultdict[bytes, int] = defaultdict(int)

    def __len__(self) -> int:
        return sum(map(len, self._orders.values()))

    def used_bytes(self, tag: bytes) -> int:
        """Bytes of the tier that a tenant's blocks take."""
        return self._used.get(tag, 0)

    def share(self, tag: bytes) -> float:
        """The part of the tier that a tenant is sure of."""
        return self._shares.get(tag, 0.0)

    def add(self, block: Evictable) -> None:
        tag = block.key[:TAG_BYTES]
        self._orders[tag].add(block)
        self._used[tag] += self._weigh(block.length)

    def discard(self, block: Evictable) -> None:
        tag = block.key[:TAG_BYTES]
        if block.key in self._orders[tag]:
            self._orders[tag].discard(block.key)
            self._used[tag] -= self._weigh(block.length)

    def level(self, tag: bytes, capacity: int) -> float:
        """The level of a tenant's blocks in a tier of `capacity` bytes."""
        sure = self.share(tag) * capacity
        return self._orders[tag].level_at(min(self._used[tag] / sure, 1.0) if sure else 1.0)

    def victims(
        self, holds: Holds, tag: bytes, length: int, capacity: int
    ) -> Generator[Evictable, None, None]:
        """Blocks that may go so that the tenant `tag` can store `length` bytes in a tier of
        `capacity`, in the order to go. A held block is never among them.

        The blocks stay in the order until they are discarded.
        """
        used = defaultdict(int, self._used)
        used[tag] += self._weigh(length)

        def excess(one: bytes) -> float:
            """What the tenant uses of the tier, in shares of its own."""
            share = self._shares.get(one, 0.0) * capacity
            return used[one] / share if share else math.inf

        with ExitStack() as stack:
            left = {
                one: stack.enter_context(closing(order.victims(holds)))
                for one, order in self._orders.items()
            }
            while left:
                bound = max(1.0, excess(tag))
                others = [one for one in left if one != tag and excess(one) > bound]
                loser = max(others, key=excess, default=tag)
                block = next(left[loser], None) if loser in left else None
                if block is not None:
                    used[loser] -= self._weigh(block.length)
                    yield block
                elif loser in left:
                    del left[loser]
                else:
                    return

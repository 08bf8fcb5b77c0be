"""Which blocks are past their lifetime, without looking at those that are not."""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from packkv_store.block import BlockKey
from packkv_store.clock import Clock
from packkv_store.lifetimes import NEVER
from packkv_store.store.block_table import Block

# The name of the queue of all namespaces without a lifetime of their own; no root hash is empty.
OTHERS = b""


@dataclass(slots=True, eq=False)
class Queue:
    """Blocks that have a lifetime in common, in the order in which they were stored: the first
    expires first."""

    seconds: float
    blocks: OrderedDict[BlockKey, Block] = field(default_factory=OrderedDict)
    # whether the date of its first block, or an earlier one, is among the dates
    is_dated: bool = False

    def first_date(self) -> float:
        return next(iter(self.blocks.values())).stored_at + self.seconds

    def latest_first(self) -> Iterator[Block]:
        return reversed(self.blocks.values())


class Expiry:
    """Blocks by the date of the wall clock after which nobody may have them.

    A namespace has its own lifetime or that of all others. There is a queue for each namespace that
    has its own and one for the others, and of these the one whose first block expires first comes
    first: what is not due costs nothing, however much of it there is. Blocks that never expire are
    in no queue.

    The order of a queue stays true when the wall clock is set back: blocks from the future count as
    stored at the moment when that is seen.
    """

    def __init__(self, clock: Clock, seconds: float, own: Mapping[bytes, float]) -> None:
        self._clock = clock
        self._queues = {OTHERS: Queue(seconds)} | {
            root_hash: Queue(lifetime) for root_hash, lifetime in own.items()
        }
        self._dates: list[tuple[float, bytes]] = []
        self._latest = -NEVER  # the wall clock, as it was last seen

    def seconds(self, root_hash: bytes) -> float:
        """The lifetime of a namespace."""
        return self._of(root_hash)[1].seconds

    def add(self, block: Block) -> None:
        """The block was stored at its `stored_at`, not before any that was added earlier."""
        name, queue = self._of(block.root_hash)
        if queue.seconds == NEVER:
            return
        self._see(block.stored_at)
        queue.blocks[block.key] = block
        self._date(name, queue)

    def discard(self, block: Block) -> None:
        """The block expires no more, as it is gone or on its way."""
        self._of(block.root_hash)[1].blocks.pop(block.key, None)

    def is_due(self) -> bool:
        """Whether there may be a block that is past its lifetime."""
        if not self._dates:
            return False
        now = self._clock.wall()
        self._see(now)
        return bool(self._dates) and self._dates[0][0] < now

    def is_past(self, block: Block) -> bool:
        """Whether this one is, which is here, at the time of the last `is_due`."""
        return block.stored_at + self.seconds(block.root_hash) < self._latest

    def take(self, most: int) -> list[Block]:
        """At most so many of the blocks that are past their lifetime. They are here no more."""
        taken: list[Block] = []
        while len(taken) < most and self.is_due():
            _, name = heapq.heappop(self._dates)
            queue = self._queues[name]
            queue.is_dated = False
            now = self._latest
            while queue.blocks and len(taken) < most and queue.first_date() < now:
                taken.append(queue.blocks.popitem(last=False)[1])
            self._date(name, queue)
        return taken

    def change(self, root_hash: bytes, seconds: float | None, blocks: Iterable[Block]) -> None:
        """Gives a namespace a lifetime of its own, or with None that of all others again. It is in
        force for the blocks that are here as well.

        Args:
            root_hash: of the namespace.
            seconds: counted from when a block was stored; NEVER is one, too.
            blocks: all that could be in a queue, in the order in which they were stored.
        """
        known = self._queues.get(root_hash)
        if known is not None and seconds is not None and NEVER not in (known.seconds, seconds):
            # the same blocks in the same order
            known.seconds = seconds
        else:
            self._queues.pop(root_hash, None)
            if seconds is not None:
                self._queues[root_hash] = Queue(seconds)
            self._fill(blocks, {root_hash, OTHERS})
        self._date_all()

    def _of(self, root_hash: bytes) -> tuple[bytes, Queue]:
        queue = self._queues.get(root_hash)
        return (OTHERS, self._queues[OTHERS]) if queue is None else (root_hash, queue)

    def _fill(self, blocks: Iterable[Block], names: set[bytes]) -> None:
        """Puts every block into its queue, if it is one of these."""
        here = [self._queues[name] for name in names if name in self._queues]
        for queue in here:
            queue.blocks.clear()
        for block in blocks:
            _, queue = self._of(block.root_hash)
            if queue in here and queue.seconds != NEVER:
                queue.blocks[block.key] = block
        for queue in here:
            _put_in_order(queue, self._clock.wall())

    def _date(self, name: bytes, queue: Queue) -> None:
        if queue.blocks and not queue.is_dated:
            heapq.heappush(self._dates, (queue.first_date(), name))
            queue.is_dated = True

    def _date_all(self) -> None:
        self._dates.clear()
        for name, queue in self._queues.items():
            queue.is_dated = False
            self._date(name, queue)

    def _see(self, now: float) -> None:
        if now < self._latest:
            for queue in self._queues.values():
                for block in takewhile(lambda one: one.stored_at > now, queue.latest_first()):
                    block.stored_at = now
            self._date_all()
        self._latest = now


def _put_in_order(queue: Queue, now: float) -> None:
    """No block counts as stored after `now`, nor after one that came later: the clock was ahead
    when such a block was stored."""
    for block in queue.latest_first():
        block.stored_at = now = min(block.stored_at, now)

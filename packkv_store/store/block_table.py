"""The blocks of this node and, where calls have shown it, which block follows which."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from packkv_store.block import BlockKey, PayloadHead, Span, covers

MAX_EXPECTED = 65_536


@dataclass(slots=True, eq=False)
class Block:
    """One block of this node. `head` is kept while the payload is in RAM."""

    key: BlockKey
    root_hash: bytes
    length: int
    head_length: int
    tokens: int
    first_token: int
    first_head: int
    heads: int
    stored_at: float  # wall clock: expiry survives a restart
    used_at: float  # monotonic clock
    value: float = 0.0  # see EvictionOrder
    compute_ms: float = 0.0  # 0: not known
    is_cold: bool = False
    parent: BlockKey | None = None
    head: PayloadHead | None = None
    leaving: bool = False  # hidden; its bytes go when nobody holds them any more
    corrupt: bool = False

    @classmethod
    def of(
        cls, key: BlockKey, head: PayloadHead, stored_at: float, used_at: float, value: float = 0.0
    ) -> "Block":
        return cls(
            key=key,
            root_hash=head.root_hash,
            length=head.payload_length,
            head_length=head.head_length,
            tokens=head.tokens,
            first_token=head.first_token,
            first_head=head.first_head,
            heads=head.heads,
            stored_at=stored_at,
            used_at=used_at,
            value=value,
            compute_ms=head.compute_ms,
            is_cold=head.is_cold,
        )

    def covers_heads(self, wanted: Span) -> bool:
        return covers(self.first_head, self.heads, wanted)


class BlockTable:
    """Blocks by key. Parents are hints: wrong or missing ones cost a poorer eviction order."""

    def __init__(self) -> None:
        self._blocks: dict[BlockKey, Block] = {}
        self._expected: OrderedDict[BlockKey, BlockKey] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, key: BlockKey) -> Block | None:
        return self._blocks.get(key)

    def get_run(self, keys: Iterable[BlockKey]) -> list[Block]:
        """The blocks from the front up to the first that is not here."""
        # thousands a Match: the loop is C's, as `iter` ends at the first None
        return list(iter(map(self._blocks.get, keys).__next__, None))

    def add(self, block: Block, before: BlockKey | None = None) -> None:
        """`before` is the block that came before it on its stream, if any."""
        block.parent = self._expected.pop(block.key, None)
        last = self._blocks.get(before) if before else None
        if last is not None and _follows(last, block):
            block.parent = last.key
        self._blocks[block.key] = block

    def renew(self, block: Block, stored_at: float) -> None:
        """The block, which is here, has been stored again: it is the latest now."""
        block.stored_at = stored_at
        self._blocks[block.key] = self._blocks.pop(block.key)

    def remove(self, block: Block) -> bool:
        """Whether the block was here."""
        if self._blocks.get(block.key) is not block:
            return False
        del self._blocks[block.key]
        return True

    def all(self) -> list[Block]:
        """In the order in which they were stored."""
        return list(self._blocks.values())

    def expect(self, child: BlockKey, parent: BlockKey) -> None:
        """A match has ended between the two; when the child is put, its parent is known."""
        self._expected[child] = parent
        if len(self._expected) > MAX_EXPECTED:
            self._expected.popitem(last=False)

    def use_run(self, blocks: Sequence[Block], at: float, value: float) -> None:
        """As `use`, for blocks of which each follows the one before it."""
        if blocks:
            self.use(blocks[0], at, value)
        for before, block in pairwise(blocks):
            block.parent = before.key
            if block.used_at < at:
                block.used_at = at
            if block.value < value:
                block.value = value

    def use(self, block: Block, at: float, value: float) -> None:
        """The block was used, and so was all before it: a tail must not outlive its head."""
        block.used_at = max(block.used_at, at)
        block.value = max(block.value, value)
        before = self._blocks.get(block.parent) if block.parent else None
        # ends at the first that knows already, so a prefix costs one step a block in all
        while before is not None and (before.used_at < at or before.value < value):
            before.used_at = max(before.used_at, at)
            before.value = max(before.value, value)
            before = self._blocks.get(before.parent) if before.parent else None


def _follows(last: Block, block: Block) -> bool:
    is_next = last.first_token + last.tokens == block.first_token
    return is_next and last.root_hash == block.root_hash

"""Which block goes first, and which never."""

from contextlib import closing
from dataclasses import dataclass

from packkv_store.block import BlockKey
from packkv_store.eviction import EvictionOrder


@dataclass
class Standing:
    key: BlockKey
    used_at: float
    first_token: int
    length: int = 1000


def block(number: int, used_at: float, depth: int = 0, length: int = 1000) -> Standing:
    return Standing(BlockKey(bytes([number]) * 48), used_at, depth, length)


def order_of(order: EvictionOrder, *held: Standing) -> list[int]:
    keys = {one.key for one in held}
    with closing(order.victims(keys.__contains__)) as victims:
        return [key[0] for key in victims]


def filled(*blocks: Standing) -> EvictionOrder:
    order = EvictionOrder()
    for one in blocks:
        order.add(one)
    return order


def test_the_longest_unused_goes_first() -> None:
    assert order_of(filled(block(1, 3.0), block(2, 1.0), block(3, 2.0))) == [2, 3, 1]


def test_of_a_prefix_the_tail_goes_before_the_head() -> None:
    assert order_of(filled(*(block(depth, 1.0, 64 * depth) for depth in range(5)))) == [
        4, 3, 2, 1, 0,
    ]  # fmt: skip


def test_of_equals_the_largest_goes_first() -> None:
    assert order_of(filled(block(1, 1.0, 0, 10), block(2, 1.0, 0, 20))) == [2, 1]


def test_held_blocks_never_go_and_keep_their_place() -> None:
    blocks = [block(number, float(number)) for number in range(4)]
    order = filled(*blocks)
    assert order_of(order, blocks[0], blocks[2]) == [1, 3]
    assert order_of(order) == [0, 1, 2, 3]


def test_using_a_block_moves_it_back() -> None:
    blocks = [block(number, float(number)) for number in range(3)]
    order = filled(*blocks)
    blocks[0].used_at = 9.0
    assert order_of(order) == [1, 2, 0]


def test_discarded_blocks_are_gone_and_leave_nothing_behind() -> None:
    blocks = [block(number, 1.0) for number in range(200)]
    order = filled(*blocks)
    for one in blocks[5:]:
        order.discard(one.key)
    assert sorted(order_of(order)) == [0, 1, 2, 3, 4]
    assert len(order) == 5

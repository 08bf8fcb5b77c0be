"""Which block goes first, and which never."""

from contextlib import closing
from dataclasses import dataclass

from packkv_store.block import BlockKey
from packkv_store.eviction import EvictionOrder, FairOrder


@dataclass
class Standing:
    key: BlockKey
    used_at: float
    first_token: int
    length: int = 1000
    value: float = 0.0


def block(
    number: int, used_at: float, depth: int = 0, length: int = 1000, value: float = 0.0
) -> Standing:
    return Standing(BlockKey(bytes([number]) * 48), used_at, depth, length, value)


def order_of(order: EvictionOrder, *held: Standing) -> list[int]:
    keys = {one.key for one in held}
    with closing(order.victims(keys.__contains__)) as victims:
        return [one.key[0] for one in victims]


def filled(*blocks: Standing, by_value: bool = False) -> EvictionOrder:
    order = EvictionOrder(by_value)
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


def test_by_value_the_least_goes_first_and_of_equals_the_longest_unused() -> None:
    blocks = block(1, 9.0, value=1.0), block(2, 1.0, value=2.0), block(3, 3.0, value=1.0)
    assert order_of(filled(*blocks, by_value=True)) == [3, 1, 2]
    assert order_of(filled(*blocks)) == [2, 3, 1]


def test_the_level_is_the_value_of_the_last_that_went_and_never_falls() -> None:
    held, gone = block(1, 1.0, value=1.0), block(2, 1.0, value=2.5)
    order = filled(held, gone, by_value=True)
    assert order.level == 0
    assert order_of(order, held) == [2]
    assert order.level == 2.5
    assert order_of(order, gone) == [1]
    assert order.level == 2.5


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


RED, BLUE, OLD = (bytes([letter]) * 16 for letter in b"rbo")
# of a tier for 20 blocks; a tenant of an older tokens file has none
SHARES = {RED: 0.5, BLUE: 0.5}


def shared(**counts: int) -> FairOrder:
    """So many blocks of each tenant, all as old."""
    order = FairOrder(SHARES, lambda length: length)
    for tag in (RED, BLUE, OLD):
        for number in range(counts.get(chr(tag[0]), 0)):
            order.add(Standing(BlockKey(tag + bytes([number]) * 32), 1.0, number))
    return order


def test_the_level_rises_as_a_tenant_fills_its_share_and_never_falls() -> None:
    order = shared(r=5, b=20)
    assert [order.level(tag, 20_000) for tag in (RED, BLUE, OLD)] == [0.5, 1.0, 1.0]
    with closing(order.victims(lambda key: False, RED, 0, 1)) as victims:
        for gone in [victim for victim in victims if victim.key[:16] == RED]:
            order.discard(gone)
    assert order.level(RED, 20_000) == 0.5


def losers(order: FairOrder, tag: bytes, most: int, *held: bytes) -> str:
    """Whose blocks go, one letter each, when a tenant stores another block."""
    found = []
    with closing(
        order.victims(lambda key: key[:16] in held, tag, 1000, capacity=20_000)
    ) as victims:
        for victim, _ in zip(victims, range(most), strict=False):
            found.append(chr(victim.key[0]))
    return "".join(found)


def test_who_is_beyond_his_share_makes_room_for_who_is_not() -> None:
    assert losers(shared(r=15, b=5), BLUE, 5) == "rrrrr"


def test_who_is_beyond_his_share_makes_room_for_himself() -> None:
    assert losers(shared(r=15, b=5), RED, 3) == "rrr"


def test_a_tenant_within_its_share_never_loses_a_block_to_another() -> None:
    # blue has ten, which is its share; red's are all held, or it has none
    assert losers(shared(r=10, b=10), RED, 20, RED) == ""
    assert losers(shared(b=10), RED, 20) == ""


def test_two_beyond_their_shares_meet_in_the_middle() -> None:
    order = FairOrder({RED: 0.25, BLUE: 0.25, OLD: 0.5}, lambda length: length)
    for tag, count in ((RED, 12), (BLUE, 6)):
        for number in range(count):
            order.add(Standing(BlockKey(tag + bytes([number]) * 32), 1.0, number))
    # five are sure to each of the two
    assert losers(order, OLD, 8) == "rrrrrrrb"


def test_blocks_of_tenants_that_are_gone_go_first() -> None:
    assert losers(shared(r=15, b=3, o=2), RED, 4) == "oorr"


def test_held_blocks_stay_and_the_next_loser_is_asked() -> None:
    assert losers(shared(r=12, b=6, o=2), BLUE, 3, OLD) == "rr" + "b"


def test_discarded_blocks_count_no_more() -> None:
    order = shared(r=15, b=5)
    with closing(order.victims(lambda key: False, BLUE, 0, 1)) as victims:
        gone = [victim for victim in victims if victim.key[:16] == RED][:6]
    for victim in gone:
        order.discard(victim)
        order.discard(victim)
    assert len(order) == 14
    assert losers(order, BLUE, 1) == "b"

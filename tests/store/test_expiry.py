"""The queues of blocks that expire, held against looking at every block."""

import math
import random

import pytest

from packkv_store.block import BlockKey
from packkv_store.store.block_table import Block
from packkv_store.store.expiry import Expiry
from tests.store.conftest import HandClock

ROOTS = [bytes([number]) * 32 for number in range(1, 5)]


class WallClock(HandClock):
    def wall(self) -> float:
        return self.now


def block(number: int, root_hash: bytes, stored_at: float) -> Block:
    key = BlockKey(number.to_bytes(48))
    return Block(key, root_hash, 1000, 200, 64, 0, 0, 1, stored_at=stored_at, used_at=0.0)


class Model:
    """Every block with the time when it was stored, as the clock says that it was."""

    def __init__(self, seconds: float) -> None:
        self.clock = WallClock()
        self.others = seconds
        self.own: dict[bytes, float] = {}
        self.expiry = Expiry(self.clock, seconds, self.own)
        self.blocks: dict[BlockKey, Block] = {}
        self.stored_at: dict[BlockKey, float] = {}
        self.number = 0

    def put(self, root_hash: bytes) -> None:
        self.number += 1
        added = block(self.number, root_hash, self.clock.wall())
        self.blocks[added.key] = added
        self.stored_at[added.key] = added.stored_at
        self.expiry.add(added)

    def remove(self, key: BlockKey) -> None:
        del self.stored_at[key]
        self.expiry.discard(self.blocks.pop(key))

    def change(self, root_hash: bytes, seconds: float | None) -> None:
        self.own.pop(root_hash, None)
        if seconds is not None:
            self.own[root_hash] = seconds
        self.expiry.change(root_hash, seconds, self.blocks.values())
        # of blocks that were in no queue nobody has seen the clock go back until now
        self.stored_at = {key: one.stored_at for key, one in self.blocks.items()}
        assert all(
            one.stored_at <= self.clock.wall() or self.seconds(one) == math.inf
            for one in self.blocks.values()
        )

    def seconds(self, one: Block) -> float:
        return self.own.get(one.root_hash, self.others)

    def jump_back(self, seconds: float) -> None:
        # seen before and after, as it is by a server that looks every second
        self.expiry.is_due()
        self.clock.move(-seconds)
        self.expiry.is_due()
        now = self.clock.wall()
        self.stored_at = {key: min(at, now) for key, at in self.stored_at.items()}

    def past(self) -> set[BlockKey]:
        now = self.clock.wall()
        return {
            key for key, at in self.stored_at.items() if at + self.seconds(self.blocks[key]) < now
        }

    def check(self, most: int) -> None:
        past = self.past()
        assert self.expiry.is_due() or not past
        known = {key for key, one in self.blocks.items() if self.expiry.is_past(one)}
        assert known == past or not self.expiry.is_due()
        taken: set[BlockKey] = set()
        while some := self.expiry.take(most):
            assert len(some) <= most
            taken |= {one.key for one in some}
        assert taken == past
        for key in past:
            del self.blocks[key], self.stored_at[key]
        assert not self.expiry.is_due()


@pytest.mark.parametrize("seconds", [5.0, math.inf])
@pytest.mark.parametrize("seed", range(10))
def test_exactly_those_past_their_lifetime_are_taken(seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    model = Model(seconds)
    for _ in range(600):
        match rng.randrange(10):
            case 0 | 1 | 2 | 3:
                model.put(rng.choice(ROOTS))
            case 4 if model.blocks:
                model.remove(rng.choice(list(model.blocks)))
            case 5:
                model.change(rng.choice(ROOTS), rng.choice([None, 1.0, 4.0, 20.0, math.inf]))
            case 6:
                model.clock.move(rng.choice([0.1, 1.0, 3.0, 30.0]))
            case 7:
                model.jump_back(rng.choice([0.001, 2.0, 50.0]))
            case _:
                model.check(rng.choice([1, 3, 1000]))
    model.clock.move(1000)
    model.check(7)


def test_nothing_is_kept_of_blocks_that_come_and_go() -> None:
    model = Model(1e9)
    for number in range(1000):
        model.put(ROOTS[0])
        if number:
            model.remove(next(iter(model.blocks)))
        model.clock.move(1)
    assert len(model.expiry._dates) == 1
    assert sum(len(queue.blocks) for queue in model.expiry._queues.values()) == 1


def test_blocks_that_never_expire_are_in_no_queue() -> None:
    model = Model(math.inf)
    for _ in range(10):
        model.put(ROOTS[0])
    assert not model.expiry.is_due()
    assert not any(queue.blocks for queue in model.expiry._queues.values())


def test_a_clock_that_went_back_unseen_hides_nothing_from_a_lifetime_that_is_set_later() -> None:
    model = Model(math.inf)
    model.clock.move(3600)
    model.put(ROOTS[0])
    model.clock.move(-3600)
    model.put(ROOTS[0])
    model.change(ROOTS[0], 10.0)
    model.clock.move(11)
    assert len(model.expiry.take(10)) == 2

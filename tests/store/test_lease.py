"""Leases are promises with an end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv_store.block import BlockKey
from packkv_store.lease import LeaseTable
from tests.store.conftest import HandClock

A, B, C = (BlockKey(bytes([number]) * 48) for number in range(3))
ME, OTHER = b"me", b"other"


@pytest.fixture
def leases(clock: HandClock) -> LeaseTable:
    return LeaseTable(clock, max_leases=3, max_seconds=10.0)


def test_a_lease_holds_its_blocks_until_it_expires(leases: LeaseTable, clock: HandClock) -> None:
    lease_id, granted = leases.grant(ME, [A, B], 5.0)
    assert lease_id
    assert granted == 5.0
    assert leases.holds(A)
    assert not leases.holds(C)
    clock.move(4.999)
    assert leases.holds(B)
    clock.move(0.001)
    assert not leases.holds(B)
    assert leases.renew(ME, lease_id, 5.0) == 0


def test_no_lease_is_longer_than_the_longest(leases: LeaseTable, clock: HandClock) -> None:
    lease_id, granted = leases.grant(ME, [A], 1e9)
    assert granted == 10.0
    assert leases.renew(ME, lease_id, 1e9) == 10.0
    clock.move(10.0)
    assert not leases.holds(A)


def test_renewing_moves_the_end_both_ways(leases: LeaseTable, clock: HandClock) -> None:
    lease_id, _ = leases.grant(ME, [A], 2.0)
    clock.move(1.5)
    assert leases.renew(ME, lease_id, 2.0) == 2.0
    clock.move(1.5)
    assert leases.holds(A)
    assert leases.renew(ME, lease_id, 0.1) == 0.1
    clock.move(0.1)
    assert not leases.holds(A)


def test_a_block_of_two_leases_outlives_the_first(leases: LeaseTable) -> None:
    first, _ = leases.grant(ME, [A, B], 5.0)
    second, _ = leases.grant(OTHER, [B], 5.0)
    leases.release(ME, first)
    assert not leases.holds(A)
    assert leases.holds(B)
    leases.release(OTHER, second)
    assert not leases.holds(B)


def test_another_owner_can_neither_renew_nor_release(leases: LeaseTable) -> None:
    lease_id, _ = leases.grant(ME, [A], 5.0)
    assert leases.renew(OTHER, lease_id, 5.0) == 0
    leases.release(OTHER, lease_id)
    assert leases.holds(A)


def test_leases_are_bounded_in_number(leases: LeaseTable, clock: HandClock) -> None:
    assert all(leases.grant(ME, [A], 1.0)[0] for _ in range(3))
    assert leases.grant(ME, [A], 1.0) == (0, 0.0)
    clock.move(1.0)
    assert leases.grant(ME, [A], 1.0)[0]


def test_nothing_is_leased_for_no_time_or_no_blocks(leases: LeaseTable) -> None:
    assert leases.grant(ME, [A], 0.0) == (0, 0.0)
    assert leases.grant(ME, [], 1.0) == (0, 0.0)
    assert len(leases) == 0


@given(st.lists(st.tuples(st.sampled_from("grh"), st.integers(0, 5), st.floats(0, 20))))
def test_a_block_is_held_exactly_while_a_lease_covers_it(
    steps: list[tuple[str, int, float]],
) -> None:
    clock = HandClock()
    leases = LeaseTable(clock, 100, 10.0)
    ends: dict[int, float] = {}
    for kind, number, seconds in steps:
        known = [*ends]
        if kind == "g":
            lease_id, granted = leases.grant(ME, [A], seconds)
            if lease_id:
                ends[lease_id] = clock.now + granted
        elif kind == "r" and known:
            leases.release(ME, known[number % len(known)])
            del ends[known[number % len(known)]]
        elif kind == "h":
            clock.move(seconds)
        ends = {one: end for one, end in ends.items() if end > clock.now}
        assert leases.holds(A) == bool(ends)
        assert len(leases) == len(ends)

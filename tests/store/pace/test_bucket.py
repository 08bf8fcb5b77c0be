"""So many bytes a second, whoever asks and however often: time is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv_store.errors import STATUS, RateExceeded, Status
from packkv_store.pace.bucket import MAX_WAITING, Bucket
from tests.store.conftest import MIB, HandClock

KIB = 1 << 10
# an instalment is a burst, and a timer of one is 2 ms
RATE = 128 * MIB
BURST = 256 * KIB
NEVER = float("inf")


@pytest.fixture
def bucket(clock: HandClock) -> Bucket:
    return Bucket("get_rate", RATE, BURST, clock)


def empty(bucket: Bucket) -> Bucket:
    assert bucket.take_at_once(BURST)
    return bucket


@contextmanager
def waiting(bucket: Bucket, *sizes: int) -> Iterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(bucket.take(size, NEVER)) for size in sizes]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


async def turns(count: int = 20) -> None:
    """Everything that can go on without time has gone on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def done(*tasks: asyncio.Task[None]) -> None:
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)


async def test_a_burst_passes_at_once_and_then_none(bucket: Bucket) -> None:
    await bucket.take(BURST, NEVER)
    assert not bucket.take_at_once(1)
    assert (bucket.moved_bytes, bucket.waited_seconds) == (BURST, 0.0)


async def test_what_waits_passes_when_its_time_has_come_and_not_before(
    bucket: Bucket, clock: HandClock
) -> None:
    with waiting(empty(bucket), 128 * KIB) as (call,):
        await turns()
        clock.move(0.9 * 128 * KIB / RATE)
        # longer than its timer, several times over
        await asyncio.sleep(0.01)
        assert not call.done()
        clock.move(0.1 * 128 * KIB / RATE + 1e-6)
        await done(call)
    assert bucket.moved_bytes == BURST + 128 * KIB
    assert bucket.waited_seconds == pytest.approx(128 * KIB / RATE, rel=0.01)


async def test_more_than_a_burst_is_paid_in_instalments(bucket: Bucket, clock: HandClock) -> None:
    with waiting(bucket, 4 * BURST) as (call,):
        for number in range(3):
            await turns()
            assert (bucket.waiting_calls, call.done()) == (1, False), number
            clock.move(BURST / RATE)
            async with asyncio.timeout(60):
                while bucket._filled() >= BURST:
                    await asyncio.sleep(0)
        await done(call)
    assert bucket.waited_seconds == pytest.approx(3 * BURST / RATE)


async def test_a_rest_earns_no_more_than_a_burst(bucket: Bucket, clock: HandClock) -> None:
    empty(bucket)
    clock.move(1000.0)
    assert bucket.take_at_once(BURST)
    assert not bucket.take_at_once(1)


async def test_calls_take_turns_so_that_a_small_one_is_not_behind_a_large_one(
    bucket: Bucket, clock: HandClock
) -> None:
    with waiting(empty(bucket), 100 * BURST, BURST, 100 * BURST) as (large, small, other):
        await turns()
        async with asyncio.timeout(60):
            for _ in range(2):
                before = bucket.waiting_calls
                clock.move(BURST / RATE)
                while bucket._filled() >= BURST:
                    await asyncio.sleep(0)
                await turns()
            assert before == 3
            await small
        assert not large.done()
        assert not other.done()


async def test_who_does_not_wait_any_longer_has_taken_nothing(
    bucket: Bucket, clock: HandClock
) -> None:
    with waiting(bucket, 3 * BURST, BURST) as (first, second):
        await turns()
        # the first instalment is paid, the call waits for the next
        assert bucket.waiting_calls == 2
        first.cancel()
        await done(second)
    assert bucket.waiting_calls == 0
    assert bucket.moved_bytes == BURST
    assert bucket._filled() == pytest.approx(0.0)


async def test_a_turn_that_comes_with_the_cancelling_is_given_back(
    bucket: Bucket, clock: HandClock
) -> None:
    with waiting(empty(bucket), BURST) as (call,):
        await turns()
        clock.move(BURST / RATE)
        bucket.give_back(0)  # it is served, and has not gone on yet
        assert bucket.waiting_calls == 0
        call.cancel()
        await turns()
        assert call.cancelled()
    assert bucket.take_at_once(BURST)


async def test_nobody_is_passed_over_by_who_asks_for_little(
    bucket: Bucket, clock: HandClock
) -> None:
    with waiting(empty(bucket), BURST) as (call,):
        await turns()
        clock.move(0.5 * BURST / RATE)
        assert not bucket.take_at_once(1)
        clock.move(0.5 * BURST / RATE)
        await done(call)


async def test_what_would_wait_for_too_long_is_refused_at_once(
    bucket: Bucket, clock: HandClock
) -> None:
    empty(bucket)
    with pytest.raises(RateExceeded) as refused:
        await bucket.take(30 * RATE, clock.monotonic() + 10)
    assert str(refused.value) == (
        f"get_rate is {RATE} bytes/s: {30 * RATE} bytes have their turn in 30 s and this call can "
        "wait for 10.0 s; try again then, or move less at a time"
    )
    assert STATUS[RateExceeded] is Status.RESOURCE_EXHAUSTED
    assert (bucket.refused_calls, bucket.waiting_calls, bucket._filled()) == (1, 0, 0.0)


async def test_those_who_wait_before_count_as_far_as_they_go_first(
    bucket: Bucket, clock: HandClock
) -> None:
    with waiting(empty(bucket), 100 * RATE, 100 * RATE):
        await turns()
        # an instalment of each of them goes first
        bucket.check(BURST, clock.monotonic() + 3.1 * BURST / RATE)
        with pytest.raises(RateExceeded):
            bucket.check(BURST, clock.monotonic() + 2.9 * BURST / RATE)


async def test_no_more_calls_wait_than_may(bucket: Bucket) -> None:
    with waiting(empty(bucket), *[1] * MAX_WAITING):
        await turns()
        assert bucket.waiting_calls == MAX_WAITING
        with pytest.raises(RateExceeded):
            await bucket.take(1, NEVER)


@given(st.data())
async def test_never_more_than_the_rate_and_a_burst(data: st.DataObject) -> None:
    """Whatever is taken, given up and given back, at whatever times."""
    clock = HandClock()
    bucket = Bucket("put_rate", RATE, BURST, clock)
    began_at, calls = clock.monotonic(), list[asyncio.Task[None]]()
    for _ in range(data.draw(st.integers(1, 12))):
        step = data.draw(st.sampled_from(["take", "move", "cancel"]))
        if step == "take":
            size = data.draw(st.integers(1, 3 * BURST))
            calls.append(asyncio.ensure_future(bucket.take(size, NEVER)))
        elif step == "move":
            clock.move(data.draw(st.floats(0, 3 * BURST / RATE)))
            bucket.give_back(0)
        elif calls:
            data.draw(st.sampled_from(calls)).cancel()
        await turns(5)
        most = BURST + (clock.monotonic() - began_at) * RATE
        assert bucket.moved_bytes <= most + 1
        assert bucket._filled() <= BURST
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    # nothing that was given up is missing
    clock.move(BURST / RATE + 1e-3)
    assert bucket.waiting_calls == 0
    assert bucket.take_at_once(BURST)

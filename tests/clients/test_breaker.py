from hypothesis import given
from hypothesis import strategies as st

from packkv.client import CircuitBreaker


class HandClock:
    """Seconds that move only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make() -> tuple[CircuitBreaker, HandClock]:
    clock = HandClock()
    return CircuitBreaker(3, 1.0, 8.0, clock), clock


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        assert breaker.admit() == 0
        breaker.failed()


def test_it_opens_only_after_failures_in_a_row() -> None:
    breaker, _ = make()
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.admit() == 0
    breaker.failed()
    assert breaker.admit() == 1.0


def test_after_the_pause_one_call_may_try_and_its_success_closes() -> None:
    breaker, clock = make()
    fail(breaker, 3)
    clock.now += 0.75
    assert breaker.admit() == 0.25
    clock.now += 0.25
    assert breaker.admit() == 0
    assert breaker.admit() > 0, "only one tries"
    breaker.succeeded()
    assert breaker.is_closed
    assert [breaker.admit(), breaker.admit()] == [0, 0]


def test_the_pause_doubles_up_to_its_bound_and_starts_over_after_success() -> None:
    breaker, clock = make()
    fail(breaker, 3)
    pauses = []
    for _ in range(6):
        pauses.append(breaker.admit())
        clock.now += pauses[-1]
        fail(breaker, 1)
    assert pauses == [1, 2, 4, 8, 8, 8]
    clock.now += 8
    assert breaker.admit() == 0
    breaker.succeeded()
    fail(breaker, 3)
    assert breaker.admit() == 1.0


def test_a_try_that_never_reports_does_not_keep_it_open() -> None:
    breaker, clock = make()
    fail(breaker, 3)
    clock.now += 1
    assert breaker.admit() == 0
    clock.now += 1
    assert breaker.admit() == 0


EVENTS = st.lists(st.sampled_from(["admit", "failed", "succeeded", "wait"]), max_size=60)


@given(EVENTS)
def test_after_any_history_a_call_goes_through_within_the_longest_pause(events: list[str]) -> None:
    breaker, clock = make()
    for event in events:
        if event == "wait":
            clock.now += 0.7
        else:
            getattr(breaker, event)()
    assert breaker.admit() <= 8.0
    clock.now += 8.0
    assert breaker.admit() == 0
    breaker.succeeded()
    assert breaker.is_closed

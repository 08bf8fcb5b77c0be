import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv.prefix_cache.estimate import Rate, blocks_worth_loading


def worth(lengths: list[int], **changes: float | None) -> int:
    rates: dict[str, float | None] = {
        "tokens_per_s": 1000.0,
        "bytes_per_s": 1e6,
        "overhead_s": 0.0,
        "budget_s": 10.0,
    }
    return blocks_worth_loading(lengths, block_tokens=64, **(rates | changes))  # type: ignore[arg-type]


def test_a_fast_store_is_loaded_from_and_a_slow_one_is_not() -> None:
    # a block takes 64 ms to compute; 50 kB take 50 ms at 1 MB/s, 100 kB take 100 ms
    assert worth([50_000] * 10) == 10
    assert worth([100_000] * 10) == 0


def test_a_partial_prefix_is_taken_when_its_front_is_cheap() -> None:
    assert worth([10_000, 10_000, 200_000, 10_000]) == 2
    # unless what follows pays for it
    assert worth([10_000, 10_000, 100_000, 10_000]) == 4


def test_the_cost_before_the_first_byte_needs_enough_blocks_to_pay() -> None:
    # each block saves 14 ms, the call costs 50 ms
    assert worth([50_000] * 3, overhead_s=0.05) == 0
    assert worth([50_000] * 4, overhead_s=0.05) == 4


def test_what_does_not_fit_into_the_budget_is_left() -> None:
    assert worth([50_000] * 10, budget_s=0.16) == 3
    assert worth([50_000] * 10, budget_s=0.0) == 0
    assert worth([50_000] * 10, budget_s=-1.0) == 0
    assert worth([50_000] * 10, budget_s=0.16, tokens_per_s=None) == 3


@pytest.mark.parametrize("unknown", ["tokens_per_s", "bytes_per_s"])
def test_what_nobody_has_measured_is_explored(unknown: str) -> None:
    assert worth([1_000_000] * 8, **{unknown: None}) == 8


@given(st.lists(st.integers(0, 2**32), max_size=30), st.floats(1, 1e6), st.floats(1, 1e10))
def test_the_choice_is_the_best_of_all_choices(
    lengths: list[int], tokens_per_s: float, bytes_per_s: float
) -> None:
    count = worth(lengths, tokens_per_s=tokens_per_s, bytes_per_s=bytes_per_s, budget_s=1e9)
    gains = [
        64 * k / tokens_per_s - sum(lengths[:k]) / bytes_per_s for k in range(len(lengths) + 1)
    ]
    assert gains[count] == pytest.approx(max(gains), rel=1e-6, abs=1e-6)


def test_a_rate_weighs_measurements_by_their_time_and_lets_them_fade() -> None:
    rate = Rate()
    assert rate.per_s() is None
    rate.observe(0, 1)
    rate.observe(1, 0)
    assert rate.per_s() is None
    rate.observe(100, 10)
    assert rate.per_s() == pytest.approx(10)
    rate.observe(100, 0.001)
    # one very short measurement moves it by its amount, not to its rate
    assert rate.per_s() == pytest.approx((80 + 100) / 8.001)
    for _ in range(40):
        rate.observe(50, 1)
    assert rate.per_s() == pytest.approx(50, rel=0.01)

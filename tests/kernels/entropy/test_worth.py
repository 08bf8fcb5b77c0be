"""Whether cold coding pays: by hand-made figures, and against a transfer step by step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv_kernels.entropy import ColdRates, cold_gain_s_per_byte
from packkv_kernels.errors import InvalidInput

MB = 1e6
# the payload is a sixth of fp16 K and V: 60 MB/s of it are 360 MB/s of fp16
RATES = ColdRates(saving=0.15, encode_bytes_per_s=40 * MB, decode_bytes_per_s=60 * MB)


def test_a_slow_link_pays_and_a_fast_one_does_not() -> None:
    assert cold_gain_s_per_byte(RATES, 5 * MB) > 0
    assert cold_gain_s_per_byte(RATES, 1_000 * MB) < 0


def test_it_pays_up_to_the_share_saved_of_the_coding_rate() -> None:
    break_even = RATES.saving * RATES.decode_bytes_per_s
    assert cold_gain_s_per_byte(RATES, break_even) == pytest.approx(0, abs=1e-15)
    assert cold_gain_s_per_byte(RATES, 0.99 * break_even) > 0
    assert cold_gain_s_per_byte(RATES, 1.01 * break_even) < 0


def test_coding_that_overlaps_pays_up_to_the_coding_rate() -> None:
    assert cold_gain_s_per_byte(RATES, 55 * MB, overlaps=True) > 0
    assert cold_gain_s_per_byte(RATES, 65 * MB, overlaps=True) < 0


def test_many_reads_pay_for_a_write() -> None:
    link = 8 * MB
    assert cold_gain_s_per_byte(RATES, link, writes=1, reads=1) < 0
    assert cold_gain_s_per_byte(RATES, link, writes=1, reads=10) > 0


def test_the_other_end_is_free() -> None:
    elsewhere = ColdRates(0.15, math.inf, 60 * MB)
    ours = cold_gain_s_per_byte(elsewhere, 5 * MB, writes=1, reads=1)
    assert ours > cold_gain_s_per_byte(RATES, 5 * MB, writes=1, reads=1)


@given(
    saving=st.floats(0, 0.9),
    coding=st.floats(1e5, 1e10),
    link=st.floats(1e5, 1e11),
    size=st.integers(1, 1 << 30),
)
def test_it_is_the_difference_of_two_transfers(
    saving: float, coding: float, link: float, size: int
) -> None:
    plain_s = size / link
    cold_s = size * (1 - saving) / link + size / coding
    gain_s = size * cold_gain_s_per_byte(ColdRates(saving, coding, coding), link)
    assert gain_s == pytest.approx(plain_s - cold_s, rel=1e-6, abs=1e-9 * (plain_s + cold_s))


@pytest.mark.parametrize("saving", [-0.1, 1.0, math.nan])
def test_savings_beyond_their_limits_are_refused(saving: float) -> None:
    with pytest.raises(InvalidInput, match="saving"):
        ColdRates(saving, 1.0, 1.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_rates_beyond_their_limits_are_refused(rate: float) -> None:
    with pytest.raises(InvalidInput, match="encode_bytes_per_s"):
        ColdRates(0.1, rate, 1.0)
    with pytest.raises(InvalidInput, match="bytes_per_s"):
        cold_gain_s_per_byte(RATES, rate)


@pytest.mark.parametrize("count", [-1.0, math.inf, math.nan])
def test_counts_beyond_their_limits_are_refused(count: float) -> None:
    with pytest.raises(InvalidInput, match="counts"):
        cold_gain_s_per_byte(RATES, 1.0, reads=count)

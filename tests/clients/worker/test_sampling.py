"""Tokens are chosen as the request says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packkv.worker.sampling import Sampler, Sampling

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))


def drawn(sampling: Sampling, count: int = 2000) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.choose(LOGITS).token_id for _ in range(count)]


def test_temperature_zero_takes_the_most_likely() -> None:
    assert set(drawn(Sampling(temperature=0), 10)) == {1}


def test_tokens_come_as_often_as_the_model_says() -> None:
    found = torch.tensor(drawn(Sampling(seed=1))).bincount(minlength=4) / 2000
    assert torch.allclose(found, LOGITS.exp(), atol=0.05)


@pytest.mark.parametrize(
    ("top_p", "possible"), [(0.0, {1}), (0.4, {1}), (0.41, {1, 3}), (0.75, {1, 2, 3})]
)
def test_top_p_keeps_the_smallest_set_that_is_likely_enough(
    top_p: float, possible: set[int]
) -> None:
    assert set(drawn(Sampling(top_p=top_p, seed=2))) == possible


def test_equal_seeds_choose_equally_and_others_do_not() -> None:
    assert drawn(Sampling(seed=3), 50) == drawn(Sampling(seed=3), 50)
    assert drawn(Sampling(seed=3), 50) != drawn(Sampling(seed=4), 50)
    assert drawn(Sampling(), 50) != drawn(Sampling(), 50)


@given(temperature=st.floats(0, 2), top_p=st.floats(0, 1), seed=st.integers(-(2**63), 2**63 - 1))
def test_any_settings_choose_some_token(temperature: float, top_p: float, seed: int) -> None:
    choice = Sampler(Sampling(temperature, top_p, seed)).choose(LOGITS)
    assert choice.token_id in range(4)
    assert choice.logprob is None


def test_log_probabilities_are_those_of_the_model() -> None:
    choice = Sampler(Sampling(temperature=0, top_logprobs=2)).choose(LOGITS)
    assert choice.logprob == pytest.approx(LOGITS[1].item())
    assert [token for token, _ in choice.top] == [1, 3]


def test_no_token_is_chosen_from_nan() -> None:
    with pytest.raises(ArithmeticError, match="NaN"):
        Sampler(Sampling()).choose(torch.tensor([0.0, float("nan")]))

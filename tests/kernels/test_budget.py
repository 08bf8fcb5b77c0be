"""Budgets: the solver against brute force, and what it promises about its target."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv_kernels.budget import Sensitivity, solve, uniform
from packkv_kernels.config import V_BITS, CacheShape
from packkv_kernels.errors import InvalidInput
from packkv_kernels.profile import Profile

STEPS = np.array([0.5, 1.0, 2.0, 4.0])
V_KL = {2: 6.0, 4: 1.0, 8: 0.27, 16: 0.08}


def a_sensitivity(layers: int, heads: int, seed: int) -> Sensitivity:
    random = np.random.default_rng(seed)
    bits = 3.0 - np.log2(STEPS) + 0.2 * random.random((layers, heads, 1))
    return Sensitivity(
        k_kl=10.0 ** random.uniform(-6, -2, (layers, heads)),
        v_kl=10.0 ** random.uniform(-6, -2, (layers, heads)),
        steps=STEPS,
        k_bits=np.maximum(bits, 2.0),
        k_error=(STEPS / 2) ** 2 * (0.5 + random.random((layers, heads, 1))),
    )


def cost(sensitivity: Sensitivity, profile: Profile) -> tuple[float, float]:
    """Predicted KL and bits of a profile's budgets."""
    choice = np.searchsorted(sensitivity.steps, profile.k_scale)
    k = sensitivity.k_kl * np.take_along_axis(sensitivity.k_error, choice[..., None], -1)[..., 0]
    v = sensitivity.v_kl * np.vectorize(V_KL.get)(profile.v_levels)
    bits = np.take_along_axis(sensitivity.k_bits, choice[..., None], -1).sum()
    return float(k.sum() + v.sum()), float(bits + np.vectorize(V_BITS.get)(profile.v_levels).sum())


@given(st.integers(0, 10_000), st.floats(1e-5, 1e-1))
def test_the_predicted_kl_stays_within_the_target_when_any_choice_does(
    seed: int, target: float
) -> None:
    sensitivity = a_sensitivity(3, 2, seed)
    profile = Profile.identity(CacheShape(3, 2, 8))
    kl, _ = cost(sensitivity, solve(profile, sensitivity, target))
    finest = cost(sensitivity, solve(profile, sensitivity, 1e-12))[0]
    assert kl <= max(target, finest) * 1.001


@pytest.mark.parametrize("seed", range(5))
def test_no_cheaper_choice_reaches_the_same_kl(seed: int) -> None:
    sensitivity = a_sensitivity(1, 2, seed)
    profile = Profile.identity(CacheShape(1, 2, 8))
    solved = solve(profile, sensitivity, 3e-3)
    kl, bits = cost(sensitivity, solved)
    for k in itertools.product(STEPS, repeat=2):
        for v in itertools.product(V_BITS, repeat=2):
            other = Profile(
                profile.q_rms, profile.k_order, np.array([k], "f4"), np.array([v], "u1")
            )
            other_kl, other_bits = cost(sensitivity, other)
            assert other_kl > kl * (1 - 1e-6) or other_bits >= bits - 1e-9


def test_heads_that_matter_more_get_finer_steps_and_more_levels() -> None:
    sensitivity = a_sensitivity(1, 2, 0)
    sensitivity.k_kl[:] = [[1e-2, 1e-5]]
    sensitivity.v_kl[:] = [[1e-2, 1e-5]]
    solved = solve(Profile.identity(CacheShape(1, 2, 8)), sensitivity, 5e-3)
    assert solved.k_scale[0, 0] < solved.k_scale[0, 1]
    assert solved.v_levels[0, 0] > solved.v_levels[0, 1]


def test_what_does_not_fit_is_refused() -> None:
    sensitivity = a_sensitivity(2, 2, 0)
    with pytest.raises(InvalidInput, match="not a positive number"):
        solve(Profile.identity(CacheShape(2, 2, 8)), sensitivity, 0.0)
    with pytest.raises(InvalidInput, match="profile of"):
        solve(Profile.identity(CacheShape(2, 3, 8)), sensitivity, 1e-3)
    with pytest.raises(InvalidInput, match="do not fit each other"):
        Sensitivity(np.ones((2, 2)), np.ones((2, 3)), STEPS, *np.ones((2, 2, 2, 4)))


def test_before_anything_was_measured_all_heads_are_alike_and_the_codec_keeps_its_levels() -> None:
    profile = uniform(Profile.identity(CacheShape(2, 3, 8)))
    assert len(np.unique(profile.k_scale)) == 1
    assert (profile.v_levels == 0).all()

"""Profile: what calibration finds, and that its bytes are checked before they are believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from packkv_kernels.config import CacheShape, HybridConfig, PackKVConfig
from packkv_kernels.errors import InvalidInput, ProfileError
from packkv_kernels.profile import Calibrator, Profile
from packkv_kernels.testing import random_profile

SHAPE = CacheShape(2, 3, 16)


def test_a_profile_reads_back_from_its_bytes() -> None:
    profile = random_profile(SHAPE)
    again = Profile.from_bytes(profile.to_bytes())
    assert again.digest == profile.digest
    assert np.array_equal(again.k_order, profile.k_order)


def test_its_bytes_are_a_safetensors_file_either_way() -> None:
    profile = random_profile(SHAPE)
    arrays = load(profile.to_bytes())
    assert np.array_equal(arrays["q_rms"], profile.q_rms)
    assert Profile.from_bytes(save(arrays)).digest == profile.digest


def test_every_truncation_of_a_profile_is_refused() -> None:
    data = random_profile(CacheShape(1, 1, 4)).to_bytes()
    for length in range(len(data)):
        with pytest.raises(ProfileError):
            Profile.from_bytes(data[:length])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q_rms", np.nan, "q_rms"),
        ("q_rms", 0, "q_rms"),
        ("k_scale", np.inf, "k_scale"),
        ("k_order", 1, "permutation"),
        ("v_levels", 5, "v_levels [5]"),
    ],
)
def test_a_profile_with_impossible_values_is_refused(name: str, value: float, message: str) -> None:
    arrays = load(random_profile(SHAPE).to_bytes())
    arrays[name] = arrays[name].copy()
    arrays[name][..., 0] = value
    if name == "k_order":
        arrays[name][..., 1] = value
    with pytest.raises(ProfileError) as caught:
        Profile.from_bytes(save(arrays))
    assert message in str(caught.value)


def test_a_profile_of_ragged_shapes_is_refused() -> None:
    arrays = load(random_profile(SHAPE).to_bytes())
    arrays["k_scale"] = arrays["k_scale"][:1]
    with pytest.raises(ProfileError):
        Profile.from_bytes(save(arrays))


def test_the_step_is_delta_over_the_rms_of_the_queries() -> None:
    profile = random_profile(SHAPE)
    step, inv_step = profile.k_steps(HybridConfig(delta=1.5))
    np.testing.assert_allclose(step, 1.5 / profile.q_rms, rtol=1e-6)
    assert np.array_equal(inv_step, np.float32(1) / step)
    assert profile.k_steps(PackKVConfig())[0].min() == profile.k_steps(PackKVConfig())[0].max() == 1


def test_a_heads_own_levels_win_over_the_codecs() -> None:
    profile = random_profile(SHAPE)
    levels = np.zeros((2, 3), np.uint8)
    levels[1, 2] = 16
    own = Profile(profile.q_rms, profile.k_order, v_levels=levels)
    assert own.levels(HybridConfig(v_levels=4)).tolist() == [[4, 4, 4], [4, 4, 16]]


def test_calibration_weighs_rope_pairs_and_groups_alike() -> None:
    calibrator = Calibrator(CacheShape(1, 1, 4), sinks=0)
    queries = torch.zeros(64, 2, 4)
    queries[:, 0, 1], queries[:, 1, 3] = 2.0, 4.0
    keys = torch.randn(64, 1, 4, generator=torch.Generator().manual_seed(0))
    calibrator.observe(0, queries, keys)
    rms = calibrator.finish().q_rms[0, 0]
    # pair (1, 3): the mean of 4/2 over the group and 16/2
    np.testing.assert_allclose(rms[[1, 3]], np.sqrt((4 / 2 + 16 / 2) / 2))
    # pair (0, 2) is never asked for, yet has a finite step
    assert 0 < rms[0] == rms[2] < rms[1]


def test_channels_that_need_most_bits_come_first() -> None:
    calibrator = Calibrator(CacheShape(1, 1, 4), sinks=0)
    keys = torch.randn(128, 1, 4, generator=torch.Generator().manual_seed(0))
    keys *= torch.tensor([1.0, 30.0, 0.0, 5.0])
    calibrator.observe(0, torch.ones(128, 1, 4), keys)
    assert calibrator.finish().k_order[0, 0].tolist() == [1, 3, 0, 2]


def test_calibration_refuses_nan_and_missing_layers() -> None:
    calibrator = Calibrator(CacheShape(2, 1, 4))
    with pytest.raises(InvalidInput):
        calibrator.observe(0, torch.ones(8, 1, 4), torch.full((8, 1, 4), torch.nan))
    calibrator.observe(0, torch.ones(8, 1, 4), torch.ones(8, 1, 4))
    with pytest.raises(ProfileError, match=r"layers \[1\]"):
        calibrator.finish()


def test_a_ranks_heads_are_a_slice_of_the_models() -> None:
    profile = random_profile(SHAPE)
    part = profile.heads(1, 2)
    assert np.array_equal(part.q_rms, profile.q_rms[:, 1:])
    with pytest.raises(ProfileError):
        profile.heads(2, 2)

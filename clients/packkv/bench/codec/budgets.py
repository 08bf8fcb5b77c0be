"""The profiles that the codec `hybrid` is compared with: budgets solved to a range of KLs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from packkv.integrations.hf.calibration import (
    CalibrationConfig,
    measure_sensitivity,
    observe_profile,
)
from packkv_kernels.budget import solve
from packkv_kernels.config import BLOCK_TOKENS, HybridConfig
from packkv_kernels.profile import Profile

__all__ = ["budgeted_profiles", "even_profile", "scaled_profiles"]

# Sums of the heads' own KLs: the whole cache's KL is of that size, not equal to it.
_LEAST_KL, _LARGEST_KL = 0.0005, 0.06

_STEPS = (0.4, 2.5)

_CALIBRATED_TOKENS = 768
_SCORED_TOKENS = 128


@torch.inference_mode()
def even_profile(model: PreTrainedModel, texts: Sequence[torch.Tensor]) -> Profile:
    """Query weights and channel order from texts [1, tokens], one budget for all heads."""
    before = model.config._attn_implementation
    try:
        return observe_profile(model, texts)
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def budgeted_profiles(
    model: PreTrainedModel,
    texts: Sequence[torch.Tensor],
    profile: Profile,
    count: int,
    progress: Callable[[int, int], None],
) -> list[tuple[HybridConfig, Profile, str]]:
    """Profiles with budgets per head for `count` target KLs, from one measurement.

    Args:
        model: runs the texts with its present attention implementation.
        texts: the tuning texts, int64 [1, tokens]: no reported text may be among them.
        profile: of these texts, without budgets.
        count: how many.
        progress: called with (steps done, steps in all).
    """
    prefix = min(_CALIBRATED_TOKENS, (texts[0].shape[1] - _SCORED_TOKENS) // BLOCK_TOKENS * 64)
    config = CalibrationConfig(prefix_tokens=prefix, scored_tokens=_SCORED_TOKENS)
    used = [text[:, : config.text_tokens] for text in texts]
    sensitivity = measure_sensitivity(model, used, profile, config, progress=progress)
    return [
        (HybridConfig(), solve(profile, sensitivity, target), f"budget KL {target:.2g}")
        for target in np.geomspace(_LEAST_KL, _LARGEST_KL, count).tolist()
    ]


def scaled_profiles(
    profiles: Sequence[Profile], count: int
) -> list[tuple[HybridConfig, Profile, str]]:
    """At most `count` settings from given profiles: each with a range of steps around its own."""
    each = max(1, count // len(profiles))
    deltas = np.geomspace(*_STEPS, each).round(3).tolist() if each > 1 else [1.0]
    return [
        (HybridConfig(delta=delta), profile, f"profile {profile.digest.hex()[:8]}")
        for profile in profiles
        for delta in deltas
    ]

"""Calibration on a small random model: budgets that follow what each head really costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from packkv.identity import PROFILE_FILE
from packkv.integrations.hf import PackKV, PackKVConfig
from packkv.integrations.hf.calibration import (
    CalibrationConfig,
    calibrate,
    measure_sensitivity,
    observe_profile,
)
from packkv_kernels.errors import InvalidInput, ProfileError
from packkv_kernels.profile import Profile

CONFIG = CalibrationConfig(
    target_kl=2e-2, prefix_tokens=128, scored_tokens=32, steps=(0.25, 0.5, 1.0, 2.0, 4.0)
)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=300,
        initializer_range=0.1,
    )
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    # the output of the group of the first KV head of layer 1 is lost: its K and V cannot matter
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, :128] = 0
    return model


def texts(count: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 300, (1, 170), generator=generator) for _ in range(count)]


@torch.inference_mode()
def test_a_head_without_influence_measures_as_nothing(model: PreTrainedModel) -> None:
    profile = observe_profile(model, texts())
    model.set_attn_implementation("sdpa")
    sensitivity = measure_sensitivity(model, [text[:, :160] for text in texts()], profile, CONFIG)
    assert sensitivity.k_kl[1, 0] == pytest.approx(0, abs=1e-6)
    assert sensitivity.v_kl[1, 0] == pytest.approx(0, abs=1e-6)
    assert (np.delete(sensitivity.k_kl.ravel(), 2) > 1e-6).all()
    assert (np.diff(sensitivity.k_bits, axis=-1) <= 0).all(), "a larger step never costs more bits"


def test_the_budgets_reach_their_target_and_spare_what_does_not_matter(
    model: PreTrainedModel,
) -> None:
    seen = []
    profile = calibrate(
        model, texts(2), CONFIG, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert profile.k_scale[1, 0] == profile.k_scale.max()
    assert profile.v_levels[1, 0] == 2
    assert Profile.from_bytes(profile.to_bytes()).digest == profile.digest
    ids = texts(2)[0]
    with torch.inference_mode():
        model.set_attn_implementation("sdpa")
        exact = model(ids[:, :160]).logits[:, 128:].log_softmax(-1)
        settings = PackKVConfig(weights_digest="w")
        with PackKV(model, None, settings, profile=profile) as packkv:
            cache = packkv.new_cache(ids)
            model(ids[:, :128], past_key_values=cache)
            assert cache.rows[0].packed_tokens == 128
            found = model(ids[:, 128:160], past_key_values=cache).logits.log_softmax(-1)
    kl = float((exact.exp() * (exact - found)).sum(-1).mean())
    assert kl < 4 * CONFIG.target_kl


def test_the_attention_of_the_model_is_put_back(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")
    calibrate(model, texts(), CONFIG)
    assert model.config._attn_implementation == "eager"


def test_texts_that_are_too_short_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(InvalidInput, match=r"\[1, 159\] token ids; calibration needs \[1, 160\]"):
        calibrate(model, [texts()[0][:, :159]], CONFIG)
    with pytest.raises(InvalidInput, match="at least one text"):
        calibrate(model, [], CONFIG)
    with pytest.raises(InvalidInput, match="prefix_tokens 100"):
        CalibrationConfig(prefix_tokens=100)


def test_a_worker_finds_the_profile_in_the_folder_of_its_model(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    with PackKV(loaded) as packkv:
        assert packkv.profile is None
    profile = observe_profile(model, texts())
    (tmp_path / PROFILE_FILE).write_bytes(profile.to_bytes())
    with PackKV(loaded) as packkv:
        assert packkv.profile is not None
        assert packkv.profile.digest == profile.digest
        assert json.loads(packkv.namespace.canonical_json())["profile_digest"] == (
            profile.digest.hex()
        )
    (tmp_path / PROFILE_FILE).write_bytes(b"not a profile")
    with pytest.raises(ProfileError):
        PackKV(loaded)

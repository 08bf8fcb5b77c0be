"""Models with sliding attention: windows that end inside a page, on its edge, and beside others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from packkv.integrations.hf import JoinedCache, PackKV, PackKVConfig
from packkv.integrations.hf.attention import _padding_mask
from packkv_kernels.testing import assert_close

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 1024,
    # large enough for the past to matter to the logits
    "initializer_range": 0.08,
}
RAW = PackKVConfig(codec="raw", weights_digest="w")
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def build(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "mistral": lambda window: build(MistralConfig(**SIZES, sliding_window=window)),
    "gemma3": lambda window: build(
        Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=window, layer_types=MIXED)
    ),
    "qwen2": lambda window: build(
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=window, max_window_layers=1)
    ),
}


def left_padded(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 300, (2, count), generator=torch.manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :13], mask[1, :13] = 0, 0
    return ids, mask


@pytest.mark.parametrize("architecture", MODELS)
def test_raw_blocks_change_no_token_of_a_model_with_windows(architecture: str) -> None:
    ids, mask = left_padded(150)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask}
    unbounded = MODELS[architecture](512)
    unbounded.set_attn_implementation("sdpa")
    elsewhere = unbounded.generate(ids, **options).tolist()
    for window in (22, 64):
        model = MODELS[architecture](window)
        model.set_attn_implementation("sdpa")
        wanted = model.generate(ids, **options).tolist()
        assert wanted != elsewhere, "the window must matter, or this shows nothing"
        with PackKV(model, None, RAW) as packkv:
            cache = packkv.new_cache(ids, mask)
            found = model.generate(ids, past_key_values=cache, **options)
            assert cache.rows[0].packed_tokens == 128
        assert found.tolist() == wanted


def test_sequences_of_different_lengths_step_together_in_a_window() -> None:
    model = MODELS["mistral"](22)
    prompts = [left_padded(count)[0][:1] for count in (90, 70, 9)]
    with torch.inference_mode(), PackKV(model, None, RAW) as packkv:
        caches = [packkv.new_cache(prompt) for prompt in prompts]
        for prompt, cache in zip(prompts, caches, strict=True):
            model(prompt, past_key_values=cache)
        found = model(
            torch.tensor([[7], [8], [9]]),
            position_ids=torch.tensor([[cache.length] for cache in caches]),
            past_key_values=JoinedCache(caches),
        ).logits[:, -1]
        for token, prompt, logits in zip((7, 8, 9), prompts, found, strict=True):
            whole = torch.cat([prompt, torch.tensor([[token]])], 1)
            assert_close(logits, model(whole, use_cache=False).logits[0, -1], 1e-4, str(token))


def test_without_a_packed_cache_the_window_still_holds() -> None:
    model = MODELS["mistral"](9)
    ids, mask = left_padded(40)
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        wanted = model(ids, attention_mask=mask).logits
        with PackKV(model, None, RAW):
            found = model(ids, attention_mask=mask).logits
    assert torch.allclose(found[0], wanted[0], atol=1e-4)
    assert torch.allclose(found[1, 13:], wanted[1, 13:], atol=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        lambda b, h, q, k: (k <= q) & (k > q - 8) & (q // 10 == k // 10),
        lambda b, h, q, k: (k > q - 8) & (k < q + 8),
        lambda b, h, q, k: (k <= q) & (q // 8 == k // 8),
        lambda b, h, q, k: (k <= q) & (k > q - 9),
    ],
    ids=["packed sequences", "both ways", "chunks", "another window"],
)
def test_masks_that_only_resemble_a_window_are_refused(other: Callable[..., Any]) -> None:
    def window(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> Any:
        return (k <= q) & (k > q - 8)

    assert _padding_mask(1, 30, 30, mask_function=window, local_size=8) is not None
    with pytest.raises(ValueError, match="asks for another mask"):
        _padding_mask(1, 30, 30, mask_function=other, local_size=8)


def test_a_mask_and_an_attention_of_different_windows_are_refused() -> None:
    model = MODELS["mistral"](9)
    with PackKV(model, None, RAW):
        for layer in model.model.layers:
            layer.self_attn.config = MistralConfig(**SIZES, sliding_window=None)
            layer.self_attn.config._attn_implementation = "packkv"
        with pytest.raises(ValueError, match="a window of 9 tokens, but its attention"):
            model(left_padded(20)[0])

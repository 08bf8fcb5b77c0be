"""KVCompCache: stock models generate with it, and a fine scale changes no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from packkv.demo.answering import load
from packkv.demo.model import load_tokenizer
from packkv.integrations.hf.kvcomp import KVCompCache
from packkv_kernels.entropy import KVCompConfig

LAYERS = 2
VOCABULARY = 16
FINE = KVCompConfig(rel_k=1 / 255, rel_v=1 / 255, buffer_tokens=64)


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # few words: the best one wins by far more than the finest scale can move a logit
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "initializer_range": 0.08,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    **{f"llama-{dim}": LlamaConfig(**SIZES, head_dim=dim) for dim in (64, 80, 96, 128, 256)},
    "qwen2-biased": Qwen2Config(**SIZES),
    "qwen3-normed": Qwen3Config(**SIZES, head_dim=64),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build(LlamaConfig(**SIZES))


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    built: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    # random biases, as Qwen2 has large ones where initialisation has zeros
    for name, parameter in built.named_parameters():
        if name.endswith("k_proj.bias"):
            torch.nn.init.normal_(parameter, std=5.0)
    built.generation_config.pad_token_id = 0
    built.generation_config.eos_token_id = None
    return built


def tokens(count: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, count), generator=torch.Generator().manual_seed(1))


def generate(model: PreTrainedModel, ids: torch.Tensor, **more: Any) -> list[list[int]]:
    output: torch.Tensor = model.generate(ids, do_sample=False, **more)
    found: list[list[int]] = output.tolist()
    return found


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("units", ["channel", "block"])
def test_a_fine_scale_changes_no_token(model: PreTrainedModel, batch: int, units: str) -> None:
    ids = tokens(150, batch)
    cache = KVCompCache(LAYERS, KVCompConfig(1 / 255, 1 / 255, units, buffer_tokens=64))
    found = generate(model, ids, past_key_values=cache, max_new_tokens=70)
    assert found == generate(model, ids, max_new_tokens=70)
    # 219 tokens went in: 128 after the prefill, then a block whenever the buffer overflowed
    layer = cache.kvcomp_layers[0]
    assert cache.get_seq_length() == 219
    assert layer.keys.shape[2] == 219 - 192


def test_a_fine_scale_changes_no_beam(model: PreTrainedModel) -> None:
    ids = tokens(100)
    cache = KVCompCache(LAYERS, FINE)
    found = generate(model, ids, past_key_values=cache, max_new_tokens=40, num_beams=3)
    assert found == generate(model, ids, max_new_tokens=40, num_beams=3)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_scale_of_the_paper_stays_close_in_a_fraction_of_the_bytes(architecture: str) -> None:
    model = build(CONFIGS[architecture])
    ids = tokens(320)
    cache, exact = KVCompCache(LAYERS, KVCompConfig(0.1, 0.15)), DynamicCache()
    with torch.inference_mode():
        model(ids[:, :256], past_key_values=cache)
        model(ids[:, :256], past_key_values=exact)
        found = model(ids[:, 256:], past_key_values=cache).logits.log_softmax(-1)
        wanted = model(ids[:, 256:], past_key_values=exact).logits.log_softmax(-1)
        forgetful = model(ids[:, 256:]).logits.log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean()
    without_past = (wanted.exp() * (wanted - forgetful)).sum(-1).mean()
    assert divergence < 0.1 * without_past
    compressed = cache.nbytes
    assert 0 < compressed < sum(layer.keys.nbytes for layer in exact.layers)


def test_a_reset_cache_starts_again(model: PreTrainedModel) -> None:
    ids = tokens(100)
    cache = KVCompCache(LAYERS, FINE)
    first = generate(model, ids, past_key_values=cache, max_new_tokens=5)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.nbytes == 0
    assert generate(model, ids, past_key_values=cache, max_new_tokens=5) == first


def test_smollm2_generates_with_it(smollm2: Path) -> None:
    model, tokenizer = load(smollm2), load_tokenizer(smollm2)
    text = "The capital of France is Paris. The capital of Italy is Rome. " * 10
    prompt = tokenizer(text + "The capital of Spain is", return_tensors="pt").input_ids
    cache = KVCompCache(model.config.num_hidden_layers, KVCompConfig(buffer_tokens=64))
    found = generate(model, prompt, past_key_values=cache, max_new_tokens=8)
    assert tokenizer.decode(found[0][prompt.shape[1] :]).startswith(" Madrid. The capital of")
    assert cache.kvcomp_layers[0].keys.shape[2] < prompt.shape[1] - 64

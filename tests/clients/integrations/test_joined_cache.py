"""Sequences of different lengths take their steps together, and salts keep them apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from packkv.integrations.hf import JoinedCache, PackedKVCache, PackKV, PackKVConfig

NEW_TOKENS = 80


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=1024,
        initializer_range=0.08,
        eos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture
def packkv(model: PreTrainedModel) -> Iterator[PackKV]:
    settings = PackKVConfig(codec="raw", weights_digest="w1")
    with torch.inference_mode(), PackKV(model, None, settings) as connector:
        yield connector


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (count,), generator=generator).tolist()


def begin(model: PreTrainedModel, packkv: PackKV, prompt: list[int]) -> tuple[PackedKVCache, int]:
    ids = torch.tensor([prompt])
    cache = packkv.new_cache(ids)
    logits = model(ids[:, cache.length :], past_key_values=cache).logits
    return cache, int(logits[0, -1].argmax())


def exact_answer(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_joined_sequences_answer_as_each_alone(model: PreTrainedModel, packkv: PackKV) -> None:
    # they cross the borders of blocks at different steps
    prompts = [tokens(count, seed=count) for count in (200, 63, 5, 130)]
    begun = [begin(model, packkv, prompt) for prompt in prompts]
    caches = [cache for cache, _ in begun]
    answers = [[first] for _, first in begun]
    for _ in range(NEW_TOKENS - 1):
        logits = model(
            torch.tensor([[answer[-1]] for answer in answers]),
            position_ids=torch.tensor([[cache.length] for cache in caches]),
            past_key_values=JoinedCache(caches),
        ).logits
        for answer, row in zip(answers, logits, strict=True):
            answer.append(int(row[-1].argmax()))
    assert answers == [exact_answer(model, prompt) for prompt in prompts]
    for cache, prompt, answer in zip(caches, prompts, answers, strict=True):
        held = prompt + answer[:-1]
        assert cache.token_ids == [held]
        assert cache.length == len(held)
        assert cache.rows[0].packed_tokens == len(held) // 64 * 64


def test_what_was_joined_is_found_under_its_own_tokens(
    model: PreTrainedModel, packkv: PackKV
) -> None:
    cache, first = begin(model, packkv, prompt := tokens(120, seed=1))
    other, second = begin(model, packkv, tokens(10, seed=2))
    answer = [first]
    for _ in range(10):
        logits = model(
            torch.tensor([[answer[-1]], [second]]),
            position_ids=torch.tensor([[cache.length], [other.length]]),
            past_key_values=JoinedCache([cache, other]),
        ).logits
        answer.append(int(logits[0, -1].argmax()))
    packkv.publish(cache)
    again = packkv.new_cache(torch.tensor([[*prompt, *answer, 7]]))
    assert again.matched_tokens == [128]


def test_only_the_same_salt_finds_it_again(model: PreTrainedModel, packkv: PackKV) -> None:
    prompt = torch.tensor([tokens(200, seed=3)])
    cache = packkv.new_cache(prompt, cache_salt="ann")
    model(prompt, past_key_values=cache)
    packkv.publish(cache)
    salts = ("ann", "bob", "")
    found = [packkv.new_cache(prompt, cache_salt=salt).matched_tokens for salt in salts]
    assert found == [[192], [0], [0]]


def test_a_batch_of_several_rows_cannot_be_joined(packkv: PackKV) -> None:
    batch = packkv.new_cache(torch.tensor([tokens(70, 1), tokens(70, 2)]))
    with pytest.raises(ValueError, match="one row"):
        JoinedCache([batch])

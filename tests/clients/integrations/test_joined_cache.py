"""Sequences of different lengths take their steps together, and salts keep them apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedModel

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


def exact_answer(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    cache, answer, ids = DynamicCache(), list[int](), prompt
    for _ in range(count):
        logits = model(torch.tensor([ids]), past_key_values=cache).logits
        ids = [int(logits[0, -1].argmax())]
        answer += ids
    return answer


def test_joined_sequences_answer_as_each_alone(model: PreTrainedModel, packkv: PackKV) -> None:
    # they cross the borders of blocks at different steps
    prompts = [tokens(count, seed=count) for count in (200, 63, 5, 130)]
    begun = [begin(model, packkv, prompt) for prompt in prompts]
    answers = [[first] for _, first in begun]
    joined = JoinedCache([cache for cache, _ in begun])
    for step in range(NEW_TOKENS):
        # one after the other waits for half of the steps, in other places of the batch each time
        chosen = [row for row in range(4) if (step // 10 + row) % 4 > 1 or step % 20 < 10]
        caches = [begun[row][0] for row in chosen]
        joined.join(caches)
        logits = model(
            torch.tensor([[answers[row][-1]] for row in chosen]),
            position_ids=torch.tensor([[cache.length] for cache in caches]),
            past_key_values=joined,
        ).logits
        for row, own in zip(chosen, logits, strict=True):
            answers[row].append(int(own[-1].argmax()))
    for (cache, _), prompt, answer in zip(begun, prompts, answers, strict=True):
        assert NEW_TOKENS // 2 < len(answer) < NEW_TOKENS
        assert answer == exact_answer(model, prompt, len(answer))
        held = prompt + answer[:-1]
        assert cache.token_ids == [held]
        assert cache.length == len(held)
        assert cache.rows[0].packed_tokens == len(held) // 64 * 64


def test_a_step_writes_where_the_last_one_wrote(model: PreTrainedModel, packkv: PackKV) -> None:
    begun = [begin(model, packkv, tokens(count, seed=count)) for count in (130, 70)]
    caches = [cache for cache, _ in begun]
    joined = JoinedCache(caches)

    def step() -> tuple[list[int], list[int]]:
        joined.join(caches)
        model(
            torch.tensor([[first] for _, first in begun]),
            position_ids=torch.tensor([[cache.length] for cache in caches]),
            past_key_values=joined,
        )
        none = torch.empty(2, 0, 32)
        exact = [row.append(layer, none, none) for row in joined.rows for layer in range(3)]
        residuals = [part.data_ptr() for own in exact for part in (own.keys, own.values)]
        return residuals, [id(table) for table in joined._tables]

    residuals, tables = step()
    for count in range(2, 70):
        again, now = step()
        assert again == residuals
        # other pages come when they reach 128 and 192 tokens
        assert now[0] == tables[0] or count > 62
        assert now[1] == tables[1] or count > 58


def test_a_pass_that_failed_is_forgotten_by_the_next(
    model: PreTrainedModel, packkv: PackKV
) -> None:
    (cache, first), (lost, _) = (begin(model, packkv, tokens(9, seed)) for seed in (1, 2))
    joined = JoinedCache([lost])

    def fail(*_: object) -> None:
        raise KeyError("on purpose")

    hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        model(torch.tensor([[5]]), past_key_values=joined)
    hook.remove()
    # whatever it had begun: the model had handed a layer its K, and did not come to attend
    joined.layers[2].update(torch.zeros(1, 2, 1, 32), torch.zeros(1, 2, 1, 32))
    joined.join([cache])
    found = model(torch.tensor([[first]]), past_key_values=joined).logits[0, -1]
    assert int(found.argmax()) == exact_answer(model, tokens(9, 1), 2)[1]


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

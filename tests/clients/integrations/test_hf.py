"""The transformers connector on small random models of real architectures, with a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from packkv.client import Client
from packkv.errors import ConfigError
from packkv.integrations.hf import PackKV, PackKVConfig
from packkv.prefix_cache import PrefixCacheConfig
from packkv_kernels.format import read_payload

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
PAD = 0


def build(config: Any, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    # random biases, as Qwen2 has large ones where initialisation has zeros
    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias"):
            torch.nn.init.normal_(parameter, std=5.0)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    return build(LlamaConfig(**{**SIZES, **changes}), seed)


def tokens(count: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (batch, count), generator=generator)


@contextmanager
def connected(model: PreTrainedModel, store: str | None, **settings: Any) -> Iterator[PackKV]:
    patient = PrefixCacheConfig(deadline_s=60)
    defaults = {"codec": "raw", "weights_digest": "w1", "calibration_tokens": 128}
    settings = {**defaults, "prefix": patient, **settings}
    with PackKV(model, store, PackKVConfig(**settings)) as packkv:
        yield packkv


def exact_greedy(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None, new: int = 12
) -> torch.Tensor:
    model.set_attn_implementation("sdpa")
    output: torch.Tensor = model.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=False
    )
    return output


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama-mha-128": lambda: llama(num_key_value_heads=4, head_dim=128),
    "llama-gqa-80": lambda: llama(num_key_value_heads=1, head_dim=80),
    "mistral": lambda: build(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2-biased": lambda: build(Qwen2Config(**SIZES)),
    "qwen3-normed": lambda: build(Qwen3Config(**SIZES, head_dim=64)),
    "gemma": lambda: build(GemmaConfig(**SIZES, head_dim=96)),
    "gemma-256": lambda: build(GemmaConfig(**SIZES, head_dim=256)),
}


@pytest.mark.parametrize("architecture", MODELS)
def test_raw_blocks_change_no_token(architecture: str) -> None:
    model = MODELS[architecture]()
    ids = tokens(150)
    wanted = exact_greedy(model, ids)
    with connected(model, None) as packkv:
        cache = packkv.new_cache(ids)
        found = model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False)
        assert cache.rows[0].packed_tokens == 128
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("codec", ["hybrid:delta=0.1,v_levels=16", "packkv:rel_k=0.01,rel_v=0.01"])
@pytest.mark.parametrize("architecture", MODELS)
def test_lossy_blocks_stay_close_to_the_exact_logits(architecture: str, codec: str) -> None:
    model = MODELS[architecture]()
    ids = tokens(300)
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        wanted = model(ids).logits[:, 256:].log_softmax(-1)
        with connected(model, None, codec=codec) as packkv:
            cache = packkv.new_cache(ids[:, :256])
            model(ids[:, :256], past_key_values=cache)
            assert cache.rows[0].packed_tokens == 256
            found = model(ids[:, 256:], past_key_values=cache).logits.log_softmax(-1)
        forgetful = model(ids[:, 256:]).logits.log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean()
    without_past = (wanted.exp() * (wanted - forgetful)).sum(-1).mean()
    assert divergence < 0.03 * without_past


def test_a_left_padded_batch_answers_as_each_row_alone() -> None:
    model = llama()
    rows = [tokens(count, seed=count)[0] for count in (150, 131, 64, 3)]
    ids = torch.stack(
        [torch.nn.functional.pad(row, (150 - len(row), 0), value=PAD) for row in rows]
    )
    mask = torch.stack([torch.arange(150) >= 150 - len(row) for row in rows]).long()
    alone = [exact_greedy(model, row[None])[0, -12:].tolist() for row in rows]
    with connected(model, None) as packkv:
        cache = packkv.new_cache(ids, mask)
        found = model.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=12, do_sample=False
        )
        # a row's blocks begin at its own first token
        assert [row.packed_tokens for row in cache.rows] == [128, 128, 64, 0]
    assert found[:, -12:].tolist() == alone


def test_several_turns_continue_one_cache() -> None:
    model = llama()
    first, second = tokens(100), tokens(70, seed=9)
    with connected(model, None) as packkv:
        cache = packkv.new_cache(first)
        turn = model.generate(first, past_key_values=cache, max_new_tokens=20, do_sample=False)
        prompt = torch.cat([turn, second], 1)
        found = model.generate(prompt, past_key_values=cache, max_new_tokens=20, do_sample=False)
    assert found.tolist() == exact_greedy(model, prompt, new=20).tolist()


def test_sampling_draws_the_same_tokens() -> None:
    model = llama()
    ids = tokens(140)
    model.set_attn_implementation("sdpa")
    torch.manual_seed(5)
    wanted = model.generate(ids, max_new_tokens=15, do_sample=True, temperature=0.9)
    with connected(model, None) as packkv:
        torch.manual_seed(5)
        found = packkv.generate(model, ids, max_new_tokens=15, do_sample=True, temperature=0.9)
    assert found.tolist() == wanted.tolist()


def test_beam_search_reorders_shared_pages() -> None:
    model = llama()
    ids = tokens(130)
    model.set_attn_implementation("sdpa")
    wanted = model.generate(ids, max_new_tokens=10, num_beams=3, do_sample=False)
    with connected(model, None) as packkv:
        found = packkv.generate(model, ids, max_new_tokens=10, num_beams=3, do_sample=False)
    assert found.tolist() == wanted.tolist()


def test_the_second_worker_finds_what_the_first_published(store: Any) -> None:
    ids = tokens(300)
    model = llama()
    wanted = exact_greedy(model, ids).tolist()
    with connected(model, store.target) as writer:
        assert writer.generate(model, ids, max_new_tokens=12, do_sample=False).tolist() == wanted
        assert writer.flush(60)
        assert writer.counters.published_blocks == 4
        names = writer.block_names(ids[0].tolist())
    with Client(store.target) as client:
        headers = [read_payload(one.data).header for one in client.get(names) if one.data]
    # each says what a block took to compute, so that the store keeps longest what is dear
    assert len(headers) == 4
    assert {header.compute_ms > 0 for header in headers} == {True}
    with connected(llama(), store.target) as reader:
        cache = reader.new_cache(ids)
        assert cache.matched_tokens == [256]
        model = llama()
        with connected(model, store.target) as reader:
            found = reader.generate(model, ids, max_new_tokens=12, do_sample=False)
            assert reader.counters.hit_tokens == 256
    assert found.tolist() == wanted


def test_a_batch_takes_what_its_least_matched_row_allows(store: Any) -> None:
    model = llama()
    long, short = tokens(300, seed=1), tokens(200, seed=2)
    ids = torch.cat([long, torch.nn.functional.pad(short, (100, 0), value=PAD)])
    mask = torch.cat([torch.ones(1, 300), torch.arange(300)[None] >= 100]).long()
    wanted = exact_greedy(model, ids, mask)
    with connected(model, store.target) as writer:
        writer.generate(model, long, max_new_tokens=2, do_sample=False)
        writer.generate(model, short[:, :150], max_new_tokens=2, do_sample=False)
        assert writer.flush(60)
    reading = llama()
    with connected(reading, store.target) as reader:
        cache = reader.new_cache(ids, mask)
        # long: 256 matched; short: 128 after 100 of padding; so both stand at column 228
        assert cache.matched_tokens == [228, 128]
        found = reading.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=12, do_sample=False
        )
        reader.publish(cache)
        assert reader.flush(60)
        # the block cut at column 228 was restored from packed bytes: it is not published again
        assert reader.counters.dropped_blocks == {}
    assert found.tolist() == wanted.tolist()


def test_a_worker_reuses_its_own_pages_without_a_store() -> None:
    model = llama()
    ids = tokens(200)
    with connected(model, None) as packkv:
        cache = packkv.new_cache(ids)
        model.generate(ids, past_key_values=cache, max_new_tokens=2, do_sample=False)
        packkv.publish(cache)
        cache.release()
        assert packkv.new_cache(ids).matched_tokens == [192]


def test_only_what_a_worker_does_not_hold_is_fetched(store: Any) -> None:
    ids = tokens(300)
    model = llama()
    with connected(model, store.target) as writer:
        writer.generate(model, ids, max_new_tokens=2, do_sample=False)
        assert writer.flush(60)
        assert writer.counters.published_blocks == 4
    model = llama()
    with connected(model, store.target) as reader:
        reader.new_cache(ids[:, :140]).release()
        assert reader.counters.hit_blocks == 2
        assert reader.new_cache(ids).matched_tokens == [256]
        assert reader.counters.hit_blocks == 4
        assert reader.counters.misses == {}


def test_the_first_long_prefill_calibrates_and_later_workers_adopt_it(store: Any) -> None:
    model = llama()
    # nobody else publishes a profile of a model of this name
    with connected(model, store.target, codec="hybrid", model_name="new") as first:
        assert first.profile is None
        first.generate(model, tokens(60), max_new_tokens=2, do_sample=False)
        assert first.profile is None, "too short to calibrate on"
        first.generate(model, tokens(200, seed=3), max_new_tokens=2, do_sample=False)
        assert first.profile is not None
        assert first.flush(60)
        profile = first.profile
    with connected(llama(), store.target, codec="hybrid", model_name="new") as second:
        assert second.profile is not None
        assert second.profile.digest == profile.digest
        assert second.new_cache(tokens(200, seed=3)).matched_tokens == [192]


def test_a_worker_that_was_there_first_adopts_a_later_profile(store: Any) -> None:
    ids = tokens(200, seed=3)
    early_model, model = llama(), llama()
    with connected(early_model, store.target, codec="hybrid", model_name="late") as early:
        assert early.new_cache(ids).matched_tokens == [0]
        with connected(model, store.target, codec="hybrid", model_name="late") as other:
            other.generate(model, ids, max_new_tokens=2, do_sample=False)
            assert other.flush(60)
        assert early.new_cache(ids).matched_tokens == [192]


def test_another_identity_never_matches(store: Any) -> None:
    ids = tokens(200)
    model = llama()
    with connected(model, store.target) as writer:
        writer.generate(model, ids, max_new_tokens=2, do_sample=False)
        assert writer.flush(60)
    with connected(llama(), store.target) as same:
        assert same.new_cache(ids).matched_tokens == [192]
    strangers: list[tuple[PreTrainedModel, dict[str, Any]]] = [
        (llama(), {"weights_digest": "w2"}),
        (llama(), {"adapter_digest": "lora"}),
        (llama(), {"tenant_salt": "other"}),
        (llama(), {"model_name": "other"}),
        (llama(), {"codec": "packkv"}),
        (llama(rope_parameters={"rope_type": "default", "rope_theta": 9.0}), {}),
        (llama().to(torch.bfloat16), {}),
    ]
    for stranger, settings in strangers:
        with connected(stranger, store.target, **settings) as other:
            assert other.new_cache(ids).matched_tokens == [0], settings


@pytest.mark.parametrize("trouble", ["kill", "pause"])
def test_a_store_that_dies_or_hangs_costs_its_deadline_and_no_token(
    own_store: Any, trouble: str
) -> None:
    ids = tokens(200)
    model = llama()
    wanted = exact_greedy(model, ids).tolist()
    settings = PrefixCacheConfig(deadline_s=1.0)
    with connected(model, own_store.target, prefix=settings) as packkv:
        packkv.generate(model, ids, max_new_tokens=12, do_sample=False)
        assert packkv.flush(60)
    with connected(model, own_store.target, prefix=settings) as packkv:
        getattr(own_store, trouble)()
        # a store that hangs would never end it
        cache = packkv.new_cache(ids)
        assert cache.matched_tokens == [0]
        found = model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert found.tolist() == wanted


def test_embeddings_instead_of_token_ids_are_computed_but_never_published(store: Any) -> None:
    model = llama()
    with connected(model, store.target) as packkv, torch.inference_mode():
        cache = packkv.new_cache(tokens(1))
        model(inputs_embeds=model.get_input_embeddings()(tokens(130)), past_key_values=cache)
        assert cache.rows[0].packed_tokens == 128
        assert packkv.publish(cache) == 0


def test_the_wrong_attention_is_an_error_and_not_a_wrong_token() -> None:
    model = llama()
    ids = tokens(80)
    with connected(model, None) as packkv, torch.inference_mode():
        cache = packkv.new_cache(ids)
        model.set_attn_implementation("sdpa")
        with pytest.raises(RuntimeError, match="another attention than 'packkv'"):
            model(ids, past_key_values=cache)


def test_unsupported_masks_are_refused_with_what_to_do() -> None:
    model = llama()
    ids = tokens(20)
    with connected(model, None) as packkv, torch.inference_mode():
        right = torch.ones_like(ids)
        right[:, -3:] = 0
        with pytest.raises(ValueError, match="pad on the left"):
            model(ids, attention_mask=right, past_key_values=packkv.new_cache(ids))
        with pytest.raises(ValueError, match="pass the tokenizer's attention_mask"):
            model(
                ids,
                attention_mask=torch.ones(1, 1, 20, 20, dtype=torch.bool),
                past_key_values=packkv.new_cache(ids),
            )
        cache = packkv.new_cache(ids)
        left = torch.ones_like(ids)
        left[:, :3] = 0
        model(ids, attention_mask=left, past_key_values=cache)
        with pytest.raises(ValueError, match="left-padded"):
            model(tokens(1), past_key_values=cache)


def test_models_that_cannot_be_packed_are_refused() -> None:
    chunked = llama()
    chunked.config.layer_types = ["chunked_attention"] * 3
    with pytest.raises(ConfigError, match=r"this model has \['chunked_attention'\]"):
        PackKV(chunked, None, PackKVConfig(codec="raw", weights_digest="w"))
    with pytest.raises(ConfigError, match="weights_digest"):
        PackKV(llama(), None, PackKVConfig(codec="raw"))


def test_a_model_without_a_packed_cache_still_runs() -> None:
    model = llama()
    ids, mask = tokens(40, batch=2), torch.ones(2, 40, dtype=torch.long)
    mask[0, :7] = 0
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        wanted = model(ids, attention_mask=mask).logits
        with connected(model, None):
            for options in ({}, {"past_key_values": DynamicCache()}):
                found = model(ids, attention_mask=mask, **options).logits
                assert torch.allclose(found[1], wanted[1], atol=1e-4)
                assert torch.allclose(found[0, 7:], wanted[0, 7:], atol=1e-4)


def test_gpt2_with_learned_positions_works_too() -> None:
    model = build(GPT2Config(n_embd=128, n_layer=2, n_head=2, vocab_size=300, n_positions=512))
    ids = tokens(150)
    wanted = exact_greedy(model, ids)
    with connected(model, None) as packkv:
        found = packkv.generate(model, ids, max_new_tokens=12, do_sample=False)
    assert found.tolist() == wanted.tolist()

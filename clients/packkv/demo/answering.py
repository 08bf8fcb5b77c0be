"""A model with PackKV plugged in that answers prompts greedily and times itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer

from packkv.integrations.hf import PackKV, PackKVConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """The token ids of an answer, and the time until the first of them."""

    tokens: list[int]
    ttft_s: float


class FirstToken(BaseStreamer):  # type: ignore[misc]
    """Notes when `generate` hands out its first new token."""

    def __init__(self) -> None:
        self._calls = 0
        self.seen_at = 0.0

    def put(self, value: torch.Tensor) -> None:
        self._calls += 1
        # the first call only repeats the prompt
        if self._calls == 2:
            self.seen_at = time.perf_counter()

    def end(self) -> None:
        """Nothing to do: `generate` calls it."""


def load(folder: Path) -> PreTrainedModel:
    """The model of a transformers folder, in float32."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = model.config.eos_token_id
    return model


def greedy(
    model: PreTrainedModel, prompt: Sequence[int], new_tokens: int, cache: Cache, arrived: float
) -> Answer:
    """Continue `prompt` over `cache`; `arrived` is the `perf_counter` of the request."""
    first = FirstToken()
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        sequence = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=new_tokens,
            do_sample=False,
            streamer=first,
        )
    return Answer(sequence[0, len(prompt) :].tolist(), first.seen_at - arrived)


def warm_up(model: PreTrainedModel, codec: str) -> None:
    """Compile and touch every path once: a cold prefill, and one over packed blocks.

    Random ids, no store, and a connector that is thrown away: nothing of this can match later.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, 200), generator=generator)
    config = PackKVConfig(codec=codec, weights_digest="warm-up", calibration_tokens=128)
    with PackKV(model, None, config) as connector:
        for length in (150, 200):
            cache = connector.new_cache(ids[:, :length])
            greedy(model, ids[0, :length].tolist(), 3, cache, time.perf_counter())
            connector.publish(cache)


@contextmanager
def stock_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within this, the model runs transformers' own attention: no PackKV at all."""
    packed = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(packed)

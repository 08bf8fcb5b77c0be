"""How far attention over packed blocks is from the exact run of the same model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from packkv.demo.answering import greedy, stock_attention
from packkv.demo.messages import Compared
from packkv.integrations.hf import PackKV


@torch.inference_mode()
def compare(
    model: PreTrainedModel, connector: PackKV, prompt: Sequence[int], new_tokens: int
) -> Compared:
    """Teacher-force the exact run's own answer over packed blocks and over the exact cache."""
    packed_cache = connector.new_cache(torch.tensor([list(prompt)]))
    start = sum(packed_cache.matched_tokens)
    with stock_attention(model):
        cache = DynamicCache(config=model.config)
        exact = greedy(model, prompt, new_tokens, cache, time.perf_counter())
        sequence = [*prompt, *exact.tokens[:-1]]
        # transformers crops by a count of tokens to remove, given as a negative number
        cache.crop(start - cache.get_seq_length())
        wanted = _logits(model, cache, [sequence[start:]])
    # the question at once, as a prefill does, then token by token, as decoding does
    steps = [sequence[start : len(prompt)], *([token] for token in sequence[len(prompt) :])]
    found = _logits(model, packed_cache, steps)
    packed_cache.release()
    return Compared(
        tokens=exact.tokens,
        ttft_s=exact.ttft_s,
        kl_mean=_divergence(wanted, found).mean().item(),
        top1_agreement=(wanted.argmax(-1) == found.argmax(-1)).double().mean().item(),
        scored_tokens=len(wanted),
    )


def _divergence(exact: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(exact ‖ found) of each row of logits, in nats."""
    return F.kl_div(
        found.log_softmax(-1), exact.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)


def _logits(model: PreTrainedModel, cache: Cache, steps: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits [tokens, vocabulary] of the tokens of all steps, which the cache then holds."""
    parts = [
        model(torch.tensor([list(step)]), past_key_values=cache, use_cache=True).logits[0].double()
        for step in steps
    ]
    return torch.cat(parts)

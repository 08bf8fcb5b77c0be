"""ExactRun: a text run without any codec, and how far a decoded cache is from that."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from packkv.bench.codec.setting import Setting

__all__ = ["ExactRun", "Measured", "Score"]


@dataclass(frozen=True)
class Score:
    """What a decoded cache does to the model's predictions, token by token.

    Attributes:
        kl: float64 [scored tokens], KL(exact ‖ found) in nats.
        top1: share of tokens whose most likely successor is the same.
        dnll: mean negative log-likelihood of the text, less that of the exact run, in nats.
    """

    kl: NDArray[np.float64]
    top1: float
    dnll: float


@dataclass(frozen=True)
class Measured:
    """One setting on one text.

    Attributes:
        bits: stored bits per value of K and V, everything included.
        score: its damage.
        values: how many values K and V have.
        encode_s, decode_s: seconds.
        greedy_equal_tokens: how many tokens a greedy continuation has in common with that over
            the exact cache before the first that differs.
    """

    bits: float
    score: Score
    values: int
    encode_s: float
    decode_s: float
    greedy_equal_tokens: int


class ExactRun:
    """A prefix's exact K and V, and the exact predictions of the tokens that follow it.

    Attributes:
        keys, values: float32 [layers, prefix tokens, heads, head_dim], post-RoPE.
    """

    @torch.inference_mode()
    def __init__(
        self, model: PreTrainedModel, ids: torch.Tensor, prefix_tokens: int, greedy_tokens: int = 0
    ) -> None:
        """
        Args:
            model: with an attention implementation that takes any cache.
            ids: int64 [1, prefix_tokens + scored tokens + 1].
            prefix_tokens: tokens whose K and V codecs get.
            greedy_tokens: tokens of the greedy continuation that codecs are compared on.
        """
        self._model = model
        self._scored = ids[:, prefix_tokens:-1]
        self._successors = ids[0, prefix_tokens + 1 :]
        cache = DynamicCache()
        model(ids[:, :prefix_tokens], past_key_values=cache, logits_to_keep=1)
        self.keys = torch.stack([layer.keys[0].transpose(0, 1) for layer in cache.layers])
        self.values = torch.stack([layer.values[0].transpose(0, 1) for layer in cache.layers])
        self._exact = self._log_probabilities(self.keys, self.values, self._scored)
        self._continuation = self._continued(
            ids[:, prefix_tokens : prefix_tokens + 1], greedy_tokens
        )

    @torch.inference_mode()
    def score(self, keys: torch.Tensor, values: torch.Tensor) -> Score:
        """Runs the scored tokens teacher-forced over a decoded K and V of the prefix."""
        found = self._log_probabilities(keys, values, self._scored)
        kl = (self._exact.exp() * (self._exact - found)).sum(-1, dtype=torch.float64)
        same = self._exact.argmax(-1) == found.argmax(-1)
        rows = torch.arange(len(self._successors))
        gain = (self._exact - found)[rows, self._successors]
        return Score(kl.numpy(), float(same.double().mean()), float(gain.double().mean()))

    @torch.inference_mode()
    def greedy_equal_tokens(self, keys: torch.Tensor, values: torch.Tensor) -> int:
        """How far greedy generation over a decoded K and V follows that over the exact ones.

        Up to the first token that differs both have seen the same tokens, so one pass over the
        exact continuation finds it. An end-of-text token ends neither.
        """
        count = self._continuation.shape[1] - 1
        if count == 0:
            return 0
        found = self._log_probabilities(keys, values, self._continuation[:, :-1]).argmax(-1)
        differs = (found != self._continuation[0, 1:]).nonzero()
        return int(differs[0]) if len(differs) else count

    def measure(self, setting: Setting) -> Measured:
        """Sends K and V through a setting, and scores what comes back."""
        started = time.perf_counter()
        encoded = setting.encode(self.keys, self.values)
        encoded_at = time.perf_counter()
        keys, values = encoded.decode()
        decoded_at = time.perf_counter()
        count = 2 * self.keys.numel()
        return Measured(
            bits=8 * encoded.nbytes / count,
            score=self.score(keys, values),
            values=count,
            encode_s=encoded_at - started,
            decode_s=decoded_at - encoded_at,
            greedy_equal_tokens=self.greedy_equal_tokens(keys, values),
        )

    def warm_up(self, setting: Setting) -> None:
        """Compiles what a setting compiles, so that no measurement has it."""
        setting.encode(self.keys[:, :64], self.values[:, :64]).decode()

    def _log_probabilities(
        self, keys: torch.Tensor, values: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Of the successors of ids [1, count] behind the prefix; float32 [count, vocabulary]."""
        logits: torch.Tensor = self._model(ids, past_key_values=_cache(keys, values)).logits
        return logits[0].float().log_softmax(-1)

    def _continued(self, first: torch.Tensor, count: int) -> torch.Tensor:
        """The token behind the prefix [1, 1] and the exact greedy continuation [1, 1 + count]."""
        cache = _cache(self.keys, self.values)
        tokens = [first]
        for _ in range(count):
            logits = self._model(tokens[-1], past_key_values=cache).logits
            tokens.append(logits[:, -1].argmax(-1, keepdim=True))
        return torch.cat(tokens, 1)


def _cache(keys: torch.Tensor, values: torch.Tensor) -> DynamicCache:
    """What a model continues from K and V [layers, tokens, heads, head_dim] with."""
    cache = DynamicCache()
    for layer, pair in enumerate(zip(keys, values, strict=True)):
        # the same layout for every caller: another one may sum in another order
        k, v = (part.transpose(0, 1)[None].contiguous() for part in pair)
        cache.update(k, v, layer)
    return cache

"""What a worker process says: one JSON object a line, one of these each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and warm.

    Attributes:
        attention_backend: what computes attention over packed blocks.
        fp16_bytes_per_token: K and V of one token over all layers and heads, as fp16.
        positions: the longest sequence that the model knows.
    """

    attention_backend: str
    fp16_bytes_per_token: int
    positions: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt was answered greedily.

    Attributes:
        tokens: the answer.
        matched_tokens: leading tokens of the prompt that were not computed but fetched.
        ttft_s: from the request's arrival in the worker to the first token of the answer.
        fetched_bytes: payload bytes that came from the store.
        published_blocks, published_bytes: what the store took.
        misses: loads that did not find everything, by reason, as in `prefix_cache.Counters`.
        dropped_blocks: blocks that were not published, by reason.
    """

    tokens: list[int]
    matched_tokens: int
    ttft_s: float
    fetched_bytes: int
    published_blocks: int
    published_bytes: int
    misses: Mapping[str, int]
    dropped_blocks: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Compared:
    """The same prompt ran on the stock model, and both runs' logits were compared.

    Attributes:
        tokens: the exact run's greedy answer.
        ttft_s: the exact run's time to its first token.
        kl_mean: mean over positions of KL(exact ‖ packed), in nats.
        top1_agreement: share of positions whose most likely token is the same.
        scored_tokens: positions compared: the prompt after the prefix, then the exact answer.
    """

    tokens: list[int]
    ttft_s: float
    kl_mean: float
    top1_agreement: float
    scored_tokens: int

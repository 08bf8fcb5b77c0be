"""Computes the prefixes once, as a worker does that finds nothing, and stores the longest."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from transformers import PreTrainedModel

from packkv.bench.ttft.plan import Plan
from packkv.demo.answering import warm_up
from packkv.errors import PackKVError
from packkv.identity import Namespace
from packkv.integrations.hf import PackKV, PackKVConfig
from packkv.integrations.hf.model import kv_dtype_of, shape_of
from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.format.payload import KVDtype
from packkv_kernels.profile import Profile

__all__ = ["SPARE_BYTES", "Incomplete", "Progress", "Published", "publish", "values_bytes"]

SPARE_BYTES: Final = 256 << 20
_FLUSH_S: Final = 120.0


class Incomplete(PackKVError):
    """A prefix that was published could not be loaded: there is nothing to compare."""


class Progress(Protocol):
    """Is told what happens."""

    def begin(self, what: str, steps: int) -> None:
        """A part that takes some steps."""

    def step(self) -> None:
        """One of them is done."""


@dataclass(frozen=True)
class Published:
    """A prompt whose blocks are in the store, and all that is needed to load them."""

    token_ids: list[int]
    namespace: Namespace
    codec: CodecConfig
    shape: CacheShape
    kv_dtype: KVDtype
    profile: Profile | None
    prefill_s: dict[int, float]
    room_bytes: int
    weights_digest: str | None

    @property
    def longest(self) -> int:
        """Tokens of the longest prefix."""
        return max(self.prefill_s)


def publish(
    model: PreTrainedModel,
    tokens: list[int],
    plan: Plan,
    codec: str,
    weights_digest: str | None,
    store: str,
    progress: Progress,
) -> Published:
    """Computes every prefix once, as a worker does that finds nothing, and publishes the longest,
    which begins with all others."""
    warm_up(model, codec)
    progress.step()
    settings = PackKVConfig(
        codec=codec,
        weights_digest=weights_digest,
        calibration_tokens=min(512, plan.prefix_tokens[0]),
        cache_bytes=2 * values_bytes(model, plan.longest) + SPARE_BYTES,
    )
    prefill_s = {}
    with PackKV(model, store, settings) as connector:
        for length in plan.prefix_tokens:
            ids = torch.tensor([tokens[:length]])
            cache = connector.new_cache(ids)
            began = time.perf_counter()
            with torch.inference_mode():
                model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            prefill_s[length] = time.perf_counter() - began
            if length == plan.longest:
                connector.publish(cache)
            cache.release()
            progress.step()
        if not connector.flush(_FLUSH_S):
            raise Incomplete(f"the store has not taken the blocks within {_FLUSH_S:g} s")
        return Published(
            token_ids=tokens,
            namespace=connector.namespace,
            codec=connector.codec,
            shape=connector.shape,
            kv_dtype=kv_dtype_of(model),
            profile=connector.profile,
            prefill_s=prefill_s,
            room_bytes=settings.cache_bytes,
            weights_digest=weights_digest,
        )


def values_bytes(model: PreTrainedModel, tokens: int) -> int:
    """K and V of so many tokens in float32: no codec stores more."""
    shape = shape_of(model)
    return 2 * 4 * shape.layers * shape.heads * shape.head_dim * tokens

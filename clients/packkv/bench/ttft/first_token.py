"""From a prompt to its first token: the prefix comes whole, or layer by layer."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Final

import torch
from transformers import PreTrainedModel

from packkv.bench.ttft.publishing import Incomplete, Published
from packkv.client import Client
from packkv.integrations.hf import PackKV, PackKVConfig
from packkv.prefix_cache import PrefixCacheConfig

__all__ = ["FirstToken", "first_token"]

# A median of answers that take longer than this together would not be better for more of them.
_ENOUGH_S: Final = 20.0


@dataclass(frozen=True)
class FirstToken:
    """A prompt over a link: a prefix that is stored, and a question that is not.

    Attributes:
        prefix_tokens: that are fetched.
        question_tokens: that are computed.
        gbps: bandwidth of the link in 10⁹ bits a second; None: no link in between.
        whole_s: from the prompt to its first token when the model begins after the prefix has come.
        layerwise_s: the same when each layer waits for its own part; medians, one mode after the
            other in turn.
        question_s: to compute the question alone, over a prefix that is here.
    """

    prefix_tokens: int
    question_tokens: int
    gbps: float | None
    whole_s: float
    layerwise_s: float
    question_s: float


def first_token(
    model: PreTrainedModel,
    published: Published,
    client: Client,
    gbps: float | None,
    question_tokens: int,
    answers: int,
) -> FirstToken:
    """Measures the longest prefix over one link.

    Args:
        model: that published.
        published: what is stored; it has as many more tokens as the question is to have.
        client: of the store behind the link.
        gbps: of the link, for the row.
        question_tokens: at least 1.
        answers: timed answers of each mode, at most.

    Raises:
        Incomplete: the prefix did not come, or not the same answer by both ways.
    """
    settings = PackKVConfig(
        codec=str(published.codec),
        weights_digest=published.weights_digest,
        cache_bytes=published.room_bytes,
        prefix=PrefixCacheConfig(deadline_s=3600.0),
    )
    with PackKV(model, client, settings, profile=published.profile) as connector:
        asked = _Asked(model, connector, published, question_tokens)
        # opens the connection, and learns how fast it is: before that nothing comes in layers
        asked.answer(layerwise=False)
        _, question_s = asked.answer(layerwise=False, forget=False)
        taken: dict[bool, list[float]] = {False: [], True: []}
        tokens: set[int] = set()
        while len(taken[True]) < answers and sum(map(sum, taken.values())) < _ENOUGH_S:
            for layerwise in taken:
                token, seconds = asked.answer(layerwise=layerwise)
                taken[layerwise].append(seconds)
                tokens.add(token)
        if len(tokens) != 1:
            raise Incomplete(f"whole and layer by layer answer differently: {sorted(tokens)}")
    return FirstToken(
        published.longest,
        question_tokens,
        gbps,
        statistics.median(taken[False]),
        statistics.median(taken[True]),
        question_s,
    )


class _Asked:
    """One prompt, asked again and again by a worker that has forgotten it."""

    def __init__(
        self, model: PreTrainedModel, connector: PackKV, published: Published, question_tokens: int
    ) -> None:
        self._model = model
        self._connector = connector
        self._prefix_tokens = published.longest
        self._ids = torch.tensor([published.token_ids[: published.longest + question_tokens]])

    @torch.inference_mode()
    def answer(self, *, layerwise: bool, forget: bool = True) -> tuple[int, float]:
        """The first token, and the seconds to it."""
        if forget:
            self._connector.forget_pages()
        began = time.perf_counter()
        cache = self._connector.new_cache(self._ids, layerwise=layerwise)
        matched = sum(cache.matched_tokens)
        if matched != self._prefix_tokens:
            raise Incomplete(f"{matched} of {self._prefix_tokens} tokens came")
        output = self._model(self._ids[:, matched:], past_key_values=cache, logits_to_keep=1)
        token = int(output.logits[0, -1].argmax())
        seconds = time.perf_counter() - began
        cache.release()
        return token, seconds

"""One inference worker as a process: requests in on stdin, replies out on stdout, JSON lines.

    {"request": "answer", "prompt": [ids], "new_tokens": n, "publish": bool}   → messages.Answered
    {"request": "compare", "prompt": [ids], "new_tokens": n}                   → messages.Compared

It says `messages.Ready` once the model is loaded and warm, and leaves when its input ends. A
request that fails is answered with {"error": sentence}, and the worker goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO

import torch
from transformers import PreTrainedModel

from packkv.demo.answering import greedy, load, warm_up
from packkv.demo.fidelity import compare
from packkv.demo.messages import Answered, Compared, Ready
from packkv.identity import weights_digest
from packkv.integrations.hf import PackKV, PackKVConfig
from packkv.prefix_cache import PrefixCacheConfig
from packkv_kernels.backend import default_backend

_PUBLISH_S = 60.0

Methods = Mapping[str, Callable[..., Answered | Compared]]


class Worker:
    """A model, its connector, and a method per request."""

    def __init__(self, model: PreTrainedModel, connector: PackKV) -> None:
        self._model = model
        self._connector = connector

    def ready(self) -> Ready:
        shape = self._connector.shape
        return Ready(
            attention_backend=default_backend(self._model.device),
            fp16_bytes_per_token=4 * shape.layers * shape.heads * shape.head_dim,
            positions=self._model.config.max_position_embeddings,
        )

    def answer(
        self, arrived: float, prompt: list[int], new_tokens: int, publish: bool = False
    ) -> Answered:
        """Answer greedily; with `publish`, the store has the blocks before this returns."""
        before = self._connector.counters
        cache = self._connector.new_cache(torch.tensor([prompt]))
        # of the one row; an uncalibrated connector answers with none
        matched = sum(cache.matched_tokens)
        answer = greedy(self._model, prompt, new_tokens, cache, arrived)
        if publish:
            self._connector.publish(cache)
            if not self._connector.flush(_PUBLISH_S):
                raise TimeoutError(f"the store did not take the blocks within {_PUBLISH_S:.0f} s")
        cache.release()
        after = self._connector.counters
        return Answered(
            tokens=answer.tokens,
            matched_tokens=matched,
            ttft_s=answer.ttft_s,
            fetched_bytes=after.fetched_bytes - before.fetched_bytes,
            published_blocks=after.published_blocks - before.published_blocks,
            published_bytes=after.published_bytes - before.published_bytes,
            misses=_growth(before.misses, after.misses),
            dropped_blocks=_growth(before.dropped_blocks, after.dropped_blocks),
        )

    def compare(self, arrived: float, prompt: list[int], new_tokens: int) -> Compared:
        """Run the same prompt without PackKV and compare."""
        return compare(self._model, self._connector, prompt, new_tokens)


def main() -> None:
    """Serve requests until the input ends."""
    replies = _replies()
    flags = _flags()
    model = load(flags.model)
    warm_up(model, flags.codec)
    config = PackKVConfig(
        codec=flags.codec,
        weights_digest=weights_digest(flags.model),
        tenant_salt=flags.tenant_salt,
        prefix=PrefixCacheConfig(deadline_s=flags.deadline_s),
    )
    with PackKV(model, flags.store, config) as connector:
        worker = Worker(model, connector)
        methods: Methods = {"answer": worker.answer, "compare": worker.compare}
        _say(replies, asdict(worker.ready()))
        for line in sys.stdin:
            _say(replies, _reply(methods, line, time.perf_counter()))


def _reply(methods: Methods, line: str, arrived: float) -> dict[str, object]:
    try:
        values = json.loads(line)
        return asdict(methods[values.pop("request")](arrived, **values))
    # the edge of the process: the asker gets the sentence, the log gets the rest
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _growth(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    grown = {reason: count - before.get(reason, 0) for reason, count in after.items()}
    return {reason: count for reason, count in grown.items() if count}


def _replies() -> IO[str]:
    """stdout, for replies alone: whatever a library prints from now on goes to the log."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _say(replies: IO[str], reply: Mapping[str, object]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="packkv.demo.worker_process")
    parser.add_argument("--model", type=Path, required=True, help="a transformers folder")
    parser.add_argument("--codec", default="hybrid", help="as in hybrid:delta=1.0,v_levels=8")
    parser.add_argument("--store", help="HOST:PORT of a store; without it nothing is shared")
    parser.add_argument("--tenant-salt", default="", help="share only with the same salt")
    parser.add_argument(
        "--deadline-s",
        type=float,
        default=PrefixCacheConfig().deadline_s,
        help="how long a load may take, whatever the store does",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()

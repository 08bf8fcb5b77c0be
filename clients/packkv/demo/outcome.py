"""What a demo run measured, and whether it did what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packkv.demo.document import shared_length
from packkv.demo.messages import Answered, Compared, Ready
from packkv.hashing import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: what was asked, what each process said, and the figures that follow.

    Attributes:
        prefix_tokens: token ids that both prompts have in common.
        cold: worker A's answer to the first question, with an empty store.
        warm: worker B's answer to the second, from the store.
        exact: the same prompt in B's process without PackKV.
        texts: the three answers in words.
    """

    model: str
    document: str
    codec: str
    index: str
    nodes: int
    questions: tuple[str, str]
    prefix_tokens: int
    worker: Ready
    cold: Answered
    warm: Answered
    exact: Compared
    texts: tuple[str, str, str]

    @property
    def full_tokens(self) -> int:
        """Tokens of the full blocks of the shared prefix: all that can match."""
        return self.prefix_tokens // BLOCK_SIZE * BLOCK_SIZE

    @property
    def ttft_speedup(self) -> float:
        return self.cold.ttft_s / self.warm.ttft_s

    @property
    def raw_bytes(self) -> int:
        """K and V of the blocks that A published, as fp16."""
        return self.cold.published_blocks * BLOCK_SIZE * self.worker.fp16_bytes_per_token

    @property
    def ratio(self) -> float:
        """fp16 bytes of K and V per stored byte, all metadata included."""
        stored = self.cold.published_bytes
        return self.raw_bytes / stored if stored else 0.0

    @property
    def greedy_equal_tokens(self) -> int:
        """Leading tokens that B's answer and the exact run's have in common."""
        return shared_length(self.warm.tokens, self.exact.tokens)

    def fault(self) -> str | None:
        """What was promised and did not happen, in one sentence; None when all is well."""
        wanted = self.full_tokens // BLOCK_SIZE
        if self.cold.published_blocks < wanted:
            return (
                f"the store took {self.cold.published_blocks} of the prefix's {wanted} blocks"
                f"{_reasons(self.cold.dropped_blocks)}"
            )
        if self.warm.matched_tokens != self.full_tokens:
            return (
                f"worker B got {self.warm.matched_tokens} of {self.full_tokens} tokens from the "
                f"store{_reasons(self.warm.misses)}"
            )
        return None

    def as_json(self) -> dict[str, object]:
        """The contract of `packkv demo --json`. Seconds and bytes."""
        return {
            "prefix_tokens": self.prefix_tokens,
            "matched_tokens": self.warm.matched_tokens,
            "ttft_cold_s": self.cold.ttft_s,
            "ttft_warm_s": self.warm.ttft_s,
            "ttft_exact_s": self.exact.ttft_s,
            "ttft_speedup": self.ttft_speedup,
            "raw_bytes": self.raw_bytes,
            "stored_bytes": self.cold.published_bytes,
            "ratio": self.ratio,
            "wire_bytes": self.warm.fetched_bytes,
            "kl_mean": self.exact.kl_mean,
            "top1_agreement": self.exact.top1_agreement,
            "scored_tokens": self.exact.scored_tokens,
            "greedy_tokens": len(self.exact.tokens),
            "greedy_equal_tokens": self.greedy_equal_tokens,
            "model": self.model,
            "document": self.document,
            "codec": self.codec,
            "attention_backend": self.worker.attention_backend,
            "index": self.index,
            "nodes": self.nodes,
            "questions": list(self.questions),
            "answers": list(self.texts[:2]),
            "answer_exact": self.texts[2],
        }


def _reasons(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{reason}: {n}' for reason, n in counts.items())})" if counts else ""

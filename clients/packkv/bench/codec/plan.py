"""Plan: what `packkv bench codec` is to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from packkv.bench.codec.families import Grid
from packkv_kernels.profile import Profile

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        prefix_tokens: tokens whose K and V go through the codecs.
        scored_tokens: tokens after them, teacher-forced over the decoded cache.
        grid: how finely codecs are tuned.
        profiles: for `hybrid`; none: made from the tuning texts, with budgets per head unless
            the grid is quick.
        long_prefix_tokens: of a second, longer prefix, at which each codec is measured with its
            settings around the KLs compared; 0: none.
        greedy_tokens: length of the greedy continuations that are compared; 0: none.
        variants: whether to measure the papers' other choices too.
    """

    prefix_tokens: int
    scored_tokens: int
    grid: Grid
    profiles: Sequence[Profile] = ()
    long_prefix_tokens: int = 0
    greedy_tokens: int = 0
    variants: bool = False

    @property
    def text_tokens(self) -> int:
        """Tokens of a text that are used: the last is only a successor."""
        return self.prefix_tokens + self.scored_tokens + 1

    @property
    def long_text_tokens(self) -> int:
        """The same with the long prefix, or without one that of the only prefix."""
        return max(self.prefix_tokens, self.long_prefix_tokens) + self.scored_tokens + 1

    @property
    def tuning_tokens(self) -> int:
        """The same for a tuning text: half the scored tokens choose as well, in half the time."""
        return self.prefix_tokens + self.scored_tokens // 2 + 1

    @property
    def long_positions(self) -> int:
        """The most tokens that the model has before it at once."""
        return self.long_prefix_tokens + 1 + max(self.scored_tokens, self.greedy_tokens)

    def takes_long(self, ids: torch.Tensor) -> bool:
        """Whether a text [1, tokens] is measured with the long prefix too."""
        return self.long_prefix_tokens > 0 and ids.shape[1] >= self.long_text_tokens

"""What `packkv bench ttft` is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from packkv.errors import ConfigError

MAX_PREFIX_TOKENS: Final = 131_072
# A link slower than this would take hours for a prefix; one faster, no process could imitate.
MIN_GBPS: Final = 0.001
MAX_GBPS: Final = 1000.0
_LEAST_TOKENS: Final = 64


@dataclass(frozen=True)
class Plan:
    """Lengths, bandwidths, workers.

    Attributes:
        prefix_tokens: lengths of prefixes, whole blocks of 64 tokens, ascending.
        gbps: bandwidths in 10⁹ bits a second; None is no limit but loopback's own.
        prefill_rates: tokens a second of workers that are imagined, beside the one that is here.
        loads: timed loads of each prefix over each link; fewer where they take long.
        question_tokens: behind the longest prefix, to be computed for its first token.

    Raises:
        ConfigError: a value beyond its limits.
    """

    prefix_tokens: tuple[int, ...]
    gbps: tuple[float | None, ...]
    prefill_rates: tuple[float, ...]
    loads: int
    question_tokens: int = 32

    def __post_init__(self) -> None:
        for tokens in self.prefix_tokens:
            if tokens % _LEAST_TOKENS or not _LEAST_TOKENS <= tokens <= MAX_PREFIX_TOKENS:
                raise ConfigError(
                    f"--prefix-tokens {tokens} is not a multiple of {_LEAST_TOKENS} up to "
                    f"{MAX_PREFIX_TOKENS:,}"
                )
        if not self.prefix_tokens or list(self.prefix_tokens) != sorted(set(self.prefix_tokens)):
            raise ConfigError("--prefix-tokens are not one or more lengths, shortest first")
        for gbps in self.gbps:
            if gbps is not None and not MIN_GBPS <= gbps <= MAX_GBPS:
                raise ConfigError(
                    f"--gbps {gbps:g} is not between {MIN_GBPS:g} and {MAX_GBPS:g}, or unlimited"
                )
        if not self.gbps:
            raise ConfigError("--gbps names no bandwidth")
        for rate in self.prefill_rates:
            if not 0 < rate < float("inf"):
                raise ConfigError(f"--prefill-rate {rate:g} is not above 0")
        # a longer one would tell the prefix cache how fast this machine computes, which might then
        # compute the prefix, too
        if not 1 <= self.question_tokens < _LEAST_TOKENS:
            raise ConfigError(
                f"--question-tokens {self.question_tokens} is not between 1 and {_LEAST_TOKENS - 1}"
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest prefix."""
        return self.prefix_tokens[-1]

    @property
    def tokens(self) -> int:
        """That are needed in all."""
        return self.longest + self.question_tokens

"""What the engine needs of a model: sequences that begin, move on together, and end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from transformers.cache_utils import Cache

from packkv.identity import Namespace
from packkv.prefix_cache import Counters


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence that a decoder holds.

    Attributes:
        prompt: its first token ids.
        cached_tokens: of the prompt, how many need not be computed.
        cache: K and V so far; the decoder's own.
    """

    prompt: list[int]
    cached_tokens: int
    cache: Cache


class Decoder(Protocol):
    """A model and the past of its sequences. Where nothing else is said, from one thread."""

    def begin(self, prompt: list[int], cache_salt: str) -> Sequence:
        """A sequence with as much of its prompt as is known already; asks the store."""
        ...

    def prefill(self, sequence: Sequence) -> torch.Tensor:
        """Computes the rest of the prompt; float32 logits [vocabulary] of the first new token.

        What `begin` has found may turn out to be less: then `cached_tokens` is less, too.
        """
        ...

    def step(self, sequences: list[Sequence], token_ids: list[int]) -> torch.Tensor:
        """One token more for each; float32 logits [sequences, vocabulary] of the next, on the CPU.

        After an exception none of the sequences may be used but by `end`.
        """
        ...

    def namespace(self) -> Namespace | None:
        """Of its blocks, without a cache salt; None when it shares none. From any thread."""
        ...

    def block_names(self, prompt: list[int], cache_salt: str) -> list[bytes]:
        """The chain hashes of the prompt's blocks that could be found, first block first. From any
        thread; nothing is asked or computed."""
        ...

    def share(self, sequence: Sequence) -> None:
        """Lets other requests, here and through the store, use what has been computed."""
        ...

    def end(self, sequence: Sequence) -> None:
        """Gives up what the sequence holds; harmless when repeated."""
        ...

    def counters(self) -> Counters:
        """What the store was good for. From any thread."""
        ...

    def close(self, timeout_s: float) -> None:
        """Publishes what is queued for at most `timeout_s`, and lets go of the store."""
        ...


def positions(start: int, count: int, device: torch.device) -> torch.Tensor:
    """Position ids [1, count] from `start` on."""
    return torch.arange(start, start + count, device=device)[None]

"""What the engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from packkv.serving.errors import ApiError
from packkv.worker.sampling import Choice, Sampling


@dataclass(frozen=True, slots=True)
class Task:
    """One answer that is wanted.

    Args:
        prompt: token ids, at least one.
        max_tokens: the longest answer, at least 1.
        sampling: how its tokens are chosen.
        stops: texts that end it and are no part of it; none of them empty.
        cache_salt: only tasks with the same one share blocks.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that follows, and the tokens behind it if log-probabilities were asked for."""

    text: str
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete.

    Args:
        reason: "stop" at the model's own end or at a stop string, "length" at `max_tokens`.
        completion_tokens: that were computed, the model's end token among them.
        cached_tokens: of the prompt, how many were not computed.
    """

    reason: Literal["stop", "length"]
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer ends here and is not complete."""

    error: ApiError


Event = Piece | Ended | Failed

# Called on the engine's thread; must return at once.
Emit = Callable[[Event], None]

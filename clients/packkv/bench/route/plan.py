"""What `packkv bench route` is to measure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from packkv.errors import ConfigError

_LIMITS: Final = {
    "workers": (2, 16),
    "conversations": (1, 1000),
    "turns": (2, 100),
    "document_tokens": (64, 100_000),
    "answer_tokens": (1, 4096),
    "at_once": (1, 256),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class Plan:
    """Workers and conversations.

    Attributes:
        workers: each with a store of its own, so that nothing is shared behind the router's back.
        conversations: each about a document of its own.
        turns: questions of a conversation.
        document_tokens: of a document, about; it stands before the first question.
        answer_tokens: of each answer.
        at_once: questions under way at one time.
        seed: of who asks next.

    Raises:
        ConfigError: a value beyond its limits.
    """

    workers: int
    conversations: int
    turns: int
    document_tokens: int
    answer_tokens: int
    at_once: int
    seed: int

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = _LIMITS[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                option = field.name.replace("_", "-")
                raise ConfigError(f"--{option} {value} is not between {low} and {high:,}")

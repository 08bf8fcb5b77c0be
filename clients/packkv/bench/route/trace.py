"""Conversations of several turns, and who asks next."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Final

from packkv.bench.route.plan import Plan
from packkv.errors import ConfigError

# Of English prose, about.
_CHARACTERS_PER_TOKEN: Final = 4
_QUESTIONS: Final = (
    "What is this about, in one sentence?",
    "Which of it matters most to somebody who is in a hurry?",
    "Give an example of it.",
    "What is easily got wrong here?",
    "How would you explain it to a child?",
)

Message = dict[str, str]


@dataclass
class Conversation:
    """What has been said, and what is asked next."""

    number: int
    document: str
    turns: int
    messages: list[Message] = field(default_factory=list)
    turn: int = 0

    def ask(self) -> list[Message]:
        """All messages up to the next question."""
        question = _QUESTIONS[self.turn % len(_QUESTIONS)]
        text = f"{self.document}\n\n{question}" if self.turn == 0 else question
        self.messages.append({"role": "user", "content": text})
        self.turn += 1
        return list(self.messages)

    def hear(self, answer: str) -> None:
        self.messages.append({"role": "assistant", "content": answer})

    @property
    def is_over(self) -> bool:
        return self.turn == self.turns


class Trace:
    """All conversations; any that waits for no answer may be the next to ask. Thread-safe."""

    def __init__(self, plan: Plan, text: str) -> None:
        """
        Raises:
            ConfigError: the text is too short to give each a part of its own.
        """
        size = plan.document_tokens * _CHARACTERS_PER_TOKEN
        if len(text) < size * plan.conversations:
            raise ConfigError(
                f"a text of {len(text):,} characters is too short for {plan.conversations} "
                f"documents of {size:,}"
            )
        self._random = random.Random(plan.seed)
        self._lock = threading.Lock()
        self._waiting = [
            Conversation(number, text[size * number : size * (number + 1)], plan.turns)
            for number in range(plan.conversations)
        ]

    def next(self) -> Conversation | None:
        """Whose turn it is; None when nobody waits who has not asked everything."""
        with self._lock:
            if not self._waiting:
                return None
            return self._waiting.pop(self._random.randrange(len(self._waiting)))

    def give_back(self, conversation: Conversation) -> None:
        """It has been answered."""
        with self._lock:
            if not conversation.is_over:
                self._waiting.append(conversation)

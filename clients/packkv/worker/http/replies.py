"""The objects that the API answers with: whole, and as the messages of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from packkv.hashing import BLOCK_SIZE
from packkv.worker.engine import Ended, Piece
from packkv.worker.model import Language, OpenModel
from packkv.worker.sampling import Choice

Json = dict[str, Any]


class Reply(Protocol):
    """How an answer is written down."""

    id: str

    def whole(self, pieces: Sequence[Piece], ended: Ended) -> Json:
        """The answer as one object."""
        ...

    def opening(self) -> list[Json]:
        """The messages before the first text of a stream."""
        ...

    def piece(self, piece: Piece) -> Json:
        """A message with the text that follows."""
        ...

    def closing(self, ended: Ended) -> list[Json]:
        """The messages after the last text of a stream."""
        ...


@dataclass(slots=True)
class _Reply:
    """What both kinds have in common.

    Args:
        model: that answers.
        prompt_tokens: of the task.
        with_logprobs: whether log-probabilities were asked for.
        with_usage: whether a stream ends with a message about usage.
    """

    model: OpenModel
    prompt_tokens: int
    with_logprobs: bool
    with_usage: bool
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def message(self, kind: str, choices: list[Json], ended: Ended | None = None) -> Json:
        """The frame around choices; with usage when it is the last."""
        frame: Json = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        }
        return frame if ended is None else frame | {"usage": self.usage(ended)}

    def part(self, kind: str, choices: list[Json]) -> Json:
        """A message of a stream; all say that usage comes later, if it does."""
        return self.message(kind, choices) | ({"usage": None} if self.with_usage else {})

    def usage(self, ended: Ended) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": ended.completion_tokens,
            "total_tokens": self.prompt_tokens + ended.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": ended.cached_tokens},
        }


@dataclass(slots=True)
class ChatReply(_Reply):
    """/v1/chat/completions."""

    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")

    def whole(self, pieces: Sequence[Piece], ended: Ended) -> Json:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": _text(pieces), "refusal": None},
            "logprobs": self._logprobs(_choices(pieces)),
            "finish_reason": ended.reason,
        }
        return self.message("chat.completion", [choice], ended)

    def opening(self) -> list[Json]:
        return [self._delta({"role": "assistant", "content": ""})]

    def piece(self, piece: Piece) -> Json:
        return self._delta({"content": piece.text}, self._logprobs(piece.choices))

    def closing(self, ended: Ended) -> list[Json]:
        last = self._delta({}, reason=ended.reason)
        if not self.with_usage:
            return [last]
        return [last, self.message("chat.completion.chunk", [], ended)]

    def _delta(self, delta: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self.part("chat.completion.chunk", [choice])

    def _logprobs(self, choices: Sequence[Choice]) -> Json | None:
        if not self.with_logprobs:
            return None
        language = self.model.language
        content = [
            _token(language, one.token_id, one.logprob or 0.0)
            | {"top_logprobs": [_token(language, *pair) for pair in one.top]}
            for one in choices
        ]
        return {"content": content, "refusal": None}


@dataclass(slots=True)
class TextReply(_Reply):
    """/v1/completions."""

    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    _offset: int = 0

    def whole(self, pieces: Sequence[Piece], ended: Ended) -> Json:
        choice = self._choice(_text(pieces), self._logprobs(_choices(pieces)), ended.reason)
        return self.message("text_completion", [choice], ended)

    def opening(self) -> list[Json]:
        return []

    def piece(self, piece: Piece) -> Json:
        choice = self._choice(piece.text, self._logprobs(piece.choices), None)
        return self.part("text_completion", [choice])

    def closing(self, ended: Ended) -> list[Json]:
        last = self.part("text_completion", [self._choice("", None, ended.reason)])
        return [last, self.message("text_completion", [], ended)] if self.with_usage else [last]

    def _choice(self, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, choices: Sequence[Choice]) -> Json | None:
        if not self.with_logprobs:
            return None
        tokens = [self.model.language.token(one.token_id) for one in choices]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in choices],
            "top_logprobs": [
                {self.model.language.token(token_id): value for token_id, value in one.top}
                for one in choices
            ],
            "text_offset": offsets,
        }


def model_card(model: OpenModel) -> Json:
    """The model in /v1/models."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "packkv",
        "max_model_len": model.max_context,
    }


def named_blocks(prompt_tokens: int, names: Sequence[bytes]) -> Json:
    """The blocks of a prompt by their chain hashes."""
    return {
        "object": "packkv.blocks",
        "prompt_tokens": prompt_tokens,
        "block_tokens": BLOCK_SIZE,
        "blocks": [name.hex() for name in names],
    }


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _choices(pieces: Sequence[Piece]) -> list[Choice]:
    return [choice for piece in pieces for choice in piece.choices]


def _token(language: Language, token_id: int, logprob: float) -> Json:
    text = language.token(token_id)
    # a part of a character has no bytes of its own as text
    known = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": known}

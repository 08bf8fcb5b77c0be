"""Token ids → text while it grows: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# What a decoder writes for bytes that are no character (yet).
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Ids of the prompt's end that are decoded again before the first new one.
_CONTEXT = 6

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """The text of a growing list of token ids, piece by piece.

    The tokenizers library has a `DecodeStream` for this. It refuses some sequences of ids and never
    hands out what is unfinished at the end; a server needs both.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        """
        Args:
            decode: ids → text, without special tokens.
            prompt: what came before: some tokenizers write a word differently at the start.
        """
        self._decode = decode
        # what was handed out last, decoded again as the context of what comes, and what comes
        self._ids = list(prompt[-_CONTEXT:])
        self._read = len(self._ids)

    def feed(self, token_id: int) -> str:
        """The text that this id completes; empty while a character is unfinished."""
        self._ids.append(token_id)
        text = self._fresh()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return text

    def finish(self) -> str:
        """What is left, unfinished characters as U+FFFD."""
        text = self._fresh()
        self._read = len(self._ids)
        return text

    def _fresh(self) -> str:
        before = self._decode(self._ids[: self._read])
        return self._decode(self._ids)[len(before) :]


@dataclass(slots=True)
class StopStrings:
    """Holds text back as long as it may be the beginning of a stop string.

    Attributes:
        stops: none of them empty.
        stopped: whether one was found; nothing more is handed out then.
    """

    stops: Sequence[str]
    stopped: bool = False
    _held: str = field(default="", repr=False)

    def feed(self, text: str) -> str:
        """The text that is safe to hand out."""
        if self.stopped:
            return ""
        text = self._held + text
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        held = max((_beginning(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def _beginning(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

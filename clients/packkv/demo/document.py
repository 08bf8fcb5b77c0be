"""What the workers are asked: one document, two questions, and the tokens both prompts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from packkv.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and one question about it for each worker."""

    name: str
    text: str
    questions: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids of both prompts; their first `shared` ids are equal, and no more."""

    first: list[int]
    second: list[int]
    shared: int


def python_reference() -> Document:
    """Python's language reference, as every Python carries it: about 200,000 tokens."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[topic].strip() + "\n" for topic in sorted(topics))
    questions = ("What is an assignment?", "What does the assert statement do?")
    return Document("the Python language reference", text, questions)


def text_file(path: Path) -> Document:
    """The text of a UTF-8 file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise ConfigError(f"cannot read the text {path}: {reason}") from reason
    questions = ("Summarize the text in one sentence.", "What is the text about?")
    return Document(path.name, text, questions)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading ids two sequences have in common."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in pairs)


def prompts(tokenizer: PreTrainedTokenizerBase, document: Document, prefix_tokens: int) -> Prompts:
    """Both prompts, with the document cut so that they share at least `prefix_tokens` ids.

    Raises:
        ConfigError: the document is too short for that.
    """
    ends = [
        end
        for _, end in tokenizer(
            document.text, add_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"]
    ]
    kept = max(1, prefix_tokens - _prompts(tokenizer, document, "").shared)
    while kept <= len(ends):
        asked = _prompts(tokenizer, document, document.text[: ends[kept - 1]])
        if asked.shared >= prefix_tokens:
            return asked
        # ids merged where the document was cut; take as many more
        kept += prefix_tokens - asked.shared
    raise ConfigError(
        f"{document.name} has {len(ends):,} tokens, too few for a shared prefix of "
        f"{prefix_tokens:,}: give a longer text or a smaller --prefix-tokens"
    )


def _prompts(tokenizer: PreTrainedTokenizerBase, document: Document, text: str) -> Prompts:
    first, second = (_prompt(tokenizer, text, question) for question in document.questions)
    return Prompts(first, second, shared_length(first, second))


def _prompt(tokenizer: PreTrainedTokenizerBase, text: str, question: str) -> list[int]:
    """The document comes first: what is shared must be a prefix."""
    if not tokenizer.chat_template:
        return list(tokenizer(f"{text}\n\nQuestion: {question}\nAnswer:")["input_ids"])
    messages = [{"role": "user", "content": f"{text}\n\n{question}"}]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # the template has written the special tokens itself
    return list(tokenizer(asked, add_special_tokens=False)["input_ids"])

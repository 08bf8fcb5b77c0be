"""The texts: those that settings are chosen on, and those that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from packkv.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["REPORTED_MODULES", "TUNING_MODULES", "Text", "read_module", "read_text", "token_ids"]

# Every Python carries them, so that nothing needs to be shipped: prose and code to tune on,
# and other modules, long docstrings and code, to report where no text is named.
TUNING_MODULES = ("pydoc_data.topics", "tarfile")
REPORTED_MODULES = ("argparse", "statistics", "_pydecimal", "turtle")

# More characters than any tokenizer puts into one token of ordinary text.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Text:
    """A text and what to call it."""

    name: str
    content: str


def read_text(path: Path) -> Text:
    """The text of a UTF-8 file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Text(path.name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as reason:
        raise ConfigError(f"cannot read the text {path}: {reason}") from reason


def read_module(name: str) -> Text:
    """The source of a module of the standard library; of `pydoc_data.topics` the prose in it.

    Raises:
        ConfigError: this Python comes without its sources.
    """
    if name == "pydoc_data.topics":
        from pydoc_data.topics import topics

        return Text(name, "\n".join(topics[topic] for topic in sorted(topics)))
    spec = find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(f"this Python has no source of {name}: name texts with --text")
    return Text(name, read_text(Path(spec.origin)).content)


def token_ids(
    tokenizer: PreTrainedTokenizerBase, text: Text, least: int, most: int | None = None
) -> torch.Tensor:
    """The first token ids of a text, int64 [1, least … most]; most is least unless told.

    Raises:
        ConfigError: the text has fewer than `least`.
    """
    count = max(least, most or least)
    start = text.content[: count * _CHARACTERS_PER_TOKEN]
    ids: Sequence[int] = tokenizer(start, add_special_tokens=False)["input_ids"]
    if len(ids) < least:
        raise ConfigError(
            f"{text.name} has {len(ids):,} tokens, but prefix and scored tokens take {least:,}: "
            "give a longer text or smaller --prefix-tokens and --scored-tokens"
        )
    return torch.tensor([list(ids[:count])])

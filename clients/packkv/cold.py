"""When blocks are published in cold form; apart, because a command that says so needs no torch."""

from __future__ import annotations

from typing import Literal, cast, get_args

from packkv.errors import ConfigError

Cold = Literal["auto", "always", "never"]


def as_cold(text: str) -> Cold:
    """`text`, if it is one of them. Raises ConfigError."""
    if text not in get_args(Cold):
        raise ConfigError(f"cold is {text!r}, not one of {', '.join(get_args(Cold))}")
    return cast(Cold, text)

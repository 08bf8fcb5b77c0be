"""What commands that serve the OpenAI API have in common: options, what they need, their log."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from packkv.errors import ConfigError

MIB = 1 << 20

MaxBodyMib: TypeAlias = Annotated[int, typer.Option(help="largest request")]
TlsCert: TypeAlias = Annotated[Path | None, typer.Option(help="PEM certificate of the API")]
TlsKey: TypeAlias = Annotated[Path | None, typer.Option(help="PEM key of the API")]
Insecure: TypeAlias = Annotated[
    bool, typer.Option("--insecure", help="listen beyond loopback without keys and TLS")
]


def check_installed(extra: str, *modules: str) -> None:
    """Raises ConfigError, which names what is missing and the extra of packkv that brings it."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing: pip install 'packkv[{extra}]'")


def log_lines() -> None:
    """Log to standard error, a line for each event."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )

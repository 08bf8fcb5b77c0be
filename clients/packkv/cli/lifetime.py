"""`packkv lifetime`: how long the blocks of a namespace stay in a store."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from packkv.cli.connection import DEFAULT_TARGET, AsJson, Target, credentials_of
from packkv.cli.files import chosen_root
from packkv.cli.output import print_json, print_table
from packkv.errors import ConfigError

if TYPE_CHECKING:
    from packkv.client import Lifetimes

NEVER = "never"
DEFAULT = "default"
SECONDS_IN = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LIFETIME = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lifetime)


def lifetime(
    ctx: typer.Context,
    value: Annotated[
        str | None,
        typer.Argument(help="Seconds, or 30m, 12h, 7d; never; default. Without it: show what is."),
    ] = None,
    target: Target = DEFAULT_TARGET,
    namespace: Annotated[
        Path | None, typer.Option(help="The namespace whose blocks it is for (a JSON file).")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Or its root hash.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set, or show, how long the blocks of a namespace stay, counted from their Put.

    It holds for the blocks that are there as well, on this one node, and through its restarts.

    \b
        packkv lifetime 12h --namespace llama.json
        packkv lifetime never --root 9f86d081884c7d65…
        packkv lifetime default --namespace llama.json
        packkv lifetime --json
    """
    root_hash = chosen_root(namespace, root)
    if (value is None) != (root_hash is None):
        raise ConfigError("a lifetime goes with --namespace or --root: give both, or neither")
    with credentials_of(ctx).connect(target) as client:
        if value is not None and root_hash is not None:
            client.set_lifetime(root_hash, _seconds(value))
        found = client.lifetimes()
    if as_json:
        print_json(_document(found))
    else:
        rows = [(root_hash.hex(), _spelled(seconds)) for root_hash, seconds in found.own.items()]
        print_table(("namespace", "lifetime"), [*rows, ("all others", _spelled(found.others))])


def _seconds(text: str) -> float:
    """As `Client.set_lifetime` takes them."""
    if text == NEVER:
        return math.inf
    if text == DEFAULT:
        return 0.0
    found = LIFETIME.fullmatch(text)
    seconds = float(found[1]) * SECONDS_IN[found[2] or "s"] if found else 0.0
    if not seconds:
        raise ConfigError(f"{text!r} is no lifetime: write seconds, 30m, 12h, 7d, never or default")
    return seconds


def _document(found: Lifetimes) -> dict[str, object]:
    """JSON has no infinity: null is never."""
    return {
        "default_s": _finite(found.others),
        "lifetimes": [
            {"root_hash": root_hash.hex(), "seconds": _finite(seconds)}
            for root_hash, seconds in found.own.items()
        ],
    }


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _spelled(seconds: float) -> str:
    return f"{seconds:g} s" if math.isfinite(seconds) else NEVER

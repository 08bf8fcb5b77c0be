"""`packkv watch`: what a store takes in and lets go, as it happens."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from packkv.cli.connection import DEFAULT_TARGET, AsJson, Target, credentials_of
from packkv.errors import DeadlineExceeded

if TYPE_CHECKING:
    from packkv.client import Changes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(watch)


def watch(
    ctx: typer.Context,
    target: Target = DEFAULT_TARGET,
    snapshot: Annotated[bool, typer.Option(help="Begin with all blocks that are there.")] = True,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="End after so long  [default: Ctrl-C]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which blocks a store takes in (+) and lets go (-), by their chain hashes.

    Those of this caller's tenant, on this node alone. A line `reset` says that nothing shown
    before counts any more; `current` that everything which is there has been shown. --json gives a
    line of JSON for each batch. Exit status 1 when the store goes away.

    \b
        packkv watch
        packkv watch --no-snapshot --json | jq -r '.stored[]'
    """
    with (
        credentials_of(ctx).connect(target) as client,
        client.watch(snapshot=snapshot, deadline_s=seconds) as changes,
        # both are ways to end it, not failures
        suppress(KeyboardInterrupt),
    ):
        try:
            for change in changes:
                _show(change, as_json)
        except DeadlineExceeded:
            if seconds is None:
                raise


def _show(change: Changes, as_json: bool) -> None:
    stored = sorted(name.hex() for name in change.stored)
    removed = sorted(name.hex() for name in change.removed)
    if as_json:
        line = {
            "sequence": change.sequence,
            "reset": change.reset,
            "current": change.current,
            "stored": stored,
            "removed": removed,
        }
        typer.echo(json.dumps(line))
        return
    words = ["reset"] * change.reset
    words += [f"+ {name}" for name in stored] + [f"- {name}" for name in removed]
    words += ["current"] * change.current
    for word in words:
        typer.echo(word)

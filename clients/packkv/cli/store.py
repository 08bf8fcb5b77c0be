"""`packkv ping`, `clear` and `drain`: one store, as its operator sees it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from packkv.cli.connection import DEFAULT_TARGET, AsJson, Target, credentials_of
from packkv.cli.files import chosen_root
from packkv.cli.output import print_json, size


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(ping)
    app.command()(clear)
    app.command()(drain)


def ping(ctx: typer.Context, target: Target = DEFAULT_TARGET, as_json: AsJson = False) -> None:
    """Ask a store whether it serves; exit status 1 if not.

    \b
        packkv ping
        packkv ping --target store-1:7437 --json
    """
    with credentials_of(ctx).connect(target) as client:
        started = time.monotonic()
        client.ping()
        connect_s = time.monotonic() - started
        started = time.monotonic()
        client.ping()
        answer_s = time.monotonic() - started
    if as_json:
        print_json({"target": target, "connect_s": connect_s, "answer_s": answer_s})
    else:
        typer.echo(
            f"{target} serves: {1000 * connect_s:.1f} ms with connecting, "
            f"{1000 * answer_s:.1f} ms without"
        )


def clear(
    ctx: typer.Context,
    target: Target = DEFAULT_TARGET,
    namespace: Annotated[
        Path | None, typer.Option(help="Only the blocks of this namespace (a JSON file).")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Only the blocks of this root hash.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove blocks from a store: those of one namespace, or all.

    \b
        packkv clear --namespace llama.json
        packkv clear --yes
    """
    root_hash = chosen_root(namespace, root)
    what = f"the blocks of root {root_hash.hex()[:16]}…" if root_hash else "EVERY block"
    if not yes:
        typer.confirm(f"Remove {what} from {target}?", abort=True, err=True)
    with credentials_of(ctx).connect(target) as client:
        cleared = client.clear(root_hash or b"")
    if as_json:
        print_json(asdict(cleared))
    else:
        typer.echo(f"removed {cleared.blocks} blocks, {size(cleared.bytes)}")


def drain(
    ctx: typer.Context,
    target: Target = DEFAULT_TARGET,
    seconds: Annotated[
        float, typer.Option(min=0.001, max=3600, help="Time to hand blocks over.")
    ] = 60.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take a node out of service for good: others get the blocks that it alone has.

    \b
        packkv drain --target node1.example:7437 --seconds 300
    """
    if not yes:
        typer.confirm(f"Take {target} out of service?", abort=True, err=True)
    with credentials_of(ctx).connect(target) as client:
        drained = client.drain(seconds)
    if as_json:
        print_json(asdict(drained))
    else:
        typer.echo(f"handed over {drained.handed_over} blocks, {drained.left} are nowhere else")

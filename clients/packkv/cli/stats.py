"""`packkv stats`: what a store holds and has done, once or as it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from packkv.cli.connection import DEFAULT_TARGET, AsJson, Target, credentials_of
from packkv.cli.output import print_json, size, table
from packkv.errors import DeadlineExceeded, StoreUnavailable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from packkv.client import Client, Stats


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(stats)


def stats(
    ctx: typer.Context,
    target: Target = DEFAULT_TARGET,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C, with rates.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.05, max=3600, help="Seconds between looks, with --watch.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show what a store holds and has done since its start.

    With --watch a store that goes away is waited for; --json gives a line of JSON each time.

    \b
        packkv stats
        packkv stats --json | jq .counters
        packkv stats --watch --every 5
    """
    with credentials_of(ctx).connect(target) as client:
        found = client.stats()
        if watch:
            # Ctrl-C is the way to end it, not a failure
            with suppress(KeyboardInterrupt):
                _watch(client, found, every, as_json)
        elif as_json:
            print_json(asdict(found))
        else:
            _show(_view(found, {}))


def _watch(client: Client, found: Stats, every: float, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        for now in _looks(client, every):
            typer.echo(json.dumps({"error": now} if isinstance(now, str) else asdict(now)))
        return
    from rich.live import Live

    with Live(_view(found, {}), screen=True, auto_refresh=False) as live:
        for now in _looks(client, every):
            if isinstance(now, str):
                live.update(now, refresh=True)
                continue
            live.update(_view(now, _rates(found, now)), refresh=True)
            found = now


def _looks(client: Client, every: float) -> Iterator[Stats | str]:
    """The store's state again and again, or why it did not say."""
    while True:
        time.sleep(every)
        try:
            found: Stats | str = client.stats()
        except (StoreUnavailable, DeadlineExceeded) as failure:
            found = str(failure)
        yield found


def _rates(before: Stats, now: Stats) -> dict[str, float]:
    """What grew by how much a second; nothing across a restart."""
    seconds = now.uptime_s - before.uptime_s
    if seconds <= 0 or now.node != before.node:
        return {}
    grown = {name: value - before.counters.get(name, 0) for name, value in now.counters.items()}
    return {name: count / seconds for name, count in grown.items() if count}


def _view(found: Stats, rates: Mapping[str, float]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    tiers = [
        (
            tier.tier,
            tier.blocks,
            size(tier.used_bytes),
            size(tier.capacity_bytes),
            tier.cold_blocks,
            size(tier.cold_bytes),
        )
        for tier in found.tiers
    ]
    counters = [
        (name, value, f"{rates[name]:,.1f}" if name in rates else "")
        for name, value in sorted(found.counters.items())
    ]
    shown: list[RenderableType] = [
        Text(f"node {found.node}, version {found.version}, up {found.uptime_s:.0f} s"),
        Text(f"{found.blocks} blocks, {found.leases} leases\n"),
        table(("tier", "blocks", "used", "capacity", "of it cold", "taking"), tiers),
    ]
    if counters:
        columns = ("counter", "value", "a second") if rates else ("counter", "value")
        shown += [Text(), table(columns, [row[: len(columns)] for row in counters])]
    return Group(*shown)


def _show(view: RenderableType) -> None:
    from rich.console import Console

    Console(markup=False, highlight=False).print(view)

"""The command `packkv bench store`. Importing it loads neither numpy's codecs nor torch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from packkv.bench.progress import bars
from packkv.demo.ending import ended_by_sigterm
from packkv.errors import ConfigError

if TYPE_CHECKING:
    from packkv.bench.store.experiment import Target
    from packkv.bench.store.plan import Plan

_INDEXES = ("embedded", "redis")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("store")(store)


def store(
    ctx: typer.Context,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures to this file")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="append a line per row to this file")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="HOST:PORT of a running store  [default: start one]"),
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, max=16_384, help="blocks of one transfer")] = 100,
    block_bytes: Annotated[
        int, typer.Option(min=4096, max=64 << 20, help="size of a block, about")
    ] = 1 << 20,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="of all transfers")] = 9,
    looks: Annotated[
        int, typer.Option(min=10, max=100_000, help="timed Matches of 2,048 blocks")
    ] = 400,
    clients: Annotated[
        str, typer.Option(help="numbers of client processes that fetch at one time; '' for none")
    ] = "1,2,4,8,16",
    index: Annotated[
        str, typer.Option(help="embedded; redis: also time a Match between two nodes, by Redis")
    ] = "embedded",
    note: Annotated[str, typer.Option(help="what to remember of this run, for JSON and CSV")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="16 blocks, 2 rounds, 50 Matches, 1 and 2 clients")
    ] = False,
) -> None:
    """Put, Get and Match over every data path, next to what memory and socket can do.

    \b
    memcpy         copying as many bytes inside this process: what shared memory can reach
    tcp            as many bytes through one socket between two Python processes, and nothing else:
                   what a remote path can reach
    redis          the same blobs in a redis-server, where one is installed
    shared-memory, bulk, grpc
                   the store's own paths, each alone

    Every round measures all of them one after the other, and again while another Python thread of
    this process spins. Figures are medians over rounds of 10⁹ bytes a second; compare within one
    run only, and distrust a run in which others kept cores busy.

    \b
        packkv bench store --json store.json
        packkv bench store --index redis --csv benchmarks/results.csv --note "quiet machine"
        packkv --token TOKEN bench store --target 10.0.0.5:7437 --clients 1,4

    A store named by --target needs room for the blocks and a token that may call Admin: the
    benchmark removes what it stored, and nothing else.
    """
    console = Console()
    if index not in _INDEXES:
        raise ConfigError(f"--index {index!r} is not one of {', '.join(_INDEXES)}")
    if quick:
        plan = _plan(16, block_bytes, 2, 50, "1,2")
    else:
        plan = _plan(blocks, block_bytes, rounds, looks, clients)
    _measure(_target(ctx, target), plan, index, note, console, json_file, csv_file)


def _plan(blocks: int, block_bytes: int, rounds: int, looks: int, clients: str) -> Plan:
    from packkv.bench.store.plan import Plan

    try:
        counts = tuple(int(word) for word in clients.replace(",", " ").split())
    except ValueError as reason:
        raise ConfigError(f"--clients {clients!r} is no list of numbers, as in 1,2,4") from reason
    gets = 32 if rounds > 2 else 4
    return Plan(blocks, block_bytes, rounds, looks, counts, gets)


def _target(ctx: typer.Context, address: str | None) -> Target:
    from packkv.bench.store.experiment import Target
    from packkv.client import ClientConfig

    if address is None:
        return Target(None, ClientConfig())
    # the options before the command's name, which the command line has turned into settings
    with ctx.obj.connect(address) as client:
        return Target(address, client.config)


def _measure(
    target: Target,
    plan: Plan,
    index: str,
    note: str,
    console: Console,
    json_file: Path | None,
    csv_file: Path | None,
) -> None:
    from packkv.bench.origin import origin
    from packkv.bench.results import append_rows, write_json
    from packkv.bench.store.experiment import REDIS, run
    from packkv.bench.store.processes import RedisServer
    from packkv.bench.store.report import as_json, csv_rows, show

    if index == REDIS and not RedisServer.is_installed():
        raise ConfigError("--index redis needs redis-server and the Python package redis")
    with (
        ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="packkv-bench-") as folder,
        bars(console) as progress,
    ):
        found = run(target, plan, index, Path(folder), progress)
    about = {**origin(), "note": note}
    figures = as_json(found, plan, about)
    show(figures, console)
    if json_file is not None:
        write_json(json_file, figures)
    if csv_file is not None:
        append_rows(csv_file, csv_rows(figures, about))

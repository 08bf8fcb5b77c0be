"""The command group `packkv bench`. Importing it loads neither torch nor transformers."""

from __future__ import annotations

import typer

from packkv.bench.codec import command as codec
from packkv.bench.kernels import command as kernels
from packkv.bench.route import command as route
from packkv.bench.store import command as store
from packkv.bench.ttft import command as ttft


def register(app: typer.Typer) -> None:
    """Add the group."""
    bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    codec.register(bench)
    kernels.register(bench)
    route.register(bench)
    store.register(bench)
    ttft.register(bench)
    app.add_typer(bench, name="bench", help="Measure quality and speed, and write the figures.")

"""`packkv serve`: become the server."""

from __future__ import annotations

import importlib.util
import os
import sys

import typer

from packkv.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command; it has no options of its own, so that --help is the server's."""
    app.command(
        "serve",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(serve)


def serve(ctx: typer.Context) -> None:
    """Run a store in this process. `packkv serve --help` lists its options."""
    if importlib.util.find_spec("packkv_store") is None:
        raise ConfigError("the server is not installed: pip install 'packkv[server]'")
    # the server is another program: this process becomes it, so that signals reach it directly
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "packkv_store", *ctx.args])

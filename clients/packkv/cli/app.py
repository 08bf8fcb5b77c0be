"""The command line as a whole: its commands, the credentials they share, and how they fail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from packkv.bench import command as bench
from packkv.cli import (
    calibrate,
    doctor,
    inspect,
    lifetime,
    match,
    quota,
    route,
    serve,
    stats,
    store,
    verify,
    watch,
    worker,
)
from packkv.cli.connection import Credentials
from packkv.demo import command as demo
from packkv.errors import ConfigError, PackKVError


class Commands(TyperGroup):
    """Turns the errors of the package into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PackKVError as error:
            typer.echo(f"packkv: {error}", err=True)
            sys.exit(2 if isinstance(error, ConfigError) else 1)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def connect(
    ctx: typer.Context,
    tls: Annotated[
        bool, typer.Option("--tls", help="Encrypt; check the server against the system's CAs.")
    ] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="PACKKV_TLS_CA", help="PEM file of the server's CA.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="PACKKV_TLS_CERT", help="PEM certificate of this client.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="PACKKV_TLS_KEY", help="PEM key of this client.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="PACKKV_TOKEN",
            show_envvar=True,
            help="Bearer token; better given in the environment, where `ps` does not show it.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send the token in plaintext to another host.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the store.")] = 5.0,
) -> None:
    """Share the KV cache of a prefix between inference workers.

    Start a store, see that it answers, and what it holds:

    \b
        packkv serve --ram-bytes 8GiB --data-dir /var/lib/packkv
        packkv ping
        packkv stats --json
    """
    ctx.obj = Credentials(tls, tls_ca, tls_cert, tls_key, token, insecure, timeout)


serve.register(app)
worker.register(app)
route.register(app)
store.register(app)
stats.register(app)
quota.register(app)
match.register(app)
watch.register(app)
inspect.register(app)
lifetime.register(app)
verify.register(app)
doctor.register(app)
demo.register(app)
bench.register(app)
calibrate.register(app)


def main() -> None:
    """The entry point of the `packkv` command."""
    app(prog_name="packkv")

"""`packkv route`: one address for many workers; each request goes to where its prefix is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from packkv.cli.connection import credentials_of
from packkv.cli.serving import (
    MIB,
    Insecure,
    MaxBodyMib,
    TlsCert,
    TlsKey,
    check_installed,
    log_lines,
)
from packkv.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("route")(route)


def route(
    ctx: typer.Context,
    worker: Annotated[
        list[str],
        typer.Option(help="URL of a worker, or URL=STORE with its store as HOST:PORT; repeat it"),
    ],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of the API; port 0 takes a free one")
    ] = "127.0.0.1:8080",
    policy: Annotated[str, typer.Option(help="prefix, or round-robin for comparison")] = "prefix",
    workers_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authority of the workers' certificates")
    ] = None,
    ask_seconds: Annotated[
        float, typer.Option(help="longest wait for a worker to name a request's blocks")
    ] = 1.0,
    look_seconds: Annotated[
        float, typer.Option(help="between two looks at whether the workers are ready")
    ] = 1.0,
    request_seconds: Annotated[float, typer.Option(help="until an answer has begun")] = 600.0,
    grace_seconds: Annotated[float, typer.Option(help="at the end, for running answers")] = 30.0,
    max_body_mib: MaxBodyMib = 4,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="keys that may ask, one a line; workers are shown the same key"),
    ] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
) -> None:
    """Serve the OpenAI API by sending each request to the worker that holds most of its prefix.

    Follows what each worker's store holds, asks a worker which blocks a request has, and takes the
    worker where the prompt would be computed first. A worker that is lost is replaced by another
    while nothing has been sent. Options of the stores' credentials stand before the command's name,
    its own after it.

    \b
        packkv route --worker http://127.0.0.1:8000=127.0.0.1:7437 \\
            --worker http://127.0.0.1:8001=127.0.0.1:7438
        curl -s localhost:8080/v1/models
    """
    check_installed("route", "httpx2", "starlette", "uvicorn")
    from packkv.router.config import Policy, RouterConfig, WorkerAddress
    from packkv.router.service import serve

    if policy not in tuple(Policy):
        raise ConfigError(f"policy is {policy!r}; write {' or '.join(Policy)}")
    log_lines()
    # a line for each request is not worth having
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    serve(
        RouterConfig(
            workers=tuple(WorkerAddress.parse(text) for text in worker),
            policy=Policy(policy),
            client=credentials_of(ctx).client_config(),
            workers_ca=workers_ca,
            ask_s=ask_seconds,
            look_s=look_seconds,
            request_s=request_seconds,
            grace_s=grace_seconds,
            listen=listen,
            max_body_bytes=max_body_mib * MIB,
            api_keys_file=api_key_file,
            tls_cert=tls_cert,
            tls_key=tls_key,
            insecure=insecure,
        )
    )

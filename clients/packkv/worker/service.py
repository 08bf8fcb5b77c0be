"""The process of a worker: composes the parts, listens, and ends them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from packkv.errors import ConfigError
from packkv.worker.config import WorkerConfig
from packkv.worker.engine import Engine
from packkv.worker.http import make_app
from packkv.worker.metrics import WorkerMetrics
from packkv.worker.model import open_model

_log = logging.getLogger("packkv.worker")

# Connections at one time; a connection more is answered with 503 and closed.
_MAX_CONNECTIONS = 1024

# For the last bytes of the last answers.
_LAST_ANSWERS_S = 5


class _Server(uvicorn.Server):
    """uvicorn without its own idea of signals: it would stop before the answers are complete."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(config: WorkerConfig) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends at once.

    Says on standard output where it listens, and when its model is ready.

    Raises:
        ConfigError: the address is taken, or the model cannot be loaded.
    """
    metrics = WorkerMetrics()
    engine = Engine(config, partial(open_model, config), metrics)
    app = make_app(config, engine, metrics)
    with _bound(config) as listener:
        server = _Server(_uvicorn_config(config, app))
        asyncio.run(_run(config, engine, metrics, server, listener))
    if engine.alive:
        # it is inside the model, which cannot be interrupted; an interpreter that ends as usual
        # aborts when a thread of torch is still at work
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


async def _run(
    config: WorkerConfig,
    engine: Engine,
    metrics: WorkerMetrics,
    server: uvicorn.Server,
    listener: socket.socket,
) -> None:
    ending = asyncio.Event()

    def end() -> None:
        if ending.is_set():
            engine.hurry()
        ending.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    engine.start()
    serving = loop.create_task(server.serve(sockets=[listener]))
    _say(f"packkv-worker listening on {config.scheme}://{_address(listener)}")
    opening = asyncio.ensure_future(asyncio.wrap_future(engine.opened))
    stopping = loop.create_task(ending.wait())
    over: set[asyncio.Future[Any]] = {stopping, serving}
    try:
        await asyncio.wait({opening, *over}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            model = opening.result()
            metrics.follow_store(model.decoder.counters)
            _say(f"packkv-worker ready: {model.name}")
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        _log.info("leaving: running answers have %g s", config.grace_s)
        await asyncio.to_thread(engine.drain, config.grace_s)
    finally:
        opening.cancel()
        stopping.cancel()
        server.should_exit = True
        await serving


def _uvicorn_config(config: WorkerConfig, app: FastAPI) -> uvicorn.Config:
    """
    Raises:
        ConfigError: certificate and key cannot be used.
    """
    settings = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
    )
    try:
        settings.load()
    # a file that cannot be read, or no PEM of a certificate and its key
    except OSError as reason:
        raise ConfigError(f"{config.tls_cert} and {config.tls_key}: {reason}") from reason
    return settings


@contextmanager
def _bound(config: WorkerConfig) -> Iterator[socket.socket]:
    """A listening socket, before anything slow begins.

    Raises:
        ConfigError: the address is taken, or not one of this machine.
    """
    host, port = config.address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=256)
    except OSError as reason:
        raise ConfigError(f"cannot listen on {config.listen}: {reason.strerror}") from reason
    with listener:
        yield listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(line: str) -> None:
    print(line, flush=True)

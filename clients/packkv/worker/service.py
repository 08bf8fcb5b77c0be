"""The process of a worker: composes the parts, listens, and ends them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from functools import partial
from typing import Any

from packkv.serving.listening import Server, bound, on_signals, say, url_of
from packkv.worker.config import WorkerConfig
from packkv.worker.engine import Engine
from packkv.worker.http import make_app
from packkv.worker.metrics import WorkerMetrics
from packkv.worker.model import open_model

_log = logging.getLogger("packkv.worker")


def serve(config: WorkerConfig) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends at once.

    Says on standard output where it listens, and when its model is ready.

    Raises:
        ConfigError: the address is taken, or the model cannot be loaded.
    """
    metrics = WorkerMetrics()
    engine = Engine(config, partial(open_model, config), metrics)
    app = make_app(config, engine, metrics)
    with bound(config) as listener:
        server = Server(config, app)
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
    server: Server,
    listener: socket.socket,
) -> None:
    ending = asyncio.Event()

    def end() -> None:
        if ending.is_set():
            engine.hurry()
        ending.set()

    loop = asyncio.get_running_loop()
    on_signals(end)
    engine.start()
    serving = loop.create_task(server.serve(sockets=[listener]))
    say(f"packkv-worker listening on {url_of(config, listener)}")
    opening = asyncio.ensure_future(asyncio.wrap_future(engine.opened))
    stopping = loop.create_task(ending.wait())
    over: set[asyncio.Future[Any]] = {stopping, serving}
    try:
        await asyncio.wait({opening, *over}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            model = opening.result()
            metrics.follow_store(model.decoder.counters)
            say(f"packkv-worker ready: {model.name}")
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        _log.info("leaving: running answers have %g s", config.grace_s)
        await asyncio.to_thread(engine.drain, config.grace_s)
    finally:
        opening.cancel()
        stopping.cancel()
        server.should_exit = True
        await serving

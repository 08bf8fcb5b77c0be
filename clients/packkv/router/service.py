"""The process of a router: composes the parts, listens, and ends them in order."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

from packkv.router.config import RouterConfig
from packkv.router.holdings import Holdings
from packkv.router.metrics import RouterMetrics
from packkv.router.proxy import Proxy
from packkv.router.upstream import Upstream, WorkerGone
from packkv.router.worker import Worker
from packkv.serving.listening import Server, bound, on_signals, say, url_of

_log = logging.getLogger("packkv.router")

_DRAIN_LOOK_S = 0.05


def serve(config: RouterConfig) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends at once.

    Says on standard output where it listens, after a first look at the workers.

    Raises:
        ConfigError: the address is taken, or a file cannot be used.
    """
    with bound(config) as listener:
        asyncio.run(_run(config, listener))


async def _run(config: RouterConfig, listener: socket.socket) -> None:
    followed = {store: Holdings(store, config.client) for store in config.stores}
    workers = [
        Worker(number, worker.url, followed.get(worker.store or ""))
        for number, worker in enumerate(config.workers)
    ]
    upstream = Upstream(config.workers_ca, config.request_s)
    metrics = RouterMetrics(workers, list(followed.values()))
    proxy = Proxy(config, workers, upstream, metrics)
    server = Server(config, proxy.app())
    ending, hurried = asyncio.Event(), asyncio.Event()

    def end() -> None:
        if ending.is_set():
            hurried.set()
        ending.set()

    on_signals(end)
    for holdings in followed.values():
        holdings.start()
    await asyncio.gather(*(_look(upstream, worker) for worker in workers))
    # each by itself: one that says nothing must not delay the look at others
    looking = [
        asyncio.ensure_future(_keep_looking(upstream, worker, config.look_s)) for worker in workers
    ]
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    stopping = asyncio.ensure_future(ending.wait())
    say(f"packkv-router listening on {url_of(config, listener)}")
    try:
        await asyncio.wait((stopping, serving), return_when=asyncio.FIRST_COMPLETED)
        await _drain(proxy, config.grace_s, hurried)
    finally:
        for task in (*looking, stopping):
            task.cancel()
        server.should_exit = True
        await serving
        await upstream.close()
        await asyncio.gather(*(asyncio.to_thread(one.close) for one in followed.values()))


async def _drain(proxy: Proxy, grace_s: float, hurried: asyncio.Event) -> None:
    """Takes no more; what is under way has the grace."""
    proxy.is_leaving = True
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            while proxy.under_way and not hurried.is_set():
                await asyncio.sleep(_DRAIN_LOOK_S)


async def _keep_looking(upstream: Upstream, worker: Worker, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        await _look(upstream, worker)


async def _look(upstream: Upstream, worker: Worker) -> None:
    """Asks a worker whether it is ready."""
    was_up = worker.is_up
    try:
        worker.is_up = await upstream.is_ready(worker)
    except WorkerGone:
        worker.lose()
    if worker.is_up != was_up:
        _log.info("worker %s is %s", worker.url, "ready" if worker.is_up else "not ready")

"""The socket and the server of a process that answers by HTTP."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from packkv.errors import ConfigError
from packkv.serving.config import ServerConfig

# Connections at one time; a connection more is answered with 503 and closed.
_MAX_CONNECTIONS = 1024

# For the last bytes of the last answers.
_LAST_ANSWERS_S = 5


class Server(uvicorn.Server):
    """uvicorn without its own idea of signals: it would stop before the answers are complete.

    Raises:
        ConfigError: certificate and key cannot be used.
    """

    def __init__(self, config: ServerConfig, app: ASGIApp) -> None:
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
        super().__init__(settings)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def on_signals(end: Callable[[], None]) -> None:
    """Calls `end` at each SIGTERM and SIGINT, on the running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)


@contextmanager
def bound(config: ServerConfig) -> Iterator[socket.socket]:
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


def url_of(config: ServerConfig, listener: socket.socket) -> str:
    """Where to ask, with the port that was taken."""
    host, port = listener.getsockname()[:2]
    return f"{config.scheme}://" + (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def say(line: str) -> None:
    """A line on standard output, at once: who started the process waits for it."""
    print(line, flush=True)

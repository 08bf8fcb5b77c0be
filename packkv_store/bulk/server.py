"""Takes connections, as many as it may have, and lets the one go that is missed the least."""

import asyncio
import logging
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

from packkv_protos.bulk.wire import Wire
from packkv_store.bulk.session import Session
from packkv_store.config import StoreConfig, split_address
from packkv_store.errors import ConfigError
from packkv_store.store import Store
from packkv_store.tenant import Access

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
# When the system has no descriptor left for a new connection, it may have one a little later.
ACCEPT_PAUSE_SECONDS = 0.1


class Bulk:
    """Serves the bulk protocol: `await start()`, then `await stop()`. All but the threads that
    move bytes belongs to one event loop."""

    def __init__(self, store: Store, access: Access, config: StoreConfig, nonce: bytes) -> None:
        self._store = store
        self._access = access
        self._config = config
        self._nonce = nonce
        # one for each connection, so that none ever waits for another's slow peer
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="packkv-bulk")
        self._tls: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        self.port = 0

    async def start(self) -> None:
        """Serves from here on, unless the path is off: `port` stays 0. Raises ConfigError."""
        address = self._config.bulk_address
        if address is None:
            return
        self._tls = _tls_context(self._config)
        try:
            self._listener = _listen(*split_address(address))
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from None
        self.port = self._listener.getsockname()[1]
        self._watch(self._listener)
        log.info("bulk path on port %d", self.port)

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more calls, lets running ones end within the grace, closes every connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        running = set(self._sessions.values())
        for session, task in self._sessions.items():
            if session.leave():
                task.cancel()
        if running:
            _, late = await asyncio.wait(running, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.wait(running)
        self._threads.shutdown(wait=True)

    def _watch(self, listener: socket.socket) -> None:
        # by a callback: of a task that is cancelled, a connection just taken would be lost unclosed
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("a bulk connection cannot be taken: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_PAUSE_SECONDS, self._watch, listener)
            return
        if len(self._sessions) >= MAX_CONNECTIONS and not self._dismiss_one():
            sock.close()
            return
        try:
            wire = Wire(sock)
        except OSError:
            # the peer was gone before its connection has been looked at
            sock.close()
            return
        self._begin(wire)

    def _begin(self, wire: Wire) -> None:
        session = Session(
            wire,
            self._store,
            self._access,
            self._tls,
            self._threads,
            self._nonce,
            self._config.stream_seconds,
        )
        task = asyncio.ensure_future(session.serve())
        self._sessions[session] = task
        task.add_done_callback(lambda _: self._ended(session, wire))

    def _ended(self, session: Session, wire: Wire) -> None:
        self._sessions.pop(session)
        # a task that was cancelled before it began has closed nothing
        wire.close()

    def _dismiss_one(self) -> bool:
        """Closes the connection that says nothing for the longest time, strangers first."""
        waiting = [session for session in self._sessions if session.is_waiting]
        if not waiting:
            return False
        least = min(waiting, key=lambda session: (session.is_known, session.waiting_since))
        least.dismiss()
        self._sessions[least].cancel()
        return True


def _tls_context(config: StoreConfig) -> ssl.SSLContext | None:
    """The same certificates and rules as gRPC has. Raises ConfigError."""
    if config.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
        if config.tls_client_ca is not None:
            context.load_verify_locations(config.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(f"tls_cert, tls_key or tls_client_ca: {error}") from None
    return context


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    both = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server(
        address[:2], family=family, backlog=MAX_CONNECTIONS, dualstack_ipv6=both
    )
    listener.setblocking(False)
    return listener

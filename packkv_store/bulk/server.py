"""Where the bulk path listens, and with which certificates."""

import logging
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

from packkv_protos.bulk.wire import Wire
from packkv_store.acceptor import MAX_CONNECTIONS, Acceptor
from packkv_store.bulk.session import Session
from packkv_store.config import StoreConfig, split_address
from packkv_store.errors import ConfigError
from packkv_store.store import Giving, Store
from packkv_store.tenant import Access

log = logging.getLogger(__name__)


class Bulk:
    """Serves the bulk protocol: `await start()`, then `await stop()`. All but the threads that
    move bytes belongs to one event loop."""

    def __init__(
        self, store: Store, own: Giving, access: Access, config: StoreConfig, nonce: bytes
    ) -> None:
        self._store = store
        self._own = own
        self._access = access
        self._config = config
        self._nonce = nonce
        # one for each connection, so that none ever waits for another's slow peer
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="packkv-bulk")
        self._tls: ssl.SSLContext | None = None
        self._acceptor = Acceptor("bulk path", self._open_session)
        self.port = 0

    async def start(self) -> None:
        """Serves from here on, unless the path is off: `port` stays 0. Raises ConfigError."""
        address = self._config.bulk_address
        if address is None:
            return
        self._tls = _tls_context(self._config)
        try:
            listener = _listen(*split_address(address))
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from None
        self.port = listener.getsockname()[1]
        self._acceptor.start(listener)
        log.info("bulk path on port %d", self.port)

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more calls, lets running ones end within the grace, closes every connection."""
        await self._acceptor.stop(grace_seconds)
        self._threads.shutdown(wait=True)

    def _open_session(self, sock: socket.socket) -> Session:
        return Session(
            Wire(sock),
            self._store,
            self._own,
            self._access,
            self._tls,
            self._threads,
            self._nonce,
            self._config.stream_seconds,
        )


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

"""The connections of a bulk path: few, open for the next call, made again when they are gone."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from packkv.client.config import ClientConfig
from packkv.client.paths import PathBroken
from packkv.errors import AccessDenied
from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Frame, FrameError, Kind
from packkv_protos.bulk.wire import Wire

# Calls beyond it wait for one that ends: more connections do not make a network faster.
MAX_LINKS = 8
# A port that does not answer within this is not the faster path.
CONNECT_S = 1.0


class Link:
    """A connection that one call uses. `wire` is another one after an `ask` that found it gone."""

    def __init__(self, links: Links, wire: Wire, *, is_used: bool) -> None:
        self._links = links
        self._is_used = is_used
        self.wire = wire

    def ask(self, request: bytes, ends_at: float) -> Frame:
        """The first frame of the answer. A server that was started again is asked once more, as
        long as it has answered nothing."""
        try:
            return self._ask(request, ends_at)
        except ConnectionError:
            if not self._is_used:
                raise
            self._links.replace(self, ends_at)
            self._is_used = False
            return self._ask(request, ends_at)

    def _ask(self, request: bytes, ends_at: float) -> Frame:
        self.wire.send([request], ends_at)
        return self.wire.receive_frame(ends_at)


class Links:
    """Lends connections to calls. Thread-safe.

    Args:
        host, port: where the server takes them.
        nonce: what the server says first; another is somebody else, and gets no token.
        config: encryption and credential.

    Raises:
        PathBroken: a TLS file cannot be read.
    """

    def __init__(self, host: str, port: int, nonce: bytes, config: ClientConfig) -> None:
        self._host = host
        self._port = port
        self._nonce = nonce
        self._token = config.token
        self._tls = _tls_context(config)
        # guards what follows; notified when a call gives its connection back
        self._changed = threading.Condition()
        self._idle: list[Wire] = []
        self._busy: set[Link] = set()
        self._opening = 0
        self._closed = False

    @contextmanager
    def borrowed(self, ends_at: float) -> Iterator[Link]:
        """A connection for one call. One whose call fails is not used again.

        Raises:
            PathBroken: there is none, and nothing has been sent.
            TimeoutError: all are in use until the deadline.
            StoreError: the server refuses the credential.
        """
        link = self._take(ends_at)
        try:
            yield link
        except BaseException:
            self._give_back(link, is_sound=False)
            raise
        self._give_back(link, is_sound=True)

    def replace(self, link: Link, ends_at: float) -> None:
        """Gives a borrowed link another connection. Raises OSError, StoreError."""
        if self._closed:
            raise ConnectionAbortedError("the client was closed")
        wire = self._connect(ends_at)
        with self._changed:
            link.wire.close()
            link.wire = wire
            if self._closed:
                raise ConnectionAbortedError("the client was closed")

    def close(self) -> None:
        """Calls under way end with ConnectionError, those to come with PathBroken."""
        with self._changed:
            self._closed = True
            for wire in self._idle:
                wire.close()
            self._idle.clear()
            for link in self._busy:
                link.wire.abort()
            self._changed.notify_all()

    def _take(self, ends_at: float) -> Link:
        with self._changed:
            while not self._closed:
                while self._idle:
                    wire = self._idle.pop()
                    # between calls a server says nothing: this is the end of the connection
                    if not wire.has_input():
                        return self._lend(wire, is_used=True)
                    wire.close()
                if len(self._busy) + self._opening < MAX_LINKS:
                    self._opening += 1
                    break
                if not self._changed.wait(max(0.0, ends_at - time.monotonic())):
                    raise TimeoutError(f"all {MAX_LINKS} connections are in use")
            else:
                raise PathBroken("the client is closed", is_untouched=True)
        return self._open(ends_at)

    def _open(self, ends_at: float) -> Link:
        try:
            wire = self._connect(ends_at)
        except (OSError, FrameError) as error:
            if isinstance(error, TimeoutError) and time.monotonic() >= ends_at:
                raise
            where = f"{self._host}:{self._port}"
            sentence = f"no bulk connection to {where}: {error}"
            raise PathBroken(sentence, is_untouched=True) from error
        finally:
            with self._changed:
                self._opening -= 1
                self._changed.notify()
        with self._changed:
            if self._closed:
                wire.close()
                raise PathBroken("the client is closed", is_untouched=True)
            return self._lend(wire, is_used=False)

    def _lend(self, wire: Wire, *, is_used: bool) -> Link:
        link = Link(self, wire, is_used=is_used)
        self._busy.add(link)
        return link

    def _give_back(self, link: Link, *, is_sound: bool) -> None:
        with self._changed:
            self._busy.discard(link)
            if is_sound and not self._closed:
                self._idle.append(link.wire)
            else:
                link.wire.close()
            self._changed.notify()

    def _connect(self, ends_at: float) -> Wire:
        ends_at = min(ends_at, time.monotonic() + CONNECT_S)
        left_s = max(0.001, ends_at - time.monotonic())
        wire = Wire(socket.create_connection((self._host, self._port), left_s))
        try:
            self._shake_hands(wire, ends_at)
        except BaseException:
            wire.close()
            raise
        return wire

    def _shake_hands(self, wire: Wire, ends_at: float) -> None:
        if self._tls is not None:
            wire.encrypt(self._tls, self._host, ends_at)
        greeting = wire.receive_frame(ends_at)
        if greeting.kind is not Kind.GREETING:
            raise FrameError(f"{greeting.kind.name} came, GREETING is due")
        if frames.read_greeting(greeting.body) != self._nonce:
            raise FrameError("another server answers")
        wire.send([frames.pack_hello(self._token)], ends_at)
        welcome = wire.receive_frame(ends_at)
        if welcome.kind is Kind.ERROR:
            raise AccessDenied(frames.read_error(welcome.body), status="UNAUTHENTICATED")
        if welcome.kind is not Kind.WELCOME:
            raise FrameError(f"{welcome.kind.name} came, WELCOME is due")
        frames.read_welcome(welcome.body)


def _tls_context(config: ClientConfig) -> ssl.SSLContext | None:
    """The same certificates and rules as gRPC has."""
    if not config.encrypted:
        return None
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.tls_cert is not None:
            context.load_cert_chain(config.tls_cert, config.tls_key)
    except OSError as error:
        raise PathBroken(f"TLS files: {error}", is_untouched=True) from error
    return context

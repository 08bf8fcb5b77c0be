"""The connections of a client to the store on its own host, and the arena that they all show."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from packkv.client.paths import PathBroken
from packkv.client.paths.answers import Refusal
from packkv.client.paths.arena import Arena
from packkv.client.paths.staging import HALF_BYTES, Staging
from packkv.client.paths.unix_wire import Answer, UnixWire
from packkv_protos.shared_memory import frames
from packkv_protos.shared_memory.frames import FrameError, Kind

# Connections that wait for a next call; more are opened while more calls run at one time.
MAX_IDLE: Final = 4


class HostLink:
    """One connection, for one call at a time, and the memory in which it lays down a Put."""

    def __init__(self, wire: UnixWire) -> None:
        self.wire = wire
        self._staging: Staging | None = None

    def ask(self, frame: bytes, due: Kind, *, patience_ms: int = 0) -> memoryview:
        """The body of the answer. Raises Refusal, FrameError, OSError."""
        self.send(frame)
        return self.hear(due, patience_ms=patience_ms)

    def send(self, frame: bytes) -> None:
        """Raises as `ask`."""
        try:
            self.wire.send(frame)
        except ConnectionError:
            # what the server has said before it closed is still there, and the last of it is why
            with suppress(OSError):
                while True:
                    answer = self.wire.receive()
                    if answer.kind is Kind.ERROR:
                        raise Refusal(answer.code, frames.read_error(answer.body)) from None
            raise

    def hear(self, due: Kind, *, patience_ms: int = 0) -> memoryview:
        """The body of the next frame. Raises as `ask`."""
        return body_of(self.wire.receive(patience_ms=patience_ms), due)

    def staging(self, least_half_bytes: int) -> Staging:
        """Memory that the server knows, with halves of at least so many bytes."""
        if self._staging is None or self._staging.half_bytes < least_half_bytes:
            if self._staging is not None:
                self._staging.close()
            self._staging = Staging(max(HALF_BYTES, least_half_bytes))
            size = frames.pack_number(Kind.STAGE, self._staging.size)
            self.wire.send(size, self._staging.fd)
        return self._staging

    def close(self) -> None:
        self.wire.close()
        if self._staging is not None:
            self._staging.close()
            self._staging = None


class HostLinks:
    """Lends connections to calls. Thread-safe.

    Args:
        path: the server's socket.
        nonce: what the server says first; another is somebody else, and gets no token.
        token: the bearer token, if there is one.
    """

    def __init__(self, path: str, nonce: bytes, token: str | None) -> None:
        self._path = path
        self._nonce = nonce
        self._token = token
        # guards what follows
        self._lock = threading.Lock()
        self._idle: list[HostLink] = []
        self._busy: set[HostLink] = set()
        self._closed = False
        self._arena: Arena | None = None

    @property
    def arena(self) -> Arena:
        """The tenant's memory. Known once a connection has been lent."""
        if self._arena is None:
            raise AssertionError("no connection has been opened yet")
        return self._arena

    @contextmanager
    def borrowed(self, ends_at: float) -> Iterator[HostLink]:
        """A connection for one call. One whose call fails is not used again, and the server then
        releases what it held for it.

        Raises:
            PathBroken: there is none, and nothing has been sent.
            TimeoutError: the server does not answer in time.
            Refusal: the server refuses the credential.
        """
        link = self._take(ends_at)
        try:
            yield link
        except BaseException:
            self._give_back(link, is_sound=False)
            raise
        self._give_back(link, is_sound=True)

    def close(self) -> None:
        """Calls under way end with OSError, those to come with PathBroken."""
        with self._lock:
            self._closed = True
            for link in self._idle:
                link.close()
            self._idle.clear()
            for link in self._busy:
                link.wire.interrupt()

    def _take(self, ends_at: float) -> HostLink:
        with self._lock:
            while self._idle:
                link = self._idle.pop()
                link.wire.must_end_at(ends_at)
                if link.wire.is_quiet():
                    self._busy.add(link)
                    return link
                link.close()
        try:
            link = self._connect(ends_at)
        except TimeoutError:
            # it is the server that is slow: it would be so on any path
            raise
        except (OSError, FrameError) as error:
            sentence = f"{self._path}: {error.strerror if isinstance(error, OSError) else error}"
            raise PathBroken(sentence, is_untouched=True) from error
        with self._lock:
            self._busy.add(link)
        # looked at after it can be seen: either `close` has interrupted it or this sees the end
        if self._closed:
            self._give_back(link, is_sound=False)
            raise PathBroken(f"{self._path}: the client is closed", is_untouched=True)
        return link

    def _give_back(self, link: HostLink, *, is_sound: bool) -> None:
        with self._lock:
            self._busy.discard(link)
            if is_sound and not self._closed and len(self._idle) < MAX_IDLE:
                self._idle.append(link)
                return
        link.close()

    def _connect(self, ends_at: float) -> HostLink:
        wire = UnixWire(self._path, ends_at)
        try:
            greeting, _ = wire.receive_with_fd()
            if frames.read_greeting(body_of(greeting, Kind.GREETING)) != self._nonce:
                raise FrameError("another server answers")
            wire.send(frames.pack_hello(self._token))
            answer, fd = wire.receive_with_fd()
            size = frames.read_number(Kind.ARENA, body_of(answer, Kind.ARENA))
            if fd is None:
                raise FrameError("ARENA came without a descriptor")
            self._see(fd, size)
        except BaseException:
            wire.close()
            raise
        return HostLink(wire)

    def _see(self, fd: int, size: int) -> None:
        with self._lock:
            if self._arena is None:
                self._arena = Arena(fd, size)
                return
            try:
                if not self._arena.is_of(fd):
                    raise FrameError("the arena is another one than before")
            finally:
                os.close(fd)


def body_of(answer: Answer, due: Kind) -> memoryview:
    """The body of a frame that must be of this kind. Raises Refusal, FrameError."""
    if answer.kind is Kind.ERROR:
        raise Refusal(answer.code, frames.read_error(answer.body))
    if answer.kind is not due:
        raise FrameError(f"{answer.kind.name} came, {due.name} is due")
    return answer.body


def ends_in(seconds: float) -> float:
    """That moment of the monotonic clock."""
    return time.monotonic() + seconds

"""A TCP connection that carries whole frames and long runs of bytes, each within a deadline.

The socket blocks and a wait is one system call however much it moves, or two: a thread that waits
for a whole prefix gives up Python's interpreter lock that often, not once a block. What bounds it
is SO_RCVTIMEO and SO_SNDTIMEO; Python's own timeouts would make the socket non-blocking.

Within such a call the system wakes the thread for every segment unless it is told not to: most of
what is received is waited for by SO_RCVLOWAT, a megabyte at a time.
"""

import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterable

from packkv_protos.bulk.frames import PREFIX, Frame, read_prefix

# The most buffers that one system call takes (IOV_MAX of Linux and macOS).
MAX_PARTS = 1024
READ_AHEAD_BYTES = 64 << 10
# While more than twice as much is due, a thread is woken for so many bytes.
WAKE_BYTES = 1 << 20
# A peer that vanished without a word is given up after so long.
SILENT_SECONDS = 20
_TIMEVAL = struct.Struct("@ll")

# Told how many bytes have come when a wait ends, also one that fails.
Count = Callable[[int], object]


class Wire:
    """One end of a connection; at most one thread uses it at a time, and any may `abort` it.

    Everything that moves bytes takes the time.monotonic() at which to give up, and raises OSError:
    TimeoutError then, ConnectionError when the other end is gone. The connection is of no further
    use after either.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ahead = memoryview(bytearray(READ_AHEAD_BYTES))
        self._first = self._last = 0
        self._wakes_for = 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_vanished_peers(sock)
        sock.setblocking(True)

    def fileno(self) -> int:
        return self._sock.fileno()

    def encrypt(self, context: ssl.SSLContext, host: str | None, ends_at: float) -> None:
        """TLS from here on: as the client of `host`, or as a server."""
        self._sock = context.wrap_socket(
            self._sock,
            server_side=host is None,
            server_hostname=host,
            do_handshake_on_connect=False,
        )
        self._sock.settimeout(_left(ends_at))
        self._sock.do_handshake()

    def send(self, parts: Iterable[bytes | memoryview], ends_at: float) -> None:
        """All bytes of the parts, in order."""
        rest = [memoryview(part) for part in parts if len(part)]
        rest.reverse()
        while rest:
            _drop(rest, self._send_some(rest[: -MAX_PARTS - 1 : -1], ends_at))

    def receive(
        self, parts: Iterable[memoryview], ends_at: float, count: Count | None = None
    ) -> None:
        """Fills the parts, in order. Fewer bytes are an error."""
        rest = [part for part in parts if len(part)]
        rest.reverse()
        total = left = sum(map(len, rest))
        try:
            while rest:
                received = self._receive_some(rest, left, ends_at)
                left -= received
                _drop(rest, received)
        finally:
            if count is not None:
                count(total - left)

    def receive_frame(self, ends_at: float) -> Frame:
        """The next frame. Raises FrameError as well, before reading a body that is too long."""
        self._fill_ahead(PREFIX.size, ends_at)
        kind, code, length = read_prefix(self._ahead[self._first : self._last])
        self._first += PREFIX.size
        body = memoryview(bytearray(length))
        self.receive([body], ends_at)
        return Frame(kind, code, body)

    def has_input(self) -> bool:
        """Whether something has come already: bytes, or the end of the connection."""
        if self._first < self._last:
            return True
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """Ends the waits of another thread, and the connection. Never blocks."""
        try:
            # of the base class: that of an SSLSocket would let the other thread read ciphertext
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more

    def close(self) -> None:
        """Gives the socket back; no thread may be using it."""
        self._sock.close()

    def _fill_ahead(self, size: int, ends_at: float) -> None:
        # whatever has come with the first bytes, so that a frame is mostly one system call
        kept = self._last - self._first
        self._ahead[:kept] = self._ahead[self._first : self._last]
        self._first, self._last = 0, kept
        while self._last < size:
            self._last += self._receive_now(self._ahead[self._last :], ends_at)

    def _send_some(self, parts: list[memoryview], ends_at: float) -> int:
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.settimeout(_left(ends_at))
            return self._sock.send(parts[0])
        self._limit(socket.SO_SNDTIMEO, ends_at)
        try:
            return self._sock.sendmsg(parts)
        except BlockingIOError as error:
            raise TimeoutError("the other end does not read") from error

    def _receive_some(self, rest: list[memoryview], left: int, ends_at: float) -> int:
        """Fills some of the parts, which are in reverse order and `left` bytes together."""
        if self._first < self._last:
            ready = self._ahead[self._first : self._last][: len(rest[-1])]
            rest[-1][: len(ready)] = ready
            self._first += len(ready)
            return len(ready)
        if isinstance(self._sock, ssl.SSLSocket):
            return self._receive_now(rest[-1], ends_at)
        self._limit(socket.SO_RCVTIMEO, ends_at)
        # so many bytes are still to come when this call ends, so that it cannot wait in vain
        behind = WAKE_BYTES if left > 2 * WAKE_BYTES else 0
        self._wake_for(max(1, behind))
        try:
            parts = _front(rest, left - behind)
            received = self._sock.recvmsg_into(parts, 0, socket.MSG_WAITALL)[0]
        except BlockingIOError as error:
            raise TimeoutError("the other end does not send") from error
        return _some(received)

    def _receive_now(self, into: memoryview, ends_at: float) -> int:
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.settimeout(_left(ends_at))
            return _some(self._sock.recv_into(into))
        self._limit(socket.SO_RCVTIMEO, ends_at)
        try:
            return _some(self._sock.recv_into(into))
        except BlockingIOError as error:
            raise TimeoutError("the other end does not send") from error

    def _wake_for(self, size: int) -> None:
        """From now on a thread that waits is woken for so many bytes, or when no more can come."""
        if size != self._wakes_for and sys.platform == "linux":
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._wakes_for = size

    def _limit(self, option: int, ends_at: float) -> None:
        seconds, rest = divmod(_left(ends_at), 1.0)
        # all zeros would mean no limit
        self._sock.setsockopt(
            socket.SOL_SOCKET, option, _TIMEVAL.pack(int(seconds), max(1, int(rest * 1e6)))
        )


def _front(rest: list[memoryview], size: int) -> list[memoryview]:
    """The next parts, of `size` bytes together, or as many parts as one system call takes."""
    parts = []
    for part in rest[: -MAX_PARTS - 1 : -1]:
        parts.append(part[:size])
        size -= len(parts[-1])
        if size == 0:
            break
    return parts


def _drop(rest: list[memoryview], size: int) -> None:
    """Takes the next `size` bytes off the parts, which are in reverse order."""
    while size:
        part = rest.pop()
        if size < len(part):
            rest.append(part[size:])
            break
        size -= len(part)


def _some(received: int) -> int:
    if received == 0:
        raise ConnectionResetError("the other end has closed the connection")
    return received


def _left(ends_at: float) -> float:
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError("no time left")
    return left


def _notice_vanished_peers(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        options = (
            (socket.TCP_KEEPIDLE, SILENT_SECONDS // 2),
            (socket.TCP_KEEPINTVL, SILENT_SECONDS // 4),
            (socket.TCP_KEEPCNT, 2),
            # also when the kernel at the other end lives and its process reads nothing
            (socket.TCP_USER_TIMEOUT, SILENT_SECONDS * 1000),
        )
        for option, value in options:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

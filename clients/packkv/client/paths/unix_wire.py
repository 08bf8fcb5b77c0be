"""Frames on a Unix socket, with as few hand-offs of the interpreter lock as can be.

A thread that lets go of the lock gets it back after up to 5 ms when another one computes. So what
the system does at once is asked of it without letting go (ctypes.PyDLL): sending, and receiving
what is there. An answer that takes longer is waited for in the usual way.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket
import time
from contextlib import suppress
from typing import Final, NamedTuple

from packkv_protos.shared_memory.frames import PREFIX, Kind, read_prefix

# How long an answer may be waited for with the lock in hand. A server answers for 100 blocks in
# less than 1 ms, and letting go would cost five times that as soon as another thread computes.
PATIENCE_MS: Final = 2
BUFFER_BYTES: Final = 64 << 10

_POLLIN: Final = 1


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class Answer(NamedTuple):
    """A frame that has arrived whole. `code` is the gRPC status code of an ERROR."""

    kind: Kind
    code: int
    body: memoryview


class UnixWire:
    """One connection, for one thread at a time.

    Every method raises OSError when the connection fails, TimeoutError (which is one) at the end
    that `must_end_at` has set, and FrameError when what comes is no frame.
    """

    def __init__(self, path: str, ends_at: float) -> None:
        self._libc = ctypes.PyDLL(None, use_errno=True)
        self._ends_at = ends_at
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._target = (ctypes.c_char * BUFFER_BYTES).from_buffer(self._buffer)
        # what has arrived and was not read yet
        self._arrived = self._buffer[:0]
        self._fds: list[int] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._wait_at_most()
            self._sock.connect(path)
        except OSError:
            self.close()
            raise

    def must_end_at(self, ends_at: float) -> None:
        """Everything from now on is over by then, in seconds of the monotonic clock."""
        self._ends_at = ends_at

    def is_quiet(self) -> bool:
        """Whether the server is there and, as it should, says nothing unasked."""
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        got = self._libc.recv(self._sock.fileno(), self._target, 1, flags)
        return got < 0 and ctypes.get_errno() == errno.EAGAIN and not self._arrived

    def send(self, frame: bytes, fd: int | None = None) -> None:
        """Sends a frame, and with its first byte a descriptor."""
        if fd is None:
            flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            sent = self._moved(self._libc.send(self._sock.fileno(), frame, len(frame), flags))
        else:
            self._wait_at_most()
            sent = socket.send_fds(self._sock, [frame], [fd])
        if sent < len(frame):
            self._wait_at_most()
            self._sock.sendall(memoryview(frame)[sent:])

    def receive(self, *, patience_ms: int = 0) -> Answer:
        """The next frame. Waits for `patience_ms` with the interpreter lock in hand."""
        prefix = self._take(PREFIX.size, patience_ms)
        kind, code, length = read_prefix(prefix)
        return Answer(kind, code, self._take(length, 0))

    def receive_with_fd(self) -> tuple[Answer, int | None]:
        """As `receive`, with the descriptor that came along, which is the caller's to close."""
        prefix = memoryview(bytearray(PREFIX.size))
        self._fill(prefix)
        kind, code, length = read_prefix(prefix)
        body = memoryview(bytearray(length))
        self._fill(body)
        return Answer(kind, code, body), self._fds.pop() if self._fds else None

    def interrupt(self) -> None:
        """Ends what another thread waits for here, with OSError."""
        # it may not be connected any more
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._sock.close()

    def _take(self, count: int, patience_ms: int) -> memoryview:
        """The next `count` bytes, a copy that stays."""
        whole = memoryview(bytearray(count))
        at = 0
        while True:
            part = self._arrived[: count - at]
            whole[at : at + len(part)] = part
            self._arrived = self._arrived[len(part) :]
            at += len(part)
            if at == count:
                return whole
            if len(whole) - at > BUFFER_BYTES:
                # what is large comes straight to where it belongs
                at += self._receive_into(whole[at:])
            else:
                self._refill(patience_ms)

    def _refill(self, patience_ms: int) -> None:
        number = self._sock.fileno()
        if patience_ms:
            waiting = _PollFd(number, _POLLIN, 0)
            self._libc.poll(ctypes.byref(waiting), ctypes.c_ulong(1), patience_ms)
        got = self._libc.recv(number, self._target, BUFFER_BYTES, socket.MSG_DONTWAIT)
        # the end of the stream, and all that is to be waited for, is found in the usual way
        if self._moved(got) == 0:
            got = self._receive_into(self._buffer)
        self._arrived = self._buffer[:got]

    def _receive_into(self, into: memoryview) -> int:
        self._wait_at_most()
        got = self._sock.recv_into(into)
        if got == 0:
            raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
        return got

    def _moved(self, result: int) -> int:
        """Bytes that a call moved, 0 when it would have had to wait."""
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number in (errno.EAGAIN, errno.EINTR):
            return 0
        raise OSError(number, os.strerror(number))

    def _fill(self, into: memoryview) -> None:
        while into:
            self._wait_at_most()
            got, ancillary, _, _ = self._sock.recvmsg_into(
                [into], socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds.extend(array.array("i", data[: len(data) // 4 * 4]))
            if got == 0:
                raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
            into = into[got:]

    def _wait_at_most(self) -> None:
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "no answer in time")
        self._sock.settimeout(left_s)

"""Frames and file descriptors on a Unix socket, for an event loop that no peer can block."""

import array
import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from packkv_protos.shared_memory.frames import PREFIX, FrameError, Kind, read_prefix

# Room for the descriptors of one frame; the kernel rounds up to two.
ANCILLARY_BYTES = socket.CMSG_SPACE(array.array("i").itemsize)


class Frame(NamedTuple):
    """A frame that has arrived whole. Its descriptor, if it has one, is the reader's to close."""

    kind: Kind
    body: memoryview
    fd: int | None


class Wire:
    """One connection. A frame that has begun must arrive, and be taken, within `stall_seconds`."""

    def __init__(self, sock: socket.socket, stall_seconds: float) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._fds: list[int] = []

    async def read(self, idle_seconds: float) -> Frame:
        """The next frame. Raises FrameError, EOFError when the peer is gone, TimeoutError when
        nothing begins within `idle_seconds`."""
        prefix = memoryview(bytearray(PREFIX.size))
        got = self._receive(prefix)
        if got == 0:
            async with asyncio.timeout(idle_seconds):
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
        async with asyncio.timeout(self._stall_seconds):
            await self._fill(prefix[got:])
            kind, _, length = read_prefix(prefix)
            body = memoryview(bytearray(length))
            await self._fill(body)
        if len(self._fds) > 1:
            raise FrameError(f"{kind.name} came with {len(self._fds)} descriptors")
        return Frame(kind, body, self._fds.pop() if self._fds else None)

    async def write(self, frame: bytes, fd: int | None = None) -> None:
        """Sends a frame, and with its first byte a descriptor. Raises OSError, TimeoutError."""
        left = memoryview(frame)
        async with asyncio.timeout(self._stall_seconds):
            while left:
                try:
                    sent = (
                        self._sock.send(left)
                        if fd is None
                        else socket.send_fds(self._sock, [left], [fd])
                    )
                except BlockingIOError:
                    await self._ready(self._loop.add_writer, self._loop.remove_writer)
                    continue
                left, fd = left[sent:], None

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._sock.close()

    async def _fill(self, into: memoryview) -> None:
        while into:
            got = self._receive(into)
            if got == 0:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            into = into[got:]

    def _receive(self, into: memoryview) -> int:
        """Bytes that are there, 0 when none are yet. Raises EOFError."""
        try:
            got, ancillary, flags, _ = self._sock.recvmsg_into(
                [into], ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            raise FrameError("more descriptors than any frame has")
        if got == 0:
            raise EOFError
        return got

    async def _ready(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        ready = self._loop.create_future()
        number = self._sock.fileno()
        add(number, _wake, ready)
        try:
            await ready
        finally:
            remove(number)


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)

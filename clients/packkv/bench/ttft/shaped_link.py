"""python -m packkv.bench.ttft.shaped_link BITS_PER_S HERE THERE PORT...: a link of that bandwidth.

Listens on the address HERE at each port, forwards to the same port of THERE, and says "listening".
All connections share the bandwidth, which each direction has for itself. The bytes go from socket
to pipe to socket inside the kernel (splice), so that the link takes little of the processor.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from packkv.bench.ttft.pace import Pace

# A piece is let through whole: about so long, and at least and at most so many bytes.
_PIECE_S: Final = 0.002
_LEAST_PIECE: Final = 16 << 10
_MOST_PIECE: Final = 1 << 20


class ShapedLink:
    """Forwards connections at one bandwidth until the process ends.

    Args:
        bytes_per_s: in each direction, all connections together.
        there: host that connections are forwarded to.
    """

    def __init__(self, bytes_per_s: float, there: str) -> None:
        self._there = there
        self._up, self._down = Pace(bytes_per_s), Pace(bytes_per_s)
        self._piece = int(min(_MOST_PIECE, max(_LEAST_PIECE, bytes_per_s * _PIECE_S)))

    def serve(self, here: str, port: int) -> socket.socket:
        """Forwards what connects to the port from now on; the socket that listens."""
        listener = socket.create_server((here, port))
        _thread(self._accept, listener)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection((self._there, listener.getsockname()[1]))
            except OSError:
                # as a link whose other end is down: the client sees its connection end
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _thread(self._forward, client, server, self._up)
            _thread(self._forward, server, client, self._down)

    def _forward(self, source: socket.socket, target: socket.socket, pace: Pace) -> None:
        pipe = os.pipe()
        try:
            with suppress(OSError):
                fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _MOST_PIECE)
            with suppress(OSError):
                self._splice(source, target, pipe, pace)
        finally:
            for fd in pipe:
                os.close(fd)
            # the other direction ends by itself, when its own source does
            for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
                with suppress(OSError):
                    end.shutdown(how)

    def _splice(
        self, source: socket.socket, target: socket.socket, pipe: tuple[int, int], pace: Pace
    ) -> None:
        ready_at = time.monotonic()
        while True:
            is_waiting = bool(select.select([source], [], [], 0)[0])
            count = os.splice(source.fileno(), pipe[1], self._piece)
            if count == 0:
                return
            # what had to be waited for was not ready when the link was
            ready_at = pace.pass_through(count, ready_at if is_waiting else time.monotonic())
            while count:
                count -= os.splice(pipe[0], target.fileno(), count)


def _thread(run: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=run, args=arguments, daemon=True).start()


def main() -> None:
    """Serves until it is ended."""
    bits_per_s, here, there, *ports = sys.argv[1:]
    link = ShapedLink(float(bits_per_s) / 8, there)
    listeners = [link.serve(here, int(port)) for port in ports]
    print("listening", flush=True)
    threading.Event().wait()
    del listeners


if __name__ == "__main__":
    main()

"""python -m packkv.bench.store.tcp_peer BYTES: the other end of a raw TCP connection.

Says "listening on PORT" and serves one connection after another: b"g" is answered with BYTES bytes,
b"p" and BYTES bytes with one. It does what a socket can and nothing else: no names, no checks.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

import numpy as np

GET: Final = b"g"
PUT: Final = b"p"
DONE: Final = b"."


def main() -> None:
    """Serves until it is ended."""
    # ones, not zeros: memory that was never written is not there yet
    memory = np.ones(int(sys.argv[1]), np.uint8).data
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"listening on {listener.getsockname()[1]}", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                serve(connection, memory)


def serve(connection: socket.socket, memory: memoryview) -> None:
    """Answers until the other end closes the connection."""
    while order := connection.recv(1):
        if order == GET:
            connection.sendall(memory)
        else:
            receive_all(connection, memory)
            connection.sendall(DONE)


def receive_all(connection: socket.socket, memory: memoryview) -> None:
    """Fills the memory. Raises ConnectionError when the other end closes the connection."""
    filled = 0
    # one call as a rule, but a signal may end it early
    while filled < len(memory):
        count = connection.recv_into(memory[filled:], 0, socket.MSG_WAITALL)
        if count == 0:
            raise ConnectionError(f"closed after {filled:,} of {len(memory):,} bytes")
        filled += count


if __name__ == "__main__":
    main()

"""Bytes arrive whole over a real socket, however they are cut; no wait outlasts its deadline."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Kind
from packkv_protos.bulk.wire import MAX_PARTS, WAKE_BYTES, Wire

PATIENCE_S = 60.0


@pytest.fixture
def ends() -> Iterator[tuple[Wire, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        # a test that goes wrong must not hang
        far.settimeout(PATIENCE_S)
        with near, far:
            yield Wire(near), far


class Running:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.failure: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ended(self) -> bool:
        self._thread.join(PATIENCE_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._call()
        except OSError as failure:
            self.failure = failure


def bytes_of(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def cut(data: bytes, size: int) -> list[memoryview]:
    """Empty memory for the data, in parts of that size."""
    return [memoryview(bytearray(len(data[at : at + size]))) for at in range(0, len(data), size)]


def wakes_for(wire: Wire) -> int:
    with socket.socket(fileno=os.dup(wire.fileno())) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


def soon() -> float:
    return time.monotonic() + PATIENCE_S


@pytest.mark.parametrize("more", [0, 1, WAKE_BYTES - 1, WAKE_BYTES + 1, 5 * WAKE_BYTES + 7])
@pytest.mark.parametrize("part", [WAKE_BYTES // MAX_PARTS, 3 * WAKE_BYTES])
def test_a_run_has_come_with_its_last_byte_and_waits_for_nothing_behind_it(
    ends: tuple[Wire, socket.socket], more: int, part: int
) -> None:
    wire, far = ends
    data = bytes_of(2 * WAKE_BYTES - 1 + more)
    parts = cut(data, part)
    told: list[int] = []
    receiving = Running(lambda: wire.receive(parts, soon(), told.append))
    far.sendall(data)
    # the connection stays open, and nothing more is said until the run has been taken
    assert receiving.ended()
    assert (receiving.failure, told) == (None, [len(data)])
    assert b"".join(parts) == data
    far.sendall(frames.pack(Kind.END))
    assert wire.receive_frame(soon()).kind is Kind.END


def test_what_came_with_a_frame_is_the_beginning_of_the_run(
    ends: tuple[Wire, socket.socket],
) -> None:
    wire, far = ends
    data = bytes_of(4 * WAKE_BYTES)
    sending = Running(lambda: far.sendall(frames.pack(Kind.END) + data))
    assert wire.receive_frame(soon()).kind is Kind.END
    parts = cut(data, 1 << 16)
    wire.receive(parts, soon())
    assert b"".join(parts) == data
    assert sending.ended()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every segment wakes")
def test_a_thread_is_woken_for_megabytes_while_much_is_due_and_for_a_byte_afterwards(
    ends: tuple[Wire, socket.socket],
) -> None:
    wire, far = ends
    data = bytes_of(4 * WAKE_BYTES)
    parts = cut(data, len(data))
    receiving = Running(lambda: wire.receive(parts, soon()))
    ends_at = soon()
    # a system with little memory for sockets makes less of it
    while wakes_for(wire) == 1:
        assert time.monotonic() < ends_at
        time.sleep(0.001)
    far.sendall(data)
    assert receiving.ended()
    assert wakes_for(wire) == 1


@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_a_buffer_smaller_than_what_is_waited_for_holds_nothing_up(piece: int) -> None:
    data = bytes_of(3 * WAKE_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            far.settimeout(PATIENCE_S)
            # as many segments as there are pieces
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire, parts = Wire(near), cut(data, 1 << 16)
            receiving = Running(lambda: wire.receive(parts, soon()))
            for at in range(0, len(data), piece):
                far.sendall(data[at : at + piece])
            assert receiving.ended()
    assert b"".join(parts) == data


@pytest.mark.parametrize("sent", [0, 1, WAKE_BYTES // 2, 3 * WAKE_BYTES])
def test_a_peer_that_stops_within_a_run_costs_the_deadline_and_what_came_is_told(
    ends: tuple[Wire, socket.socket], sent: int
) -> None:
    wire, far = ends
    Running(lambda: far.sendall(bytes_of(sent)))
    told: list[int] = []
    parts = cut(bytes(8 * WAKE_BYTES), WAKE_BYTES)
    with pytest.raises(TimeoutError):
        wire.receive(parts, time.monotonic() + 0.2, told.append)
    assert told[0] <= sent


@pytest.mark.parametrize("sent", [0, 1, 3 * WAKE_BYTES])
def test_a_peer_that_leaves_within_a_run_ends_the_wait(
    ends: tuple[Wire, socket.socket], sent: int
) -> None:
    wire, far = ends
    told: list[int] = []
    parts = cut(bytes(8 * WAKE_BYTES), WAKE_BYTES)
    receiving = Running(lambda: wire.receive(parts, soon(), told.append))
    far.sendall(bytes_of(sent))
    far.close()
    assert receiving.ended()
    assert isinstance(receiving.failure, ConnectionError)
    assert told == [sent]


def test_another_thread_can_end_the_wait(ends: tuple[Wire, socket.socket]) -> None:
    wire, far = ends
    receiving = Running(lambda: wire.receive(cut(bytes(4 * WAKE_BYTES), WAKE_BYTES), soon()))
    far.sendall(bytes_of(WAKE_BYTES))
    wire.abort()
    assert receiving.ended()
    assert isinstance(receiving.failure, ConnectionError)

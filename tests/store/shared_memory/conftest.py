"""A client of the shared-memory path that can say anything."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from packkv_protos.shared_memory import frames
from packkv_protos.shared_memory.frames import Kind
from tests.store.conftest import Payload, Process, connected, server_process


class Peer:
    """A client that can say anything; everything it waits for comes within a minute."""

    def __init__(self, path: Path, token: str | None = "") -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(path))
        self.fds: list[int] = []
        self.nonce = frames.read_greeting(self.hear(Kind.GREETING))
        self.arena_size = 0
        if token is not None:
            self.say(frames.pack_hello(token))

    def enter(self) -> Peer:
        self.arena_size = frames.read_number(Kind.ARENA, self.hear(Kind.ARENA))
        return self

    def say(self, data: bytes, *fds: int) -> None:
        socket.send_fds(self.sock, [data], fds) if fds else self.sock.sendall(data)

    def hear(self, due: Kind) -> memoryview:
        kind, _, body = self.frame()
        assert kind is due, bytes(body)
        return body

    def frame(self) -> tuple[Kind, int, memoryview]:
        kind, code, length = frames.read_prefix(self._exactly(frames.PREFIX.size))
        return kind, code, memoryview(self._exactly(length))

    def is_closed(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def locate(self, *blocks: Payload, lease_ms: int = 60_000) -> frames.Located:
        names = [block.chain_hash for block in blocks]
        self.say(frames.pack_locate(frames.Locate(lease_ms, (0, 0), (0, 0), names)))
        return frames.read_located(self.hear(Kind.LOCATED))

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part, fds, _, _ = socket.recv_fds(self.sock, count - len(data), 4)
            assert part, "the server closed the connection"
            self.fds += fds
            data += part
        return data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("socket") / "store.sock"


@pytest.fixture(scope="module")
def running(path: Path) -> Iterator[Process]:
    with server_process("--ram-bytes", "8MiB", "--shared-memory", str(path)) as process:
        yield process


@pytest.fixture
async def server(running: Process) -> Process:
    """A server that has nothing. It survives every test."""
    async with connected(running.address) as client:
        await client.clear()
    return running

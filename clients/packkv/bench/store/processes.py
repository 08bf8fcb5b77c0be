"""The other ends: a store that keeps its blocks in RAM, a Redis, a raw TCP peer."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packkv.demo.processes import Child

_START_S: Final = 60.0
_STORE_LISTENS: Final = "packkv-store listening on "
_REDIS_IS_READY: Final = "Ready to accept connections"
_PEER_LISTENS: Final = "listening on "


class RamStore(Child):
    """A store of one node on a free port of loopback, without a disk. Its RAM tier is mapped and
    touched when it listens.

    Args:
        name: for people, and of its log in `folder`.
        ram_bytes: of its RAM tier.
        flags: more flags of the server.
    """

    def __init__(self, name: str, folder: Path, ram_bytes: int, flags: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "packkv_store", "--listen", "127.0.0.1:0"]
        super().__init__(name, [*command, "--ram-bytes", str(ram_bytes), *flags], folder)
        self.address = _listening(self, _STORE_LISTENS)


class RedisServer(Child):
    """A Redis on a free port of loopback that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        # unlike our own, it cannot be asked for any free port
        self.port = free_port()
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(folder)]
        super().__init__("redis-server", command, folder)
        _listening(self, _REDIS_IS_READY)

    @staticmethod
    def is_installed() -> bool:
        """Whether there is one to start, and a client for it."""
        try:
            import redis  # noqa: F401
        except ImportError:
            return False
        return shutil.which("redis-server") is not None


class TcpPeer(Child):
    """The raw TCP peer of `packkv.bench.store.tcp_peer`: `total_bytes` there, as many back."""

    def __init__(self, folder: Path, total_bytes: int) -> None:
        command = [sys.executable, "-m", "packkv.bench.store.tcp_peer", str(total_bytes)]
        super().__init__("the raw TCP peer", command, folder)
        self.port = int(_listening(self, _PEER_LISTENS))


class FetchingClient(Child):
    """A client process of `packkv.bench.store.fetching_client`."""

    def __init__(self, name: str, folder: Path) -> None:
        command = [sys.executable, "-m", "packkv.bench.store.fetching_client"]
        super().__init__(name, command, folder)

    def _ask_to_end(self) -> None:
        # the end of its input is its word to leave
        assert self.process.stdin is not None
        self.process.stdin.close()


def free_port() -> int:
    """A port of loopback that is free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listening(child: Child, words: str) -> str:
    """What the child says behind these words; a child that does not say them is stopped."""
    try:
        while words not in (line := child.hear(_START_S)):
            pass
    except BaseException:
        child.stop()
        raise
    return line.partition(words)[2].strip()

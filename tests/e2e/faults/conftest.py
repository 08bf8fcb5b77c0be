"""Stores that are to fail, clients that have one path to them, and a network that breaks."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from packkv.client import Client, ClientConfig, Fetched
from packkv.client.config import PATHS
from packkv_kernels.config import CacheShape
from tests.clients.conftest import StoreProcess, Worker
from tests.clients.conftest import worker as small_worker
from tests.store.conftest import Payload

__all__ = ["small_worker"]

# A machine that does other work is slow, and that is no fault: what is awaited may take so long.
PATIENCE_S = 60.0
# Everything of 127.0.0.0/8 is this machine: the same ports once more, with a proxy behind them.
PROXY_HOST = "127.0.0.2"

Connect = Callable[..., Client]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """Each way to move payloads."""
    if request.param == "shared-memory" and sys.platform != "linux":
        pytest.skip("a path of Linux")
    return str(request.param)


@pytest.fixture
def connect(path: str) -> Iterator[Connect]:
    """Opens clients that have this path and no other."""
    opened: list[Client] = []

    def connect(target: str, **settings: object) -> Client:
        values = {"paths": (path,), "breaker_failures": 1_000_000, "transfer_deadline_s": 30.0}
        config = ClientConfig(**(values | settings))  # type: ignore[arg-type]
        opened.append(Client(target, config=config))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


StartStore = Callable[..., StoreProcess]


@pytest.fixture
def start_store(tmp_path: Path) -> Iterator[StartStore]:
    """Starts stores with these flags; they may be paused, killed and started again."""
    started: list[StoreProcess] = []

    def start(*flags: str, data_dir: Path | None = None) -> StoreProcess:
        folder = data_dir or tmp_path / f"store-{len(started)}"
        started.append(StoreProcess(folder, flags))
        return started[-1].start()

    yield start
    for store in started:
        with suppress(ProcessLookupError):
            store.resume()
        store.kill()


@pytest.fixture
def worker(small_worker: Worker) -> Worker:
    """One whose payloads are mostly sections, 64 of about 600 bytes."""
    shape = CacheShape(layers=8, heads=8, head_dim=16)
    return Worker(small_worker.namespace, small_worker.codec, shape)


def until(holds: Callable[[], bool], says: str = "it never came true") -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_at, says
        threading.Event().wait(0.02)


def named(prefix: list[Payload]) -> list[tuple[bytes, bytes]]:
    return [(block.chain_hash, block.data) for block in prefix]


def names(prefix: list[Payload]) -> list[bytes]:
    return [block.chain_hash for block in prefix]


def contents(blocks: list[Fetched]) -> list[bytes | None]:
    return [None if block.data is None else bytes(block.data) for block in blocks]


def pid_of(store: StoreProcess) -> int:
    assert store.process is not None
    return store.process.pid


def port_of(store: StoreProcess) -> int:
    return int(store.target.rpartition(":")[2])


@dataclass
class Fault:
    """What a proxy does to the byte number `at` of one direction: flips a bit, or ends it all."""

    kind: str
    is_up: bool
    at: int
    has_struck: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def meet(self, data: bytes, is_up: bool) -> bytes | None:
        with self._lock:
            if self.has_struck or is_up is not self.is_up:
                return data
            if self.at >= len(data):
                self.at -= len(data)
                return data
            self.has_struck = True
        if self.kind == "cut":
            return None
        changed = bytearray(data)
        changed[self.at] ^= 1 << self.at % 8
        return bytes(changed)


class Proxy:
    """TCP from a port of `PROXY_HOST` to the same port of this machine, with faults on the way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((PROXY_HOST, port))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()
        self.fault: Fault | None = None

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE_S)
        self._listener.close()
        for one in self._sockets:
            _end(one)
        for thread in self._threads[1:]:
            thread.join(PATIENCE_S)
        for one in self._sockets:
            one.close()

    def _serve(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            self._sockets.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                _end(near)
                continue
            self._sockets.append(far)
            for pair in ((near, far, True), (far, near, False)):
                self._threads.append(threading.Thread(target=self._pump, args=pair))
                self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                fault = self.fault
                passed = fault.meet(data, is_up) if fault is not None else data
                if passed is None:
                    break
                sink.sendall(passed)
        _end(source)
        _end(sink)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


@dataclass
class Network:
    """The way to a store on which bytes can be flipped or cut: a gRPC port and a bulk port."""

    target: str
    proxies: list[Proxy]

    def strike(self, fault: Fault | None) -> None:
        for proxy in self.proxies:
            proxy.fault = fault


@pytest.fixture
def networked(start_store: StartStore) -> Iterator[tuple[StoreProcess, Network]]:
    """A store, and a network to it that breaks when told."""
    if sys.platform != "linux":
        pytest.skip("needs a second loopback address")
    store = start_store("--shared-memory", "off")
    # gRPC's is known, that of the bulk path is the other one
    ports = {
        connection.laddr.port
        for connection in psutil.Process(pid_of(store)).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert port_of(store) in ports
    proxies = [Proxy(port) for port in sorted(ports)]
    yield store, Network(f"{PROXY_HOST}:{port_of(store)}", proxies)
    for proxy in proxies:
        proxy.close()

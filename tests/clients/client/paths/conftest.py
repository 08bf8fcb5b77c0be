"""Clients that have one path and no other, and what the tests of all paths share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from packkv.client import Client, ClientConfig, Fetched
from packkv.client.config import PATHS
from packkv.errors import StoreError
from tests.clients.conftest import StoreProcess
from tests.store.conftest import Payload

Connect = Callable[..., Client]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(path: str) -> Iterator[Connect]:
    """Opens clients that have this path and no other."""
    opened: list[Client] = []

    def connect(target: str, **settings: object) -> Client:
        config = ClientConfig(**({"paths": (path,)} | settings))  # type: ignore[arg-type]
        opened.append(Client(target, config=config))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def client(store: StoreProcess, connect: Connect) -> Client:
    return connect(store.target)


@pytest.fixture
def plain(store: StoreProcess) -> Iterator[Client]:
    """The path that the others are compared with."""
    with Client(store.target, config=ClientConfig(paths=("grpc",))) as client:
        yield client


def named(prefix: list[Payload]) -> list[tuple[bytes, bytes]]:
    return [(block.chain_hash, block.data) for block in prefix]


def names(prefix: list[Payload]) -> list[bytes]:
    return [block.chain_hash for block in prefix]


def payloads(blocks: list[Fetched]) -> list[bytes | None]:
    return [bytes(block.data) if block.data is not None else None for block in blocks]


def contents(blocks: list[Fetched]) -> list[object]:
    return [(bytes(b.data), b.received) if b.data is not None else b.miss for b in blocks]


def has_all(client: Client, prefix: list[Payload]) -> bool:
    try:
        return payloads(client.get(names(prefix))) == [b.data for b in prefix]
    except StoreError:
        return False


def takes(client: Client, prefix: list[Payload]) -> bool:
    try:
        client.put(named(prefix))
    except StoreError:
        return False
    return True


def until(holds: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.01)

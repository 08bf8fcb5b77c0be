"""Ways to move all blocks to another process and back, with one call each."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from packkv.bench.store.blocks import Blocks
from packkv.bench.store.processes import RedisServer, TcpPeer
from packkv.bench.store.tcp_peer import GET, PUT, receive_all
from packkv.client import Client, ClientConfig, PutStatus
from packkv.client.paths import Buffer
from packkv.errors import PackKVError

_TIMEOUT_S = 60.0


class WrongResult(PackKVError):
    """Something did not do what it is measured at: its time would mean nothing."""


class Mover(Protocol):
    """One way. `others` are the processes at the other end, if they are on this machine."""

    name: str
    others: tuple[int, ...]

    def clear(self) -> None:
        """Make the other end forget all blocks, so that a Put has something to do."""

    def put(self) -> None:
        """All blocks to the other end."""

    def get(self) -> Sequence[Buffer]:
        """All payloads from it."""

    def close(self) -> None:
        """Give the connection back."""


class StoreMover:
    """One data path of a store.

    Args:
        path: one of `ClientConfig.paths`; no other is used.
        target: the store.
        config: of the client but for its paths.
        blocks: what is moved.
        others: the store's process.
    """

    def __init__(
        self, path: str, target: str, config: ClientConfig, blocks: Blocks, others: tuple[int, ...]
    ) -> None:
        self.name = path
        self.others = others
        self._client = Client(target, config=config)
        self._root_hash = blocks.root_hash
        self._names = blocks.names
        self._pairs = blocks.pairs

    def open(self) -> None:
        """Opens the path. Raises StoreUnavailable when it cannot be had."""
        self.clear()
        self._client.get(self._names[:1])

    def clear(self) -> None:
        self._client.clear(self._root_hash)

    def put(self) -> None:
        for result in self._client.put(self._pairs):
            if result.status is not PutStatus.STORED:
                raise WrongResult(f"{self.name}: a block was {result.status}: {result.reason}")

    def get(self) -> Sequence[Buffer]:
        found = [block.data for block in self._client.get(self._names)]
        missing = sum(data is None for data in found)
        if missing:
            raise WrongResult(f"{self.name}: {missing} of {len(found)} blocks are missing")
        return [data for data in found if data is not None]

    def close(self) -> None:
        self._client.close()


class TcpMover:
    """A socket, and memory that both ends have touched: as much as any remote path could do."""

    name = "tcp"

    def __init__(self, peer: TcpPeer, blocks: Blocks) -> None:
        self.others: tuple[int, ...] = (peer.process.pid,)
        self._socket = socket.create_connection(("127.0.0.1", peer.port), _TIMEOUT_S)
        # with a timeout Python would poll, and MSG_WAITALL not wait for all
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lengths = [len(payload) for payload in blocks.payloads]
        self._sent = np.frombuffer(b"".join(blocks.payloads), np.uint8).data
        self._received = np.ones(blocks.total_bytes, np.uint8).data

    def clear(self) -> None:
        """It keeps nothing but the last bytes."""

    def put(self) -> None:
        self._socket.sendall(PUT)
        self._socket.sendall(self._sent)
        if not self._socket.recv(1):
            raise WrongResult("tcp: the peer closed the connection")

    def get(self) -> Sequence[Buffer]:
        self._socket.sendall(GET)
        receive_all(self._socket, self._received)
        ends = np.cumsum([0, *self._lengths]).tolist()
        return [self._received[first:end] for first, end in pairwise(ends)]

    def close(self) -> None:
        self._socket.close()


class RedisMover:
    """The same blobs in a Redis, with the client that Python programs use: SETs in one pipeline,
    one MGET, parsed by hiredis."""

    name = "redis"

    def __init__(self, server: RedisServer, blocks: Blocks) -> None:
        from redis import Redis

        self.others: tuple[int, ...] = (server.process.pid,)
        self._redis: Any = Redis("127.0.0.1", server.port, socket_timeout=_TIMEOUT_S)
        self._names = blocks.names
        self._pairs = [(name, memoryview(payload)) for name, payload in blocks.pairs]

    def clear(self) -> None:
        self._redis.flushall()

    def put(self) -> None:
        with self._redis.pipeline(transaction=False) as pipeline:
            for name, payload in self._pairs:
                pipeline.set(name, payload)
            if not all(pipeline.execute()):
                raise WrongResult("redis: a SET was refused")

    def get(self) -> Sequence[Buffer]:
        found: list[bytes | None] = self._redis.mget(self._names)
        if None in found:
            raise WrongResult("redis: a blob is missing")
        return [blob for blob in found if blob is not None]

    def close(self) -> None:
        self._redis.close()

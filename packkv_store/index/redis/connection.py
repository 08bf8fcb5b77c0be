"""One round trip to Redis, whichever kind it is: keys and scripts in, answers or IndexDown out."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection as PlainConnection
from redis.asyncio.connection import UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from packkv_store.errors import ConfigError
from packkv_store.index.redis.layout import SHARDS
from packkv_store.index.redis.url import RedisUrl

MAX_CONNECTIONS = 16
# The deadline of what nobody waits for is so many times longer.
PATIENT = 5.0
QUICK_FROM = 32
Command = tuple[Any, ...]
# what redis-py and asyncio raise when Redis is gone, slow, still loading or refuses
FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError, asyncio.IncompleteReadError)


class IndexDown(Exception):
    """Redis did not answer in time, or not well."""


class _QuickPacking:
    """redis-py packs a command of thousands of keys in Python; hiredis does it ten times faster."""

    def pack_command(self, *args: Any) -> list[bytes]:
        if len(args) < QUICK_FROM:
            packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
            return packed
        return [hiredis.pack_command(args)]


class QuickConnection(_QuickPacking, PlainConnection):
    """To one server, over TCP."""


class QuickTlsConnection(_QuickPacking, SSLConnection):
    """To one server, encrypted."""


class QuickUnixConnection(_QuickPacking, UnixDomainSocketConnection):
    """To one server on this machine."""


class Connection:
    """A pool of connections to one Redis. Each call ends within its deadline."""

    def __init__(self, url: RedisUrl, deadline_seconds: float) -> None:
        self._url = url
        self._deadline = deadline_seconds
        self._cluster: RedisCluster | None = None
        self._redis: Redis | None = None
        self._sentinels: list[Redis] = []
        # more callers than connections wait their turn, within their own deadline
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._open()

    @property
    def shards(self) -> int:
        """Parts that may be lost alone: one server is one."""
        return SHARDS if self._cluster is not None else 1

    async def together(self, commands: Sequence[Command], patience: float = 1.0) -> list[Any]:
        """The answers to commands that are sent at once: one round trip, to each master of a
        cluster in parallel. `patience` multiplies the deadline. Raises IndexDown."""
        if not commands:
            return []
        try:
            async with asyncio.timeout(self._deadline * patience), self._turns:
                return await self._run(commands)
        except FAILURES as error:
            # the text of an error may hold a command, and that an AUTH: its name is enough
            raise IndexDown(type(error).__name__) from None

    async def names(self, count: int) -> AsyncIterator[list[bytes]]:
        """All keys, about `count` at a time. Raises IndexDown."""
        redis = self._cluster or self._redis
        assert redis is not None
        names, batch = aiter(redis.scan_iter(count=count)), list[bytes]()
        while True:
            try:
                async with asyncio.timeout(self._deadline * PATIENT):
                    batch.append(await anext(names))
            except StopAsyncIteration:
                break
            except FAILURES as error:
                raise IndexDown(type(error).__name__) from None
            if len(batch) >= count:
                yield batch
                batch = []
        if batch:
            yield batch

    async def close(self) -> None:
        for redis in (self._cluster, self._redis, *self._sentinels):
            if redis is not None:
                await redis.aclose()

    async def _run(self, commands: Sequence[Command]) -> list[Any]:
        redis = self._cluster or self._redis
        assert redis is not None
        if len(commands) == 1:
            return [await redis.execute_command(*commands[0])]
        if self._cluster is not None:
            return await self._run_on_cluster(self._cluster, commands)
        assert self._redis is not None
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute())

    async def _run_on_cluster(
        self, cluster: RedisCluster, commands: Sequence[Command]
    ) -> list[Any]:
        await cluster.initialize()
        async with cluster.pipeline() as pipeline:
            for command in commands:
                # else redis-py computes the slot of each of thousands of keys
                master = cluster.get_node_from_key(_first_key(command))
                pipeline.execute_command(*command, target_nodes=master)
            return list(await pipeline.execute())

    def _open(self) -> None:
        url = self._url
        common: dict[str, Any] = {
            "socket_connect_timeout": self._deadline,
            # each call has its own deadline; and with one of redis-py's, Python 3.11 may lose the
            # cancellation of a call that is just being written
            "socket_timeout": None,
            # once, for a pooled connection that Redis has closed meanwhile
            "retry": Retry(NoBackoff(), 1),
            "username": url.user,
            "password": url.password,
            "protocol": 2,
        }
        if url.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in url.addresses]
            self._cluster = RedisCluster(
                startup_nodes=nodes,
                require_full_coverage=False,
                max_connections=MAX_CONNECTIONS,
                # one that hangs must leave time to ask another for the map of the cluster
                **common | {"socket_timeout": 2 * self._deadline},
                **_tls_options(url),
            )
            return
        common["db"] = url.db
        if url.kind == "sentinel":
            sentinel = Sentinel(  # type: ignore[no-untyped-call]
                list(url.addresses),
                sentinel_kwargs={
                    "protocol": 2,
                    "socket_connect_timeout": self._deadline,
                    "socket_timeout": self._deadline,
                    "username": url.sentinel_user,
                    "password": url.sentinel_password,
                    **_tls_options(url),
                },
                **common,
                **_tls_options(url),
            )
            self._sentinels = sentinel.sentinels
            self._redis = sentinel.master_for(url.service, Redis)
            return
        self._redis = Redis.from_pool(_pool(url, common))


def _first_key(command: Command) -> Any:
    return command[3] if command[0] == "EVAL" else command[1]


def _pool(url: RedisUrl, common: dict[str, Any]) -> BlockingConnectionPool:
    kind: Any = QuickConnection
    if url.socket is not None:
        kind, common = QuickUnixConnection, common | {"path": url.socket}
    else:
        [(host, port)] = url.addresses
        common = common | {"host": host, "port": port}
    if url.tls:
        kind, common = QuickTlsConnection, common | _tls_options(url)
        common.pop("ssl")
    return BlockingConnectionPool(MAX_CONNECTIONS, connection_class=kind, **common)


def _tls_options(url: RedisUrl) -> dict[str, Any]:
    if not url.tls:
        return {}
    for path in (url.ca, url.cert, url.key):
        if path is not None and not path.is_file():
            raise ConfigError(f"index: there is no file {path}")
    options: dict[str, Any] = {"ssl": True, "ssl_min_version": ssl.TLSVersion.TLSv1_2}
    names: Iterable[tuple[str, Any]] = [
        ("ssl_ca_certs", url.ca),
        ("ssl_certfile", url.cert),
        ("ssl_keyfile", url.key),
    ]
    return options | {name: str(path) for name, path in names if path is not None}

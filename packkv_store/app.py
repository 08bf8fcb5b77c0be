"""The composition root: the one place that knows all the parts and puts them together."""

import asyncio
import json
import logging
import secrets
import tomllib
import uuid
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, start_http_server

from packkv_protos.v1 import admin_pb2, block_store_pb2
from packkv_store.bulk import Bulk
from packkv_store.clock import Clock, SystemClock
from packkv_store.cluster.borrowed import BorrowedLeases
from packkv_store.cluster.cluster_store import ClusterStore
from packkv_store.cluster.drain import Drain, HandedOver
from packkv_store.cluster.own_store import OwnStore
from packkv_store.cluster.puller import Puller
from packkv_store.cluster.replicas import Replicas
from packkv_store.cluster.shared_profiles import SharedProfiles
from packkv_store.config import StoreConfig, split_address
from packkv_store.errors import ConfigError, Leaving, TierFailure
from packkv_store.index import Index
from packkv_store.index.embedded import EmbeddedIndex
from packkv_store.index.redis.redis_index import RedisIndex
from packkv_store.index.redis.url import RedisUrl
from packkv_store.lease import LeaseTable
from packkv_store.lifetimes import NEVER, Lifetimes
from packkv_store.metrics import CallMetrics, MeteredStore, PaceCollector, StoreCollector
from packkv_store.pace import Pace, PacedStore
from packkv_store.peers.bulk_pull import BulkPull
from packkv_store.peers.channels import Channels
from packkv_store.peers.grpc_peers import GrpcPeers
from packkv_store.profiles import Profiles
from packkv_store.quotas import Quotas
from packkv_store.rpc.admin import AdminService
from packkv_store.rpc.block_store import BlockStoreService
from packkv_store.rpc.request import MAX_HASHES, MAX_PROFILE_BYTES
from packkv_store.shared_memory import SharedMemory
from packkv_store.store.block_store import BlockStore
from packkv_store.store.expiry import Expiry
from packkv_store.store.promotion import Promotion
from packkv_store.store.residents import Residents
from packkv_store.store.threads import Threads
from packkv_store.tenant import Access, Tenant
from packkv_store.tiers.disk import DiskTier
from packkv_store.tiers.ram import RamTier

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 1.0
MAX_PROFILES_BYTES = 256 << 20
# The largest message is a profile; the largest list of hashes is 0.6 MiB.
MAX_MESSAGE_BYTES = MAX_PROFILE_BYTES + (64 << 10)
AHEAD_BYTES = 2 << 20
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # a second server on the port must fail, not share it
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # what a Put may send ahead of what is taken from it; gRPC's own guess, which grows when this
    # process is busy, had 60 MiB a stream
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", AHEAD_BYTES),
]
MAX_CALLS = 1024
NONCE_BYTES = 16
LEAST_ARENA_BYTES = 1 << 20
SERVICES = [
    block_store_pb2.DESCRIPTOR.services_by_name["BlockStore"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
]


class App:
    """One server: `await start()`, then `await stop()`. The port is known once it has started."""

    def __init__(self, config: StoreConfig, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._access = load_access(config.tokens_file)
        self._disk = _disk_tier(config, self._clock)
        self._arenas = _arenas(config, self._access.tenants)
        self._threads = Threads(config.io_threads)
        self._node = _node(config.data_dir)
        self._index = _index(config, self._node)
        self._peers = _peers(config)
        self.store = self._build_store()
        self._callers = _callers(self._access)
        self._drain = Drain(self.store, self._index, self._peers, self._callers)
        self._cluster = self._build_cluster()
        self._pace = Pace(self._access.tenants, self._clock)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        self._paths = block_store_pb2.PathsReply()
        self._bulk: Bulk | None = None
        self._shared_memory: SharedMemory | None = None
        self._housekeeping: list[asyncio.Task[None]] = []
        self._metrics: WSGIServer | None = None
        self.port = 0
        self.metrics_port = 0

    @property
    def address(self) -> str:
        """Where it listens, with the port that was taken."""
        return f"{self._config.listen.rpartition(':')[0]}:{self.port}"

    @property
    def bulk_port(self) -> int:
        """Where the bulk path listens; 0: nowhere."""
        return self._paths.bulk_port

    async def start(self) -> None:
        """Serves from here on. Raises ConfigError when it cannot listen."""
        await self.store.residents.recover()
        registry = CollectorRegistry()
        registry.register(PaceCollector(self._pace))
        calls = CallMetrics(registry)
        seconds = self._config.stream_seconds
        paced = PacedStore(self._cluster or self.store, self._pace, self._clock, seconds)
        metered = MeteredStore(paced, registry, calls)
        try:
            # nodes wait for nobody's rate; of one that is alone nobody else is a node
            among = metered if self._cluster is None else MeteredStore(self.store, registry, calls)
            own = self._own(among)
            await self._open_paths(metered, own)
            self._serve_calls(metered, own)
            self.port = self._bind()
        except BaseException as error:
            await self._close_paths(0.0)
            if isinstance(error, RuntimeError):
                raise ConfigError(f"cannot listen on {self._config.listen}: {error}") from None
            raise
        await self._server.start()
        if self._cluster is not None:
            await self._cluster.profiles.announce()
        await self._index.start(self._config.advertised(self.port))
        self._serve_metrics(metered)
        self._keep_house()
        await self._report_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Hands over what would be lost, takes no more calls, lets running ones end within the
        grace, flushes, closes."""
        await self._report_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        # a watcher would wait for as long as it may
        self.store.residents.events.close()
        # a disk comes back with its blocks
        comes_back = self._config.data_dir is not None
        with suppress(Leaving):
            await self._drain.leave(self._config.drain_seconds, comes_back=comes_back)
        # from here on no other node is sent here
        grace = self._config.grace_seconds
        await asyncio.gather(self._server.stop(grace), self._close_paths(grace))
        for task in self._housekeeping:
            task.cancel()
        if self._cluster is not None:
            await self._cluster.puller.stop()
        await self.store.residents.tasks.settle()
        with suppress(TierFailure):
            await self.store.residents.flush()
        await self._peers.close()
        self.close()

    async def drain(self, seconds: float) -> HandedOver:
        """Out of service for good, calls are answered until `stop`: hands over for as long as that,
        or as the settings say if it is 0. Raises Leaving when it is stopped meanwhile."""
        await self._report_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        return await self._drain.leave(seconds or self._config.drain_seconds, comes_back=False)

    def close(self) -> None:
        """Gives everything back to the system."""
        if self._metrics is not None:
            self._metrics.shutdown()
            self._metrics.server_close()
        self._threads.close()
        for arena in self._arenas.values():
            arena.close()
        if self._disk is not None:
            self._disk.close()

    def _build_store(self) -> BlockStore:
        config, clock, node, index = self._config, self._clock, self._node, self._index
        leases = LeaseTable(clock, config.max_leases, config.lease_seconds)
        lifetimes = Lifetimes(config.data_dir / "lifetimes" if config.data_dir else None)
        residents = Residents(
            node,
            self._arenas,
            self._disk,
            index,
            leases,
            clock,
            self._threads,
            Expiry(clock, config.ttl_seconds or NEVER, lifetimes.all()),
            _disk_shares(self._access.tenants),
        )
        profiles = config.data_dir / "profiles" if config.data_dir else None
        return BlockStore(
            node=node,
            version=version("packkv"),
            clock=clock,
            started_at=clock.monotonic(),
            leases=leases,
            residents=residents,
            promotion=Promotion(residents, self._threads, config.io_threads),
            profiles=Profiles(profiles, MAX_PROFILES_BYTES),
            own_lifetimes=lifetimes,
            run=self._threads,
            max_block_bytes=config.max_block_bytes,
            max_blocks=MAX_HASHES,
            sync=config.sync,
        )

    def _build_cluster(self) -> ClusterStore | None:
        """What makes this node one of many, unless it is alone."""
        if self._config.is_alone:
            return None
        store, residents = self.store, self.store.residents
        puller = Puller(self._index, self._peers, store.take_over, residents.tasks, residents.tally)
        return ClusterStore(
            inner=store,
            index=self._index,
            peers=self._peers,
            puller=puller,
            profiles=SharedProfiles(store, store.profiles, self._index, self._peers, self._node),
            borrowed=BorrowedLeases(self._config.max_leases),
            callers=self._callers,
            replicas=self._build_replicas(),
        )

    def _build_replicas(self) -> Replicas | None:
        copies, tally = self._config.replicas - 1, self.store.residents.tally
        return Replicas(self._node, copies, self._index, self._peers, tally) if copies else None

    def _own(self, metered: MeteredStore) -> OwnStore:
        puller = self._cluster.puller if self._cluster is not None else None
        return OwnStore(metered, self._index, self.store.residents, self._drain, puller)

    def _keep_house(self) -> None:
        work = [self.store.keep_house(HOUSEKEEPING_SECONDS)]
        if self._cluster is not None and self._cluster.replicas is not None:
            work.append(self._cluster.replicas.keep_copying())
        self._housekeeping = [asyncio.ensure_future(one) for one in work]

    async def _open_paths(self, metered: MeteredStore, own: OwnStore) -> None:
        """The ways to move payloads beside gRPC: each says the nonce before anything else."""
        self._paths.nonce = secrets.token_bytes(NONCE_BYTES)
        self._bulk = Bulk(metered, own, self._access, self._config, self._paths.nonce)
        await self._bulk.start()
        self._paths.bulk_port = self._bulk.port
        self._shared_memory = SharedMemory(metered, self._access, self._config, self._paths.nonce)
        await self._shared_memory.start()
        self._paths.shared_memory_socket = self._shared_memory.path

    async def _close_paths(self, grace: float) -> None:
        paths = [path for path in (self._bulk, self._shared_memory) if path is not None]
        await asyncio.gather(*(path.stop(grace) for path in paths))

    def _serve_calls(self, metered: MeteredStore, own: OwnStore) -> None:
        blocks = BlockStoreService(
            metered, own, self._access, self._config.stream_seconds, self._paths
        )
        quotas = Quotas(self._access.tenants, self.store.residents, self._pace)
        admin = AdminService(metered, self._access, quotas, self.drain)
        self._server.add_generic_rpc_handlers((blocks.handler(), admin.handler()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)

    def _bind(self) -> int:
        config = self._config
        if config.tls_cert is None or config.tls_key is None:
            return self._server.add_insecure_port(config.listen)
        authorities = config.tls_client_ca.read_bytes() if config.tls_client_ca else None
        credentials = grpc.ssl_server_credentials(
            [(config.tls_key.read_bytes(), config.tls_cert.read_bytes())],
            root_certificates=authorities,
            require_client_auth=authorities is not None,
        )
        return self._server.add_secure_port(config.listen, credentials)

    def _serve_metrics(self, metered: MeteredStore) -> None:
        if self._config.metrics_listen is None:
            return
        host, port = split_address(self._config.metrics_listen)
        exposed = CollectorRegistry()
        exposed.register(StoreCollector(metered, asyncio.get_running_loop()))
        cert, key = self._config.tls_cert, self._config.tls_key
        server, _ = start_http_server(
            port,
            host,
            exposed,
            certfile=str(cert) if cert else None,
            keyfile=str(key) if key else None,
        )
        self._metrics = server
        self.metrics_port = server.server_port
        log.info("metrics on port %d", server.server_port)

    async def _report_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)


def load_access(path: Path | None) -> Access:
    """Who may call, from a tokens file. Without one, everybody. Raises ConfigError."""
    if path is None:
        return Access({})
    try:
        text = path.read_text()
        tokens = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokens_file {path}: {error}") from None
    return Access.from_tokens(tokens.get("tenants", {}))


def _arenas(config: StoreConfig, tenants: Sequence[Tenant]) -> dict[bytes, RamTier]:
    """An arena for each tenant, together the RAM tier: what one stores takes nothing from another,
    and its memory can be shown to it alone."""
    total = sum(tenant.ram for tenant in tenants)
    if total == 0:
        raise ConfigError("tokens file: ram of every tenant is 0; one at least needs RAM")
    sizes = {one.tag: int(config.ram_bytes * (one.ram / total)) for one in tenants}
    for tenant in tenants:
        if 0 < sizes[tenant.tag] < LEAST_ARENA_BYTES:
            raise ConfigError(
                f"ram_bytes {config.ram_bytes}: the part of tenant {tenant.name} is "
                f"{sizes[tenant.tag]} bytes; the least is {LEAST_ARENA_BYTES}, or ram = 0"
            )
    try:
        return {tag: RamTier(size) for tag, size in sizes.items()}
    except OSError as error:
        raise ConfigError(f"ram_bytes {config.ram_bytes}: {error.strerror}") from None


def _callers(access: Access) -> dict[bytes, Tenant]:
    """In whose name other nodes can be asked: whoever has called, or everybody if all may."""
    return {tenant.tag: tenant for tenant in access.tenants if not access.needs_token}


def _disk_shares(tenants: Sequence[Tenant]) -> dict[bytes, float]:
    """What part of the disk tier each tenant is sure of."""
    total = sum(tenant.disk for tenant in tenants)
    return {one.tag: one.disk / total if total else 0.0 for one in tenants}


def _index(config: StoreConfig, node: str) -> Index:
    return EmbeddedIndex() if config.is_alone else RedisIndex(node, RedisUrl.parse(config.index))


def _peers(config: StoreConfig) -> GrpcPeers:
    try:
        bulk = None if config.bulk_address is None else BulkPull(config)
        return GrpcPeers(Channels(config), bulk)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None


def _disk_tier(config: StoreConfig, clock: Clock) -> DiskTier | None:
    if config.data_dir is None:
        return None
    try:
        return DiskTier(config.data_dir, config.disk_bytes, clock)
    except OSError as error:
        raise ConfigError(f"data_dir {config.data_dir}: {error.strerror}") from None


def _node(data_dir: Path | None) -> str:
    """The identity of this node; with a data directory it survives a restart."""
    if data_dir is None:
        return uuid.uuid4().hex
    path = data_dir / "node"
    if not path.exists():
        new = path.with_suffix(".new")
        new.write_text(uuid.uuid4().hex + "\n")
        new.replace(path)
    return path.read_text().strip()

"""The client: one method per RPC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Self, TypeVar

import grpc

from packkv.client.breaker import CircuitBreaker
from packkv.client.calls import Caller
from packkv.client.channel import metadata_of, open_channel
from packkv.client.config import ClientConfig
from packkv.client.messages import (
    Cleared,
    Drained,
    Fetched,
    Lifetimes,
    Listed,
    Match,
    Put,
    Span,
    Stats,
    lifetimes_of,
    match_of,
    page_of,
    range_of,
    stats_of,
)
from packkv.client.paths import Arrived, Buffer, Offer, ReceiverFailed, Views, Wanted
from packkv.client.paths.buffers import Buffers
from packkv.client.paths.choice import PathChoice
from packkv.client.paths.grpc_stream import GrpcStream
from packkv.client.paths.request import check_layered
from packkv.client.quotas import TenantQuota, quotas_of
from packkv.client.watch import Watch
from packkv.errors import StoreUnavailable, Unsupported, store_error
from packkv_protos.v1 import admin_pb2, admin_pb2_grpc, block_store_pb2_grpc
from packkv_protos.v1 import block_store_pb2 as pb

# The health protocol's two messages are this small; a dependency for them would be larger.
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_HEALTH_SERVING = b"\x08\x01"

DRAIN_SLACK_S = 15.0

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Client:
    """A connection to one store. Synchronous, thread-safe, to be closed.

    Connects with the first call, so making one never fails because the store is down. Every method
    raises a `StoreError` of `packkv.errors` when the store does not do it within its deadline, and
    `CircuitOpen` at once while a store that failed several times is left alone.

    Not to be used across `fork`: gRPC's threads do not survive it. Make the client in the child.

    Args:
        target: "host:port", "unix:/path", or another gRPC target.
        config: deadlines, retries, encryption, credential.
    """

    def __init__(self, target: str, *, config: ClientConfig | None = None) -> None:
        self.target = target
        self.config = config or ClientConfig()
        self.config.check_target(target)
        self.breaker = CircuitBreaker(
            self.config.breaker_failures,
            self.config.breaker_pause_s,
            self.config.breaker_max_pause_s,
        )
        self._caller = Caller(target, self.config, self.breaker)
        self._metadata = metadata_of(self.config)
        self._channel = open_channel(target, self.config)
        self._store = block_store_pb2_grpc.BlockStoreStub(self._channel)
        self._admin = admin_pb2_grpc.AdminStub(self._channel)
        buffers = Buffers(self.config.keep_bytes)
        grpc_stream = GrpcStream(self._channel, self._metadata, buffers)
        self._paths = PathChoice(target, self.config, self._ask_paths, grpc_stream, buffers)
        self._health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            _HEALTH_CHECK
        )

    def close(self) -> None:
        """Close the connection; calls under way in other threads end with ClientClosed."""
        self._caller.close()
        self._paths.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> str | None:
        """How the last Get or Put went: one of `ClientConfig.paths`; None before the first."""
        return self._paths.name

    @property
    def transfers(self) -> Mapping[str, int]:
        """How many calls have gone by each path."""
        return self._paths.transfers

    def match(
        self,
        chain_hashes: Sequence[bytes],
        *,
        heads: Span | None = None,
        lease_ms: int = 0,
        owners: bool = False,
        deadline_s: float | None = None,
    ) -> Match:
        """The longest run of present blocks from the front, leased for `lease_ms` (0: no lease).

        With `owners` it says which nodes have those that the node asked has not.
        """
        request = pb.MatchRequest(
            chain_hashes=chain_hashes, heads=range_of(heads), lease_ms=lease_ms, owners=owners
        )
        reply = self._ask("Match", self._store.Match, request, deadline_s)
        return match_of(reply, asked=len(chain_hashes))

    def put(
        self, blocks: Iterable[tuple[bytes, Buffer]], *, deadline_s: float | None = None
    ) -> list[Put]:
        """Publish (chain hash, payload) pairs over one stream; one result for each, in order.

        The iterable is read as the network takes it. It is never sent twice, so a Put is not
        retried; what the iterable raises comes out here, and finished blocks stay stored.
        """
        return self._caller.run(
            "Put",
            lambda left_s: self._paths.put(blocks, left_s),
            deadline_s=self._transfer(deadline_s),
            repeatable=False,
        )

    def get(
        self,
        chain_hashes: Sequence[bytes],
        *,
        layers: Span | None = None,
        heads: Span | None = None,
        lease_id: int = 0,
        max_bytes: int | None = None,
        on_bytes: Callable[[int], object] | None = None,
        on_layers: Callable[[Arrived], object] | None = None,
        groups: int = 1,
        deadline_s: float | None = None,
    ) -> list[Fetched]:
        """The payloads of some blocks, or why there is none; one answer for each hash, in order.

        All payloads lie in one buffer, which lives as long as any of their views. More than
        `max_bytes` (at most the configured limit) is refused before it is allocated. `on_bytes` is
        told the size of each frame that arrives, also of a call that fails later.

        With `on_layers` whole payloads come layer by layer: first the heads of all blocks, then
        their first layers, and so on, in about `groups` groups of layers. It is called on this
        thread whenever more has come, at least once when all has, and what it is told of must be
        verified as ever. A call that breaks is made again, which begins anew in other memory. What
        it raises ends the call and comes out here.

        Raises:
            InvalidRequest: `on_layers` together with a choice of layers or heads; `groups` beyond
                1 to 65,535.
        """
        limit = self._limit(max_bytes)
        wanted = Wanted(
            tuple(chain_hashes), layers, heads, lease_id, limit, on_bytes, on_layers, groups
        )
        check_layered(wanted)
        answer = self._caller.run(
            "Get",
            lambda left_s: self._get(wanted, left_s),
            deadline_s=self._transfer(deadline_s),
        )
        if isinstance(answer, ReceiverFailed):
            raise answer.error
        return answer

    @contextmanager
    def views(
        self,
        chain_hashes: Sequence[bytes],
        *,
        layers: Span | None = None,
        heads: Span | None = None,
        max_bytes: int | None = None,
        lease_ms: int = 10_000,
        deadline_s: float | None = None,
    ) -> Iterator[Views]:
        """As `get`, with the payloads where the store has them if its memory can be seen from here.

        They can be read, not written, and only inside the `with` body: nothing made of them may be
        kept. What was read counts if `Views.are_held` is still true afterwards. The store keeps
        them for `lease_ms` at most. Where its memory cannot be seen they are a copy.
        """
        limit = self._limit(max_bytes)
        wanted = Wanted(tuple(chain_hashes), layers, heads, 0, limit, None)
        with ExitStack() as stack:
            yield self._caller.run(
                "Views",
                lambda left_s: stack.enter_context(
                    self._paths.views(wanted, lease_ms / 1000, left_s)
                ),
                deadline_s=self._transfer(deadline_s),
            )

    def renew(self, lease_id: int, lease_ms: int, *, deadline_s: float | None = None) -> int:
        """Move the expiry of a lease; the milliseconds it has now, 0 when it is unknown or over."""
        request = pb.RenewRequest(lease_id=lease_id, lease_ms=lease_ms)
        reply = self._ask("Renew", self._store.Renew, request, deadline_s)
        return reply.remaining_ms

    def release(self, lease_id: int, *, wait: bool = True, deadline_s: float | None = None) -> None:
        """End a lease early; an unknown one is no error.

        Without `wait` the call is sent and forgotten: a lease that is not released runs out.
        """
        request = pb.ReleaseRequest(lease_id=lease_id)
        if wait:
            self._ask("Release", self._store.Release, request, deadline_s)
            return
        left_s = self.config.deadline_s if deadline_s is None else deadline_s
        self._caller.send(
            lambda: self._store.Release.future(request, timeout=left_s, metadata=self._metadata)
        )

    def put_profile(
        self, model_digest: bytes, profile: bytes, *, deadline_s: float | None = None
    ) -> bytes:
        """Offer a profile for a model; the one in force, which is the first ever offered."""
        request = pb.PutProfileRequest(model_digest=model_digest, profile=profile)
        reply = self._ask("PutProfile", self._store.PutProfile, request, deadline_s)
        return reply.profile

    def get_profile(self, model_digest: bytes, *, deadline_s: float | None = None) -> bytes | None:
        """The profile in force for a model, None when there is none."""
        request = pb.GetProfileRequest(model_digest=model_digest)
        reply = self._ask("GetProfile", self._store.GetProfile, request, deadline_s)
        return reply.profile or None

    def watch(self, *, snapshot: bool = True, deadline_s: float | None = None) -> Watch:
        """How the blocks of this client's tenant on the store change, beginning with all of them.

        Without `snapshot` it begins with what changes next. Of many nodes, the store tells what it
        holds itself. Ends `deadline_s` from now (None: never); the store must begin within the
        deadline of other calls. Close it before the client.
        """
        request = pb.WatchRequest(snapshot=snapshot)

        def begin(left_s: float) -> Watch:
            return Watch(
                lambda: self._store.Watch(request, timeout=deadline_s, metadata=self._metadata),
                left_s,
                self.target,
            )

        return self._caller.run("Watch", begin, deadline_s=self.config.deadline_s)

    def stats(self, *, deadline_s: float | None = None) -> Stats:
        """What the store holds and has done since its start."""
        request = admin_pb2.StatsRequest()
        return stats_of(self._ask("Stats", self._admin.Stats, request, deadline_s))

    def clear(self, root_hash: bytes = b"", *, deadline_s: float | None = None) -> Cleared:
        """Remove the blocks of one namespace, or with no root hash every block."""
        request = admin_pb2.ClearRequest(root_hash=root_hash)
        reply = self._ask("Clear", self._admin.Clear, request, deadline_s)
        return Cleared(reply.blocks, reply.bytes)

    def set_lifetime(
        self, root_hash: bytes, seconds: float, *, deadline_s: float | None = None
    ) -> None:
        """Have the blocks of a namespace expire so long after their Put on this store, those that
        are there as well; infinity: never, 0: as those of namespaces of which nothing is set."""
        request = admin_pb2.SetLifetimeRequest(root_hash=root_hash, seconds=seconds)
        self._ask("SetLifetime", self._admin.SetLifetime, request, deadline_s)

    def lifetimes(self, *, deadline_s: float | None = None) -> Lifetimes:
        """After how long blocks expire on this store."""
        request = admin_pb2.LifetimesRequest()
        return lifetimes_of(self._ask("Lifetimes", self._admin.Lifetimes, request, deadline_s))

    def quotas(self, *, deadline_s: float | None = None) -> list[TenantQuota]:
        """What this client's tenant may have of the store, and has; of all tenants, if it is an
        admin."""
        request = admin_pb2.QuotasRequest()
        return quotas_of(self._ask("Quotas", self._admin.Quotas, request, deadline_s))

    def drain(self, timeout_s: float, *, deadline_s: float | None = None) -> Drained:
        """Take the node out of service; returns when it has handed over what only it has, after
        `timeout_s` at most. It answers calls until it is stopped."""
        request = admin_pb2.DrainRequest(timeout_ms=max(1, int(1000 * timeout_s)))
        # beyond its own time: to tell the index, and to answer
        wait_s = timeout_s + DRAIN_SLACK_S if deadline_s is None else deadline_s
        reply = self._ask("Drain", self._admin.Drain, request, wait_s)
        return Drained(reply.handed_over, reply.left)

    def page(
        self, after: bytes = b"", limit: int = 0, *, deadline_s: float | None = None
    ) -> list[Listed]:
        """Blocks of this client's tenant that the store holds itself, ascending by chain hash.

        At most `limit` (0: as many as a page may have) of those behind the chain hash `after`; an
        empty page is behind the last one. Needs an admin's token where tokens are in use.
        """
        request = admin_pb2.ListRequest(after=after, limit=limit)
        return page_of(self._ask("List", self._admin.List, request, deadline_s), after)

    def ping(self, *, deadline_s: float | None = None) -> None:
        """Return if the store says that it serves (gRPC health protocol)."""

        def check(left_s: float) -> None:
            reply = self._health(b"", timeout=left_s, metadata=self._metadata)
            if reply != _HEALTH_SERVING:
                raise StoreUnavailable(f"Ping: {self.target} says that it does not serve")

        wait_s = self.config.deadline_s if deadline_s is None else deadline_s
        self._caller.run("Ping", check, deadline_s=wait_s)

    def _get(self, wanted: Wanted, left_s: float) -> list[Fetched] | ReceiverFailed:
        try:
            return self._paths.get(wanted, left_s)
        except ReceiverFailed as failure:
            # the store has answered: this is no reason to leave it alone
            return failure

    def _ask_paths(self, timeout_s: float) -> Offer:
        try:
            reply = self._store.Paths(pb.PathsRequest(), timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as failure:
            error = store_error(failure, "Paths", self.target)
            if isinstance(error, Unsupported):
                raise error from failure
            raise
        return Offer(reply.shared_memory_socket, reply.bulk_port, reply.nonce)

    def _ask(
        self,
        name: str,
        method: grpc.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        deadline_s: float | None,
    ) -> Reply:
        return self._caller.run(
            name,
            lambda left_s: method(request, timeout=left_s, metadata=self._metadata),
            deadline_s=self.config.deadline_s if deadline_s is None else deadline_s,
        )

    def _transfer(self, deadline_s: float | None) -> float:
        return self.config.transfer_deadline_s if deadline_s is None else deadline_s

    def _limit(self, max_bytes: int | None) -> int:
        most = self.config.max_get_bytes
        return most if max_bytes is None else min(max_bytes, most)

"""The Admin service, for operators."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from packkv_protos.v1 import admin_pb2 as pb
from packkv_store.cluster.drain import HandedOver
from packkv_store.pace import Bucket
from packkv_store.quotas import Quotas, TenantQuota
from packkv_store.rpc import request as checked
from packkv_store.rpc.status import Context, status_errors
from packkv_store.store import Store
from packkv_store.store.answers import StoreStats
from packkv_store.tenant import Access

# Takes the server out of service; 0: in its own time.
Leave = Callable[[float], Awaitable[HandedOver]]


class AdminService:
    """Serves packkv.v1.Admin. Every call but Quotas needs an admin's token where tokens are in
    use."""

    def __init__(self, store: Store, access: Access, quotas: Quotas, drain: Leave) -> None:
        self._store = store
        self._access = access
        self._quotas = quotas
        self._drain = drain

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server needs to serve it."""
        unary = grpc.unary_unary_rpc_method_handler
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Stats": unary(self.Stats, pb.StatsRequest.FromString, pb.StatsReply.SerializeToString),
            "Clear": unary(self.Clear, pb.ClearRequest.FromString, pb.ClearReply.SerializeToString),
            "SetLifetime": unary(
                self.SetLifetime,
                pb.SetLifetimeRequest.FromString,
                pb.SetLifetimeReply.SerializeToString,
            ),
            "Lifetimes": unary(
                self.Lifetimes, pb.LifetimesRequest.FromString, pb.LifetimesReply.SerializeToString
            ),
            "Quotas": unary(
                self.Quotas, pb.QuotasRequest.FromString, pb.QuotasReply.SerializeToString
            ),
            "Drain": unary(self.Drain, pb.DrainRequest.FromString, pb.DrainReply.SerializeToString),
            "List": unary(self.List, pb.ListRequest.FromString, pb.ListReply.SerializeToString),
        }
        name = pb.DESCRIPTOR.services_by_name["Admin"].full_name
        return grpc.method_handlers_generic_handler(name, methods)

    async def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsReply:
        async with status_errors(context):
            self._access.admin(checked.bearer_token(context))
            stats = await self._store.stats()
        return _stats_reply(stats)

    async def Clear(self, request: pb.ClearRequest, context: Context) -> pb.ClearReply:
        async with status_errors(context):
            self._access.admin(checked.bearer_token(context))
            root = checked.digest("root_hash", request.root_hash) if request.root_hash else None
            blocks, size = await self._store.clear(root)
        return pb.ClearReply(blocks=blocks, bytes=size)

    async def SetLifetime(
        self, request: pb.SetLifetimeRequest, context: Context
    ) -> pb.SetLifetimeReply:
        async with status_errors(context):
            self._access.admin(checked.bearer_token(context))
            root = checked.digest("root_hash", request.root_hash)
            await self._store.set_lifetime(root, checked.lifetime(request.seconds))
        return pb.SetLifetimeReply()

    async def Lifetimes(self, request: pb.LifetimesRequest, context: Context) -> pb.LifetimesReply:
        async with status_errors(context):
            self._access.admin(checked.bearer_token(context))
            in_force = await self._store.lifetimes()
        return pb.LifetimesReply(
            default_seconds=in_force.others,
            lifetimes=[
                pb.Lifetime(root_hash=root, seconds=seconds)
                for root, seconds in sorted(in_force.own.items())
            ],
        )

    async def Quotas(self, request: pb.QuotasRequest, context: Context) -> pb.QuotasReply:
        async with status_errors(context):
            caller = self._access.tenant(checked.bearer_token(context))
            seen = self._quotas.seen_by(caller)
        return pb.QuotasReply(tenants=map(_tenant_quota, seen))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        async with status_errors(context):
            self._access.admin(checked.bearer_token(context))
            done = await self._drain(request.timeout_ms / 1000)
        return pb.DrainReply(handed_over=done.blocks, left=done.left)

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListReply:
        async with status_errors(context):
            tenant = self._access.admin(checked.bearer_token(context))
            after, limit = checked.page(request.after, request.limit)
            blocks = await self._store.page(tenant, after, limit)
        return pb.ListReply(blocks=[pb.ListedBlock(**block._asdict()) for block in blocks])


def _tenant_quota(quota: TenantQuota) -> pb.TenantQuota:
    return pb.TenantQuota(
        tenant=quota.tenant,
        tiers=[pb.TierQuota(**tier._asdict()) for tier in quota.tiers],
        put=_rate_quota(quota.put),
        get=_rate_quota(quota.get),
    )


def _rate_quota(bucket: Bucket | None) -> pb.RateQuota:
    if bucket is None:
        return pb.RateQuota()
    return pb.RateQuota(
        bytes_per_s=bucket.rate,
        burst_bytes=bucket.burst,
        moved_bytes=bucket.moved_bytes,
        waited_s=bucket.waited_seconds,
        refused=bucket.refused_calls,
        waiting=bucket.waiting_calls,
    )


def _stats_reply(stats: StoreStats) -> pb.StatsReply:
    return pb.StatsReply(
        node=stats.node,
        version=stats.version,
        uptime_s=stats.uptime_seconds,
        tiers=[
            pb.TierStats(
                tier=tier.name,
                blocks=tier.blocks,
                used_bytes=tier.used_bytes,
                capacity_bytes=tier.capacity_bytes,
                cold_blocks=tier.cold_blocks,
                cold_bytes=tier.cold_bytes,
            )
            for tier in stats.tiers
        ],
        leases=stats.leases,
        blocks=stats.blocks,
        counters=stats.counters,
    )

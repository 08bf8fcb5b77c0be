"""What tenants may have of a store, and have, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from packkv_protos.v1 import admin_pb2


@dataclass(frozen=True, slots=True)
class TierQuota:
    """A tenant's part of a tier: nobody else takes the `sure_bytes`. On disk it may use more."""

    tier: str
    used_bytes: int
    sure_bytes: int


@dataclass(frozen=True, slots=True)
class RateQuota:
    """How fast a tenant may put, or get, payloads, and how that went since the store's start.

    Args:
        bytes_per_s: 0 is without a limit, and then nothing is counted.
        burst_bytes: moved at once after a rest.
        moved_bytes: payload bytes that had their turn.
        waited_s: of all calls together.
        refused: calls that would have waited for too long.
        waiting: calls that wait now.
    """

    bytes_per_s: int
    burst_bytes: int
    moved_bytes: int
    waited_s: float
    refused: int
    waiting: int


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """Everything of one tenant; where there are no tenants, everybody is the one without a name."""

    tenant: str
    tiers: tuple[TierQuota, ...]
    put: RateQuota
    get: RateQuota


def quotas_of(reply: admin_pb2.QuotasReply) -> list[TenantQuota]:
    """The answer of Admin.Quotas."""
    return [
        TenantQuota(
            one.tenant,
            tuple(TierQuota(tier.tier, tier.used_bytes, tier.sure_bytes) for tier in one.tiers),
            _rate_of(one.put),
            _rate_of(one.get),
        )
        for one in reply.tenants
    ]


def _rate_of(rate: admin_pb2.RateQuota) -> RateQuota:
    return RateQuota(
        rate.bytes_per_s,
        rate.burst_bytes,
        rate.moved_bytes,
        rate.waited_s,
        rate.refused,
        rate.waiting,
    )

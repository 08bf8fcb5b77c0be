"""What each tenant may have of this node, and what it has."""

from collections.abc import Sequence
from typing import NamedTuple

from packkv_store.block import TierName
from packkv_store.pace import Bucket, Pace
from packkv_store.store.residents import Residents
from packkv_store.tenant import Tenant


class TierQuota(NamedTuple):
    """A tenant's part of a tier. Others take none of the `sure_bytes`."""

    tier: TierName
    used_bytes: int
    sure_bytes: int


class TenantQuota(NamedTuple):
    """Everything of one tenant; no bucket: it may put, or get, as fast as it likes."""

    tenant: str
    tiers: list[TierQuota]
    put: Bucket | None
    get: Bucket | None


class Quotas:
    """Answers what is set for tenants, and how much of it they use."""

    def __init__(self, tenants: Sequence[Tenant], residents: Residents, pace: Pace) -> None:
        self._tenants = tenants
        self._residents = residents
        self._pace = pace

    def seen_by(self, caller: Tenant) -> list[TenantQuota]:
        """The caller's own; to an admin those of all tenants."""
        tenants = self._tenants if caller.admin else [caller]
        return [self._of(tenant) for tenant in tenants]

    def _of(self, tenant: Tenant) -> TenantQuota:
        ram = self._residents.ram_of(tenant.tag).tier
        tiers = [TierQuota(TierName.RAM, ram.used_bytes, ram.capacity_bytes)]
        if self._residents.disk is not None:
            disk = self._residents.disk
            used, sure = disk.used_bytes(tenant.tag), disk.sure_bytes(tenant.tag)
            tiers.append(TierQuota(TierName.DISK, used, sure))
        return TenantQuota(tenant.name, tiers, self._pace.put(tenant), self._pace.get(tenant))

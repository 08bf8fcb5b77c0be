"""The store as Python sees it: one method per RPC, bytes in and bytes out.

    with Client("127.0.0.1:7437") as client:
        match = client.match(chain_hashes, lease_ms=5_000)
        blocks = client.get(chain_hashes[: match.blocks], lease_id=match.lease_id)

Everything has a deadline, nothing the server sends is trusted, and nothing here imports torch.
"""

from packkv.client.breaker import CircuitBreaker
from packkv.client.client import Client
from packkv.client.config import ClientConfig
from packkv.client.fleet import Fleet, Store, open_store
from packkv.client.messages import (
    Changes,
    Cleared,
    Drained,
    Fetched,
    Lifetimes,
    Listed,
    Match,
    Miss,
    Put,
    PutStatus,
    Span,
    Stats,
    Tier,
    TierStats,
)
from packkv.client.paths import Arrived
from packkv.client.quotas import RateQuota, TenantQuota, TierQuota
from packkv.client.watch import Watch

__all__ = [
    "Arrived",
    "Changes",
    "CircuitBreaker",
    "Cleared",
    "Client",
    "ClientConfig",
    "Drained",
    "Fetched",
    "Fleet",
    "Lifetimes",
    "Listed",
    "Match",
    "Miss",
    "Put",
    "PutStatus",
    "RateQuota",
    "Span",
    "Stats",
    "Store",
    "TenantQuota",
    "Tier",
    "TierQuota",
    "TierStats",
    "Watch",
    "open_store",
]

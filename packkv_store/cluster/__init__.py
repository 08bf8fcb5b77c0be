"""Many nodes as one store: what a node needs of the others, and what it asks them for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from packkv_store.block import ChainHash, Span, TierName
from packkv_store.store.answers import MissReason
from packkv_store.tenant import Tenant


class PeerFailure(Exception):
    """Another node did not do what was asked in time, or not well. Its blocks count as missing."""


@dataclass(frozen=True, slots=True)
class PeerMatch:
    """What one other node has of a run of blocks, and its lease on them."""

    lengths: list[int]
    tiers: list[TierName]
    miss: MissReason | None
    lease_id: int


# Told the number of a block and how many of its bytes have landed, from the front.
Landed = Callable[[int, int], None]


class Peers(Protocol):
    """The other nodes, each by its address. They answer for what they hold themselves, and for the
    tenant in whose name this node was called: a node can ask for no more than its caller may."""

    async def match(
        self,
        address: str,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        heads: Span,
        lease_seconds: float,
    ) -> PeerMatch:
        """The longest run from the front that the node has. Raises PeerFailure."""

    async def fetch(
        self,
        address: str,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        places: Sequence[memoryview],
        on_bytes: Landed,
    ) -> None:
        """Fills each place with the payload of its block, unverified, and says how far it is as the
        bytes land. Raises PeerFailure."""

    async def take(
        self, address: str, tenant: Tenant, hashes: Sequence[ChainHash], node: str, *, spare: bool
    ) -> list[bool]:
        """Has the node fetch blocks from this one, called `node`; `spare`: into free room alone.
        Answers for each block whether it is there now. Raises PeerFailure."""

    async def get_profile(self, address: str, tenant: Tenant, digest: bytes) -> bytes | None:
        """The profile that the node has, if any. Raises PeerFailure."""

    async def put_profile(
        self, address: str, tenant: Tenant, digest: bytes, profile: bytes
    ) -> None:
        """Offers the node a profile. Raises PeerFailure."""

    async def renew(self, address: str, tenant: Tenant, lease_id: int, seconds: float) -> None:
        """Asks the node to keep what it has leased. Raises PeerFailure."""

    async def release(self, address: str, tenant: Tenant, lease_id: int) -> None:
        """Tells the node that a lease is over. Raises PeerFailure."""

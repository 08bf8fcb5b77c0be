"""What other nodes are answered: what this one holds itself, and nothing from further on."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from packkv_store.block import ChainHash, Span, block_key
from packkv_store.cluster.shared_profiles import profile_key
from packkv_store.index import Index
from packkv_store.store import Downloading, Giving
from packkv_store.store.answers import Match, MissReason
from packkv_store.tenant import Tenant


@dataclass(frozen=True, slots=True)
class OwnStore:
    """Nodes ask each other only through this, so no question goes round in circles."""

    inner: Giving
    index: Index

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        found = await self.inner.match(tenant, hashes, heads, lease_seconds)
        if found.miss is MissReason.ABSENT:
            # the index seems to say that they are here
            gone = hashes[len(found.lengths) :]
            await self.index.repair([block_key(tenant.tag, one) for one in gone])
        return found

    def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AbstractAsyncContextManager[Downloading]:
        return self.inner.get(tenant, hashes, layers, heads)

    async def get_profile(self, tenant: Tenant, digest: bytes) -> bytes | None:
        profile = await self.inner.get_profile(tenant, digest)
        if profile is None:
            await self.index.repair([profile_key(tenant.tag, digest)])
        return profile

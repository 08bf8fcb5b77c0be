"""What other nodes are answered: what this one holds itself, and nothing from further on."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from packkv_store.block import ChainHash, Span, block_key, block_keys
from packkv_store.cluster.drain import Drain
from packkv_store.cluster.pull import Source
from packkv_store.cluster.puller import Puller
from packkv_store.cluster.shared_profiles import profile_key
from packkv_store.index import Index
from packkv_store.store import Downloading, Giving
from packkv_store.store.answers import Match, MissReason
from packkv_store.store.residents import Residents
from packkv_store.store.shelf import HIGH_WATERMARK
from packkv_store.tenant import Tenant


@dataclass(frozen=True, slots=True)
class OwnStore:
    """Nodes ask each other only through this, so no question goes round in circles."""

    inner: Giving
    index: Index
    residents: Residents
    drain: Drain
    # None: this node is alone
    puller: Puller | None

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        found = await self.inner.match(tenant, hashes, heads, lease_seconds)
        if found.miss is MissReason.ABSENT:
            # the index seems to say that they are here
            gone = hashes[len(found.lengths) :]
            await self.index.repair(block_keys(tenant.tag, gone))
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

    async def take(
        self, tenant: Tenant, hashes: Sequence[ChainHash], node: str, spare: bool
    ) -> list[bool]:
        """Fetches blocks from another node, with `spare` no more than there is free room for.
        Answers for each whether it is here. A node that is leaving fetches none."""
        missing = [one for one in dict.fromkeys(hashes) if not self._has(tenant, one)]
        if missing and self.puller is not None and not self.drain.has_begun:
            address = await self.index.meet(node)
            if address is not None:
                room = self._spare_bytes(tenant) if spare else None
                await self.puller.take(tenant, missing, Source(node, address), room)
        return [self._has(tenant, one) for one in hashes]

    def _has(self, tenant: Tenant, chain_hash: ChainHash) -> bool:
        return self.residents.find(block_key(tenant.tag, chain_hash)) is not None

    def _spare_bytes(self, tenant: Tenant) -> int:
        """What fits before anything is evicted from where blocks stay longest."""
        tier = self.residents.lasting(tenant.tag).tier
        return int(HIGH_WATERMARK * tier.capacity_bytes) - tier.used_bytes

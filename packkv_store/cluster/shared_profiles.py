"""Profiles of all nodes: the first one published for a model is to be in force everywhere."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass

from packkv_store.block import TAG_BYTES, BlockKey, ChainHash, TierName, block_key
from packkv_store.cluster import PeerFailure, Peers
from packkv_store.index import Index, Location
from packkv_store.profiles import Profiles
from packkv_store.store import Store
from packkv_store.tenant import Tenant

# An owner more would be asked in vain: when so many are gone, the profile is.
MAX_OWNERS = 3


def profile_key(tag: bytes, digest: bytes) -> BlockKey:
    """The name under which the index has the nodes that hold a profile; no block has such a one."""
    return block_key(tag, ChainHash(hashlib.sha256(b"profile" + digest).digest()))


@dataclass(frozen=True, slots=True)
class SharedProfiles:
    """Looks for a profile on other nodes before one is taken as the first. Two workers that publish
    at the same moment to two nodes may both be first; they then share no blocks, and lose nothing
    else."""

    store: Store
    profiles: Profiles
    index: Index
    peers: Peers
    node: str

    async def announce(self) -> None:
        """Says which profiles were found here at the start."""
        keys = [profile_key(key[:TAG_BYTES], key[TAG_BYTES:]) for key in self.profiles.names()]
        await self.index.publish(keys, Location(self.node, TierName.DISK))

    async def put(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        known = await self.get(tenant, digest)
        return known if known is not None else await self._keep(tenant, digest, profile)

    async def get(self, tenant: Tenant, digest: bytes) -> bytes | None:
        here = await self.store.get_profile(tenant, digest)
        if here is not None:
            return here
        [located] = await self.index.locate([profile_key(tenant.tag, digest)])
        for location in located[:MAX_OWNERS]:
            address = self.index.address(location.node)
            with suppress(PeerFailure):
                profile = address and await self.peers.get_profile(address, tenant, digest)
                if profile:
                    return await self._keep(tenant, digest, profile)
        return None

    async def _keep(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        in_force = await self.store.put_profile(tenant, digest, profile)
        key = profile_key(tenant.tag, digest)
        await self.index.publish([key], Location(self.node, TierName.DISK))
        return in_force

"""Profiles of all nodes: the first one published for a model is to be in force everywhere."""

import asyncio
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
# The node whose profile was the first has so long to store it; another one takes its place then.
FIRST_SECONDS = 2.0
ASK_AGAIN_SECONDS = 0.02


def profile_key(tag: bytes, digest: bytes) -> BlockKey:
    """The name under which the index has the nodes that hold a profile; no block has such a one."""
    return block_key(tag, ChainHash(hashlib.sha256(b"profile" + digest).digest()))


@dataclass(frozen=True, slots=True)
class SharedProfiles:
    """Looks for a profile on other nodes before one is taken as the first, and asks the index who
    was the first when several nodes are given one at the same moment. Without the index both are in
    force where they are: their workers then share no blocks, and lose nothing else."""

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
        if known is not None:
            return known
        key = profile_key(tenant.tag, digest)
        mine = self.node.encode()
        first = await self.index.claim(key, mine)
        while first not in (None, mine):
            known = await self._of_first(tenant, digest, first.decode())
            if known is not None:
                return await self._keep(tenant, digest, known)
            first = await self.index.claim(key, mine, instead_of=first)
        return await self._keep(tenant, digest, profile)

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

    async def _of_first(self, tenant: Tenant, digest: bytes, node: str) -> bytes | None:
        """The profile of the node that was the first, as soon as it is stored there; None when
        that node is gone or has none."""
        address = await self.index.meet(node)
        with suppress(PeerFailure, TimeoutError):
            async with asyncio.timeout(FIRST_SECONDS):
                while address is not None:
                    profile = await self.peers.get_profile(address, tenant, digest)
                    if profile:
                        return profile
                    await asyncio.sleep(ASK_AGAIN_SECONDS)
        return None

    async def _keep(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        in_force = await self.store.put_profile(tenant, digest, profile)
        key = profile_key(tenant.tag, digest)
        await self.index.publish([key], Location(self.node, TierName.DISK))
        return in_force

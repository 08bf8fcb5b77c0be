"""What a node does before it leaves: others get what only it has."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from packkv_store.block import TAG_BYTES, TierName, chain_hash_of
from packkv_store.cluster import PeerFailure, Peers
from packkv_store.errors import Leaving
from packkv_store.index import Index, Member
from packkv_store.store.block_store import BlockStore
from packkv_store.store.block_table import Block
from packkv_store.tenant import Tenant

log = logging.getLogger(__name__)

# What one node is asked to take at one time.
BATCH_BLOCKS = 64
BATCH_BYTES = 32 << 20
MAX_RECEIVERS = 16
# A node that has taken nothing so often in a row is full.
MAX_REFUSALS = 2
# Blocks that the index is asked about at one time.
LOOK = 2048
# To remove what the index says of a node that does not come back; sweeping does what is left.
FORGET_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Blocks that others have taken, and those that are nowhere else."""

    blocks: int
    left: int


@dataclass(slots=True, eq=False)
class Batch:
    """Blocks of one tenant on their way out."""

    tenant: Tenant
    blocks: list[Block]
    refused_by: set[str] = field(default_factory=set)


class Drain:
    """Hands over what no other node has: the last used first, heads before tails, into room that
    is free elsewhere and for as long as it may take.

    `callers` are the tenants in whose name other nodes can be asked: this one has no credential of
    its own.
    """

    def __init__(
        self,
        store: BlockStore,
        index: Index,
        peers: Peers,
        callers: Mapping[bytes, Tenant],
    ) -> None:
        self._store = store
        self._index = index
        self._peers = peers
        self._callers = callers
        self._leaving: asyncio.Task[HandedOver] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether this node is leaving, or has left."""
        return self._leaving is not None

    async def leave(self, seconds: float, *, comes_back: bool) -> HandedOver:
        """Hands over for as long as that, then nobody is sent here any more. A node that comes back
        under its identity keeps what is on its disk, and the index its locations, hidden until
        then.

        It happens once. Who asks again gets the same answer, and does not wait for it much longer
        than `seconds`. Raises Leaving when another caller has cut it short.
        """
        if self._leaving is None:
            work = self._leave(seconds, comes_back)
            self._leaving = self._store.residents.tasks.begin(work)
        _, late = await asyncio.wait([self._leaving], timeout=seconds + 2 * FORGET_SECONDS)
        if late:
            self._leaving.cancel()
            await asyncio.wait([self._leaving])
        if self._leaving.cancelled():
            raise Leaving
        return self._leaving.result()

    async def _leave(self, seconds: float, comes_back: bool) -> HandedOver:
        try:
            going = await self._candidates(comes_back) if seconds > 0 else []
            if going or (seconds > 0 and not comes_back):
                return await self._hand_over(going, seconds)
            return HandedOver(0, 0)
        finally:
            await self._index.stop(0.0 if comes_back else FORGET_SECONDS)

    async def _candidates(self, comes_back: bool) -> list[Block]:
        """What would be lost, in the order to go."""
        residents = self._store.residents
        blocks = residents.table.all()
        if comes_back:
            blocks = [block for block in blocks if TierName.DISK not in residents.tiers(block)]
        return await self._store.run(_in_order, blocks)

    async def _hand_over(self, candidates: Sequence[Block], seconds: float) -> HandedOver:
        await self._index.leaving()
        members = list(await self._index.members())
        random.shuffle(members)
        going, taken = list[Block](candidates), set[bytes]()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hand_over_profiles(members)
                going = await self._only_here(candidates)
                await self._give_away(deque(self._batches(going)), members, taken)
        log.info("%d of %d blocks handed over", len(taken), len(going))
        return HandedOver(len(taken), len(going) - len(taken))

    async def _only_here(self, blocks: Sequence[Block]) -> list[Block]:
        going: list[Block] = []
        rest = iter(blocks)
        while some := list(islice(rest, LOOK)):
            alone = await self._index.only_here([block.key for block in some])
            going += [block for block, is_alone in zip(some, alone, strict=True) if is_alone]
        return going

    def _batches(self, blocks: Sequence[Block]) -> list[Batch]:
        filling: dict[bytes, tuple[Batch, int]] = {}
        batches: list[Batch] = []
        for block in blocks:
            tag = block.key[:TAG_BYTES]
            tenant = self._callers.get(tag)
            if tenant is None:
                continue
            batch, size = filling.get(tag, (None, 0))
            if batch is None or len(batch.blocks) == BATCH_BLOCKS or size >= BATCH_BYTES:
                batch, size = Batch(tenant, []), 0
                batches.append(batch)
            batch.blocks.append(block)
            filling[tag] = batch, size + block.length
        return batches

    async def _give_away(
        self, waiting: deque[Batch], members: Sequence[Member], taken: set[bytes]
    ) -> None:
        usable = {member.node: member for member in members}
        # each round offers a batch to one more node at least, or has a node taken off
        while receivers := list(islice(_askable(usable, waiting), MAX_RECEIVERS)):
            await asyncio.gather(
                *(self._give_to(member, waiting, usable, taken) for member in receivers)
            )

    async def _give_to(
        self,
        member: Member,
        waiting: deque[Batch],
        usable: dict[str, Member],
        taken: set[bytes],
    ) -> None:
        """Until it is full, fails, or has refused what is left."""
        refusals = 0
        while refusals < MAX_REFUSALS:
            batch = next((one for one in waiting if member.node not in one.refused_by), None)
            if batch is None:
                return
            waiting.remove(batch)
            hashes = [chain_hash_of(block.key) for block in batch.blocks]
            try:
                here = await self._peers.take(
                    member.address, batch.tenant, hashes, self._store.node, spare=True
                )
            except PeerFailure as error:
                log.warning("handing over to %s: %s", member.address, error)
                waiting.appendleft(batch)
                break
            taken.update(b.key for b, is_there in zip(batch.blocks, here, strict=True) if is_there)
            batch.blocks = [
                b for b, is_there in zip(batch.blocks, here, strict=True) if not is_there
            ]
            refusals = 0 if any(here) else refusals + 1
            if batch.blocks:
                batch.refused_by.add(member.node)
                waiting.appendleft(batch)
        usable.pop(member.node, None)

    async def _hand_over_profiles(self, members: Sequence[Member]) -> None:
        for name in self._store.profiles.names():
            tenant, profile = self._callers.get(name[:TAG_BYTES]), self._store.profiles.get(name)
            if tenant is None or profile is None:
                continue
            for member in members:
                with suppress(PeerFailure):
                    await self._peers.put_profile(member.address, tenant, name[TAG_BYTES:], profile)
                    break


def _askable(usable: Mapping[str, Member], waiting: Collection[Batch]) -> Iterator[Member]:
    """Those to whom something has not been offered yet."""
    for member in usable.values():
        if any(member.node not in batch.refused_by for batch in waiting):
            yield member


def _in_order(blocks: Sequence[Block]) -> list[Block]:
    staying = (block for block in blocks if not block.leaving and not block.corrupt)
    return sorted(staying, key=lambda block: (-block.used_at, block.first_token))

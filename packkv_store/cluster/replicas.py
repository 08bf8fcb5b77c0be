"""Copies of what is put on this node, on other nodes: made behind the caller's back."""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from packkv_store.block import ChainHash
from packkv_store.cluster import PeerFailure, Peers
from packkv_store.index import Index, Member
from packkv_store.store.answers import PutResult, PutStatus, Tally
from packkv_store.store.forwarding import ForwardingUpload
from packkv_store.tenant import Tenant

log = logging.getLogger(__name__)

# Blocks that wait for their copies. What comes on top of them is not copied.
MAX_WAITING = 4096
# What one node is asked to take at one time, and how many are asked.
BATCH_BLOCKS = 64
AT_ONCE = 4


class Task(NamedTuple):
    """Blocks of one Put that go to the same nodes."""

    tenant: Tenant
    first: ChainHash
    hashes: Sequence[ChainHash]


class Replicas:
    """Has `copies` other nodes take what was put here. A Put never waits for it."""

    def __init__(self, node: str, copies: int, index: Index, peers: Peers, tally: Tally) -> None:
        self._node = node
        self._copies = copies
        self._index = index
        self._peers = peers
        self._tally = tally
        self._waiting: deque[Task] = deque()
        self._blocks = 0
        self._wake = asyncio.Semaphore(0)

    def add(self, tenant: Tenant, hashes: Sequence[ChainHash]) -> None:
        """Copies the blocks of one Put soon, or drops and counts them."""
        for first in range(0, len(hashes), BATCH_BLOCKS):
            some = hashes[first : first + BATCH_BLOCKS]
            if self._blocks + len(some) > MAX_WAITING:
                self._tally.replicas_dropped += self._copies * (len(hashes) - first)
                return
            self._waiting.append(Task(tenant, hashes[0], some))
            self._blocks += len(some)
            self._wake.release()

    async def keep_copying(self) -> None:
        """Until cancelled."""
        await asyncio.gather(*(self._work() for _ in range(AT_ONCE)))

    async def _work(self) -> None:
        while True:
            await self._wake.acquire()
            task = self._waiting.popleft()
            try:
                await self._copy(task)
            finally:
                self._blocks -= len(task.hashes)

    async def _copy(self, task: Task) -> None:
        lacking = self._copies
        # one that does not take them is replaced by the next
        for member in ranked(task.first, await self._index.members()):
            if lacking == 0:
                break
            try:
                here = await self._peers.take(
                    member.address, task.tenant, task.hashes, self._node, spare=False
                )
            except PeerFailure as error:
                log.warning("copying to %s: %s", member.address, error)
                continue
            if any(here):
                lacking -= 1
                self._tally.replicas += sum(here)
                self._tally.replicas_dropped += len(here) - sum(here)
        self._tally.replicas_dropped += lacking * len(task.hashes)


def ranked(first: ChainHash, members: Sequence[Member]) -> list[Member]:
    """The nodes in the order in which they are to have the blocks of a Put that begins with
    `first`: the same order on every node, and of those that are left when one has gone. Blocks of
    one Put stay together, so that a prefix is in few places."""
    return sorted(members, key=lambda one: hashlib.sha256(first + one.node.encode()).digest())


@dataclass(frozen=True, slots=True)
class CopiedUpload(ForwardingUpload):
    """A Put whose blocks are copied once they are here."""

    tenant: Tenant
    replicas: Replicas

    async def finish(self) -> list[PutResult]:
        results = await self.inner.finish()
        stored = [one.chain_hash for one in results if one.status is PutStatus.STORED]
        if stored:
            self.replicas.add(self.tenant, stored)
        return results

"""Brings blocks from other nodes into this one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass

from packkv_store.block import BlockKey, ChainHash, Span, block_key
from packkv_store.cluster import PeerFailure, Peers
from packkv_store.cluster.plan import shares
from packkv_store.errors import StoreError
from packkv_store.index import Index, Location
from packkv_store.store import Uploading
from packkv_store.store.answers import PutStatus, Tally
from packkv_store.store.threads import Tasks
from packkv_store.tenant import Tenant

log = logging.getLogger(__name__)

# Streams from other nodes at one time.
MAX_STREAMS = 16
# What has not come after so long is a miss, whoever is still sending it.
PULL_SECONDS = 30.0
# So many different nodes may fail to deliver a block before it is a miss.
ROUNDS = 3
EVERY_HEAD = Span(0, 0)
Take = Callable[[Tenant], AbstractAsyncContextManager[Uploading]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a share of the blocks is to come from."""

    node: str
    address: str


class Puller:
    """A block is pulled once, however many calls want it, and stays here afterwards.

    `take` opens the taking end of this node: pulled blocks are verified as those of a Put are.
    """

    def __init__(self, index: Index, peers: Peers, take: Take, tasks: Tasks, tally: Tally) -> None:
        self._index = index
        self._peers = peers
        self._take = take
        self._tasks = tasks
        self._tally = tally
        self._coming: dict[BlockKey, asyncio.Task[None]] = {}
        self._streams = asyncio.Semaphore(MAX_STREAMS)

    async def pull(self, tenant: Tenant, hashes: Sequence[ChainHash]) -> None:
        """Returns when each block is here, or cannot be had. Never raises for another node."""
        keys = [block_key(tenant.tag, chain_hash) for chain_hash in hashes]
        fresh = [h for h, key in zip(hashes, keys, strict=True) if key not in self._coming]
        if fresh:
            # goes on if the caller leaves: others may be waiting for it by then
            task = self._tasks.begin(self._bring(tenant, fresh))
            mine = [block_key(tenant.tag, chain_hash) for chain_hash in fresh]
            self._coming.update(dict.fromkeys(mine, task))
            task.add_done_callback(lambda _: [self._coming.pop(key, None) for key in mine])
        coming = {self._coming[key] for key in keys if key in self._coming}
        if coming:
            await asyncio.wait(coming)

    async def stop(self) -> None:
        """Ends what is under way."""
        for task in set(self._coming.values()):
            task.cancel()

    async def _bring(self, tenant: Tenant, hashes: Sequence[ChainHash]) -> None:
        keys = [block_key(tenant.tag, chain_hash) for chain_hash in hashes]
        located = await self._index.locate(keys)
        missing = [place for place, locations in enumerate(located) if locations]
        expected = len(missing)
        with suppress(TimeoutError):
            async with asyncio.timeout(PULL_SECONDS):
                missing = await self._in_rounds(tenant, hashes, located, missing)
        self._tally.pulled += expected - len(missing)
        self._tally.pull_failures += len(missing)

    async def _in_rounds(
        self,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        located: Sequence[tuple[Location, ...]],
        missing: list[int],
    ) -> list[int]:
        """The places that no node delivered."""
        failed = set[str]()
        for _ in range(ROUNDS):
            work = []
            for node, places in shares(located, missing, failed).items():
                address = self._index.address(node)
                failed.add(node)
                if address is not None:
                    share = [hashes[place] for place in places]
                    work.append(self._from_node(Source(node, address), tenant, share))
            if not work:
                break
            here = {chain_hash for done in await asyncio.gather(*work) for chain_hash in done}
            missing = [place for place in missing if hashes[place] not in here]
        return missing

    async def _from_node(
        self, source: Source, tenant: Tenant, hashes: Sequence[ChainHash]
    ) -> list[ChainHash]:
        """Those that came whole."""
        done: list[ChainHash] = []
        try:
            async with (
                self._streams,
                self._leased(source, tenant, hashes) as lengths,
            ):
                await self._stream(source, tenant, hashes[: len(lengths)], lengths, done)
        except (PeerFailure, StoreError) as error:
            log.warning("pulling from %s: %s", source.address, error)
        return done

    @asynccontextmanager
    async def _leased(
        self, source: Source, tenant: Tenant, hashes: Sequence[ChainHash]
    ) -> AsyncIterator[list[int]]:
        """The lengths of the run that the node has, which stays there meanwhile."""
        found = await self._peers.match(
            source.address, tenant, hashes, EVERY_HEAD, 2 * PULL_SECONDS
        )
        try:
            yield found.lengths
        finally:
            if found.lease_id:
                self._tasks.begin(self._release(source, tenant, found.lease_id))

    async def _release(self, source: Source, tenant: Tenant, lease_id: int) -> None:
        with suppress(PeerFailure):
            await self._peers.release(source.address, tenant, lease_id)

    async def _stream(
        self,
        source: Source,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        lengths: Sequence[int],
        done: list[ChainHash],
    ) -> None:
        async with self._take(tenant) as upload:
            at = 0
            while at < len(hashes):
                rest = list(zip(hashes[at:], lengths[at:], strict=True))
                # as many as may be on their way at one time
                places = await upload.reserve(rest)
                wanted = [
                    (chain_hash, place)
                    for (chain_hash, _), place in zip(rest, places, strict=False)
                    if place is not None
                ]
                if wanted:
                    names, views = zip(*wanted, strict=True)
                    await self._peers.fetch(source.address, tenant, names, views)
                await upload.filled(len(places))
                at += len(places)
            for result in await upload.finish():
                if result.status is PutStatus.REJECTED:
                    log.warning("pulled from %s: %s", source.address, result.reason)
                else:
                    done.append(result.chain_hash)

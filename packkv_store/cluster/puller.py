"""Brings blocks from other nodes into this one."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import accumulate
from typing import Any

from packkv_store.block import BlockKey, ChainHash, Span, block_key, block_keys
from packkv_store.cluster import PeerFailure, Peers
from packkv_store.cluster.coming import Coming
from packkv_store.cluster.plan import shares
from packkv_store.cluster.pull import Pull, Share, Source
from packkv_store.errors import StoreError
from packkv_store.index import Index, Location
from packkv_store.store import Uploading
from packkv_store.store.answers import PutStatus, Tally
from packkv_store.store.threads import Tasks
from packkv_store.tenant import Tenant
from packkv_store.tiers.extents import extent_size

log = logging.getLogger(__name__)

# Streams from other nodes at one time.
MAX_STREAMS = 16
# What has not come after so long is a miss, whoever is still sending it.
PULL_SECONDS = 30.0
# So many different nodes may fail to deliver a block before it is a miss.
ROUNDS = 3
# Blocks that did not come as they should; the oldest beyond so many are trusted again.
MAX_DOUBTED = 4096
EVERY_HEAD = Span(0, 0)
Take = Callable[[Tenant], AbstractAsyncContextManager[Uploading]]
Bring = Callable[[Pull, Tenant, Sequence[ChainHash]], Coroutine[Any, Any, None]]


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
        self._coming: dict[BlockKey, Pull] = {}
        self._doubted: OrderedDict[BlockKey, None] = OrderedDict()
        self._streams = asyncio.Semaphore(MAX_STREAMS)

    async def pull(self, tenant: Tenant, hashes: Sequence[ChainHash]) -> None:
        """Returns when each block is here, or cannot be had. Never raises for another node."""
        await self._once(tenant, hashes, self._bring)

    async def take(
        self, tenant: Tenant, hashes: Sequence[ChainHash], source: Source, room: int | None
    ) -> None:
        """As `pull`, from one certain node; no more than `room` bytes, None: without a limit."""

        async def bring(pull: Pull, tenant: Tenant, hashes: Sequence[ChainHash]) -> None:
            pull.shared(1)
            with suppress(TimeoutError):
                async with asyncio.timeout(PULL_SECONDS):
                    done = await self._from_node(source, pull, tenant, hashes, room)
                    self._tally.pulled += len(done)

        await self._once(tenant, hashes, bring)

    async def begin(self, tenant: Tenant, hashes: Sequence[ChainHash]) -> dict[ChainHash, Coming]:
        """As `pull`, and returns earlier: when each block is here, cannot be had, or is coming into
        a place where it can be read meanwhile. Answers which are."""
        coming: dict[ChainHash, Coming] = {}
        for pull in self._pulls(tenant, hashes, self._bring):
            await pull.readable()
            if not pull.task.done():
                coming |= {one: pull.coming[one] for one in hashes if one in pull.coming}
        return coming

    async def settled(self, tenant: Tenant, hashes: Sequence[ChainHash]) -> None:
        """Returns when none of the blocks is under way, apart from those that nobody has."""
        keys = block_keys(tenant.tag, hashes)
        tasks = {
            pull.task
            for one, key in zip(hashes, keys, strict=True)
            if (pull := self._coming.get(key)) is not None and one not in pull.nowhere
        }
        if tasks:
            await asyncio.wait(tasks)

    def doubt(self, tenant: Tenant, chain_hash: ChainHash) -> None:
        """The block did not come as it should: it is shown to nobody until it is here whole."""
        self._doubted[block_key(tenant.tag, chain_hash)] = None
        while len(self._doubted) > MAX_DOUBTED:
            self._doubted.popitem(last=False)

    async def _once(self, tenant: Tenant, hashes: Sequence[ChainHash], bring: Bring) -> None:
        if pulls := self._pulls(tenant, hashes, bring):
            await asyncio.wait([pull.task for pull in pulls])

    def _pulls(self, tenant: Tenant, hashes: Sequence[ChainHash], bring: Bring) -> list[Pull]:
        """Those that bring the blocks, one of them begun now if there are any more."""
        keys = block_keys(tenant.tag, hashes)
        fresh = [h for h, key in zip(hashes, keys, strict=True) if key not in self._coming]
        if fresh:
            pull = Pull()
            # goes on if the caller leaves: others may be waiting for it by then
            pull.task = self._tasks.begin(bring(pull, tenant, fresh))
            mine = block_keys(tenant.tag, fresh)
            self._coming.update(dict.fromkeys(mine, pull))
            pull.task.add_done_callback(lambda _: [self._coming.pop(key, None) for key in mine])
        return list({id(p): p for key in keys if (p := self._coming.get(key)) is not None}.values())

    async def stop(self) -> None:
        """Ends what is under way."""
        for pull in self._coming.values():
            pull.task.cancel()

    async def _bring(self, pull: Pull, tenant: Tenant, hashes: Sequence[ChainHash]) -> None:
        keys = block_keys(tenant.tag, hashes)
        located = await self._index.locate(keys)
        missing = [place for place, locations in enumerate(located) if locations]
        pull.nowhere.update(
            one for one, locations in zip(hashes, located, strict=True) if not locations
        )
        expected = len(missing)
        with suppress(TimeoutError):
            async with asyncio.timeout(PULL_SECONDS):
                missing = await self._in_rounds(pull, tenant, hashes, located, missing)
        self._tally.pulled += expected - len(missing)
        self._tally.pull_failures += len(missing)

    async def _in_rounds(
        self,
        pull: Pull,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        located: Sequence[tuple[Location, ...]],
        missing: list[int],
    ) -> list[int]:
        """The places that no node delivered."""
        nodes = {at.node for locations in located for at in locations}
        addresses = {node: self._index.address(node) for node in nodes}
        short = {node for node, address in addresses.items() if address is None}
        for _ in range(ROUNDS):
            asked = [
                (Source(node, address), places)
                for node, places in shares(located, missing, short).items()
                if (address := addresses[node]) is not None
            ]
            if not asked:
                break
            pull.shared(len(asked))
            work = [
                self._from_node(one, pull, tenant, [hashes[place] for place in some])
                for one, some in asked
            ]
            came = await asyncio.gather(*work)
            # one that has given all it was asked for may have what another one has not
            short.update(
                one.node
                for (one, some), done in zip(asked, came, strict=True)
                if len(done) < len(some)
            )
            here = {chain_hash for done in came for chain_hash in done}
            missing = [place for place in missing if hashes[place] not in here]
        return missing

    async def _from_node(
        self,
        source: Source,
        pull: Pull,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        room: int | None = None,
    ) -> list[ChainHash]:
        """Those that came whole, of the first that fit into the room."""
        share = Share(source, pull, tenant)
        try:
            async with (
                self._streams,
                self._leased(source, tenant, hashes) as lengths,
            ):
                if room is not None:
                    ends = accumulate(map(extent_size, lengths))
                    lengths = lengths[: sum(end <= room for end in ends)]
                await self._stream(share, list(zip(hashes, lengths, strict=False)))
        except (PeerFailure, StoreError) as error:
            log.warning("pulling from %s: %s", source.address, error)
        finally:
            share.place([])
        return share.done

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

    async def _stream(self, share: Share, blocks: Sequence[tuple[ChainHash, int]]) -> None:
        async with self._take(share.tenant) as upload:
            left = blocks
            while left:
                # as many as may be on their way at one time
                places = await upload.reserve(left)
                coming = [
                    Coming(chain_hash, place)
                    for (chain_hash, _), place in zip(left, places, strict=False)
                    if place is not None
                ]
                # what waits for room has to wait whole: it may never get it
                is_whole = len(places) == len(blocks)
                share.place([one for one in coming if is_whole and self._is_trusted(share, one)])
                if coming:
                    await self._fetch(share, coming)
                upload.filled(len(places))
                left = left[len(places) :]
            for result in await upload.finish():
                if result.status is PutStatus.REJECTED:
                    log.warning("pulled from %s: %s", share.source.address, result.reason)
                else:
                    share.done.append(result.chain_hash)
                    self._doubted.pop(block_key(share.tenant.tag, result.chain_hash), None)

    async def _fetch(self, share: Share, coming: Sequence[Coming]) -> None:
        names = [one.chain_hash for one in coming]
        places = [one.place for one in coming]
        try:
            await self._peers.fetch(
                share.source.address,
                share.tenant,
                names,
                places,
                lambda block, landed: coming[block].advance(landed),
            )
        finally:
            for one in coming:
                one.end()

    def _is_trusted(self, share: Share, one: Coming) -> bool:
        return block_key(share.tenant.tag, one.chain_hash) not in self._doubted

"""One connection of the shared-memory path: what its client asks for, and what is held for it."""

import asyncio
import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress

import numpy as np

from packkv_protos.shared_memory import frames
from packkv_protos.shared_memory.frames import FrameError, Kind, Staged, State
from packkv_store.acceptor import Idle
from packkv_store.block import ChainHash, Span
from packkv_store.errors import (
    STATUS,
    LimitExceeded,
    Status,
    StoreError,
    StreamTimeout,
    Unauthenticated,
)
from packkv_store.shared_memory.staging import Staging
from packkv_store.shared_memory.wire import Frame, Wire
from packkv_store.store import Store, Uploading
from packkv_store.store.answers import Located, MissReason, Place, PutStatus
from packkv_store.store.verdict import Verdict, judge_all
from packkv_store.tenant import Access, Tenant

log = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
MAX_LEASES = 64
MAX_RANGE_END = 65_535
MISS = {
    MissReason.ABSENT: State.ABSENT,
    MissReason.CORRUPT: State.CORRUPT,
    MissReason.HEADS: State.HEADS,
}
# PutStatus of the proto
PUT = {PutStatus.STORED: 1, PutStatus.ALREADY_PRESENT: 2, PutStatus.REJECTED: 3}


class Session:
    """Serves one client until it goes. All its requests are its tenant's, one at a time; when it
    ends, however it ends, its leases are released and its staged memory is let go."""

    def __init__(
        self,
        wire: Wire,
        store: Store,
        access: Access,
        threads: Executor,
        nonce: bytes,
        seconds: float,
    ) -> None:
        self._wire = wire
        self._store = store
        self._access = access
        self._threads = threads
        self._nonce = nonce
        self._seconds = seconds
        self._leases: dict[int, float] = {}
        self._staging: Staging | None = None
        self._is_leaving = False
        self.idle: Idle | None = Idle(False, time.monotonic())

    async def serve(self) -> None:
        """Returns when the client is gone, says nothing for long, or breaks the protocol."""
        tenant: Tenant | None = None
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                tenant = await self._greet()
            while not self._is_leaving:
                self.idle = Idle(True, time.monotonic())
                frame = await self._wire.read(self._seconds)
                self.idle = None
                await self._answer(tenant, frame)
        except (EOFError, TimeoutError, OSError) as end:
            log.debug("a client of the shared memory is gone: %s", end or type(end).__name__)
        except FrameError as error:
            await self._refuse(Status.INVALID_ARGUMENT, str(error))
        except Unauthenticated as error:
            await self._refuse(Status.UNAUTHENTICATED, str(error))
        finally:
            self._wire.close()
            if self._staging is not None:
                self._staging.close()
            if tenant is not None:
                await self._release_all(tenant)

    def leave(self) -> None:
        """No more calls: `serve` returns after the one that runs."""
        self._is_leaving = True

    def close(self) -> None:
        self._wire.close()

    async def _release_all(self, tenant: Tenant) -> None:
        leases, self._leases = self._leases, {}
        for lease_id in leases:
            await self._store.release(tenant, lease_id)

    async def _greet(self) -> Tenant:
        await self._wire.write(frames.pack_greeting(self._nonce))
        frame = await self._wire.read(HELLO_SECONDS)
        _expect(frame, Kind.HELLO)
        tenant = self._access.tenant(frames.read_hello(frame.body))
        arena = self._store.arena(tenant)
        if arena.fd is None:
            # a tenant without RAM of its own
            raise FrameError("there is no arena to share; use another path")
        await self._wire.write(frames.pack_number(Kind.ARENA, arena.capacity_bytes), arena.fd)
        return tenant

    async def _answer(self, tenant: Tenant, frame: Frame) -> None:
        if frame.kind is Kind.STAGE:
            self._stage(frame)
            return
        _expect(frame, Kind.LOCATE, Kind.PUT, Kind.RELEASE)
        if frame.kind is Kind.RELEASE:
            lease_id = frames.read_number(Kind.RELEASE, frame.body)
            if self._leases.pop(lease_id, None) is not None:
                await self._store.release(tenant, lease_id)
            return
        try:
            async with asyncio.timeout(self._seconds) as limit:
                if frame.kind is Kind.LOCATE:
                    answer = await self._locate(tenant, frames.read_locate(frame.body))
                else:
                    answer = await self._put(tenant, frame)
        except TimeoutError:
            if not limit.expired():
                raise
            answer = _error(StreamTimeout(self._seconds))
        except StoreError as error:
            answer = _error(error)
        await self._wire.write(answer)
        if frame.kind is Kind.PUT and answer[0] == Kind.ERROR:
            # more frames of the same Put may be on their way, which would be taken for a new one
            raise EOFError

    async def _locate(self, tenant: Tenant, asked: frames.Locate) -> bytes:
        located = await self._store.locate(
            tenant,
            [ChainHash(name) for name in asked.chain_hashes],
            _span("layers", asked.layers),
            _span("heads", asked.heads),
            asked.lease_ms / 1000 if self._may_lease() else 0.0,
        )
        if located.lease_id:
            self._leases[located.lease_id] = time.monotonic() + located.lease_seconds
        return frames.pack_located(_reply(located))

    def _may_lease(self) -> bool:
        if len(self._leases) >= MAX_LEASES:
            now = time.monotonic()
            self._leases = {one: ends for one, ends in self._leases.items() if ends > now}
        return len(self._leases) < MAX_LEASES

    def _stage(self, frame: Frame) -> None:
        if frame.fd is None:
            raise FrameError("STAGE came without a descriptor")
        staging = Staging(frame.fd, frames.read_number(Kind.STAGE, frame.body))
        if self._staging is not None:
            self._staging.close()
        self._staging = staging

    async def _put(self, tenant: Tenant, frame: Frame) -> bytes:
        async with self._store.put(tenant) as upload:
            while frame.kind is not Kind.END:
                if frame.kind is Kind.STAGE:
                    self._stage(frame)
                else:
                    _expect(frame, Kind.PUT)
                    await self._take(upload, frames.read_put(frame.body))
                    await self._wire.write(frames.pack(Kind.TAKEN))
                frame = await self._wire.read(self._seconds)
            _expect(frame, Kind.END)
            results = await upload.finish()
        return frames.pack_results(
            [frames.Result(PUT[result.status], result.reason) for result in results]
        )

    async def _take(self, upload: Uploading, blocks: list[Staged]) -> None:
        """Copies the blocks out of the staged memory, as many at a time as there is room for."""
        if self._staging is None:
            raise FrameError("PUT came before STAGE")
        for block in blocks:
            self._staging.check(block)
        while blocks:
            places = await upload.reserve([(ChainHash(b.chain_hash), b.length) for b in blocks])
            if any(place is not None for place in places):
                verdicts = await self._copy(self._staging, places, blocks[: len(places)])
                upload.filled(len(places), verdicts)
            else:
                upload.filled(len(places))
            blocks = blocks[len(places) :]

    async def _copy(
        self, staging: Staging, places: Sequence[memoryview | None], blocks: Sequence[Staged]
    ) -> list[Verdict | None]:
        loop = asyncio.get_running_loop()
        copying = loop.run_in_executor(self._threads, _copied, staging, places, blocks)
        try:
            return await asyncio.shield(copying)
        except asyncio.CancelledError:
            # the places are given back when this is left: no thread may be writing there then
            while not copying.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([copying])
            raise

    async def _refuse(self, status: Status, sentence: str) -> None:
        log.info("a client of the shared memory is refused: %s", sentence)
        with suppress(OSError, TimeoutError):
            await self._wire.write(frames.pack_error(status, sentence))


def _copied(
    staging: Staging, places: Sequence[memoryview | None], blocks: Sequence[Staged]
) -> list[Verdict | None]:
    """What has come into each of the places, judged while it is in the cache."""
    verdicts: list[Verdict | None] = []
    for place, block in zip(places, blocks, strict=True):
        if place is not None:
            staging.copy(place, block.offset)
        verdicts += judge_all([(place, ChainHash(block.chain_hash))])
    return verdicts


def _expect(frame: Frame, *kinds: Kind) -> None:
    if frame.kind not in kinds:
        _drop(frame)
        raise FrameError(f"{frame.kind.name} came, expected {' or '.join(k.name for k in kinds)}")
    if frame.fd is not None:
        _drop(frame)
        raise FrameError(f"{frame.kind.name} came with a descriptor")


def _drop(frame: Frame) -> None:
    if frame.fd is not None:
        os.close(frame.fd)


def _error(error: StoreError) -> bytes:
    return frames.pack_error(STATUS[type(error)], str(error))


def _span(field: str, value: tuple[int, int]) -> Span:
    first, count = value
    if first + count > MAX_RANGE_END:
        raise LimitExceeded(f"end of {field}", first + count, MAX_RANGE_END)
    return Span(first, count)


def _reply(located: Located) -> frames.Located:
    extents = np.empty((0, 3), np.uint32) if located.extents is None else located.extents
    # more than one answer holds: the other paths send them a few at a time
    fits = len(extents) <= frames.MAX_EXTENTS
    places = frames.new_places(len(located.places))
    places["offset"] = [place.offset or 0 for place in located.places]
    places["length"] = [place.length for place in located.places]
    places["state"] = [_state(place) if fits else State.ELSEWHERE for place in located.places]
    lease_ms = math.floor(located.lease_seconds * 1000)
    return frames.Located(located.lease_id, lease_ms, places, extents if fits else extents[:0])


def _state(place: Place) -> State:
    if place.miss is not None:
        return MISS[place.miss]
    return State.ELSEWHERE if place.offset is None else State.HERE

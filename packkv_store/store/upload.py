"""One Put stream: blocks arrive one after another, straight into the arena."""

import asyncio
from dataclasses import dataclass, field

from packkv_store.block import HEADER, BlockKey, ChainHash, block_key, verify_payload
from packkv_store.errors import (
    LimitExceeded,
    NoRoom,
    PayloadError,
    Quarantined,
    RequestError,
    TierFailure,
)
from packkv_store.store.answers import PutResult, PutStatus
from packkv_store.store.residents import Residents
from packkv_store.store.threads import Run
from packkv_store.tenant import Tenant
from packkv_store.tiers.extents import Extent
from packkv_store.tiers.ram import RamTier

MAX_COMMITS = 4


@dataclass(slots=True)
class Arriving:
    """A block whose bytes are on their way; `extent` None: they are dropped, `answer` says why."""

    chain_hash: ChainHash
    key: BlockKey
    length: int
    before: BlockKey | None
    extent: Extent | None = None
    answer: PutResult | None = None
    filled: int = 0


@dataclass(slots=True)
class Upload:
    """Takes starts and bytes in turn. What is finished stays, whatever becomes of the stream.

    Memory is bounded: one block is being filled and at most four are being committed.
    """

    residents: Residents
    ram: RamTier
    run: Run
    tenant: Tenant
    used_at: float
    max_block_bytes: int
    max_blocks: int
    sync: bool
    _arriving: Arriving | None = None
    _before: BlockKey | None = None
    _results: list["asyncio.Task[PutResult]"] = field(default_factory=list)
    _pending: list["asyncio.Task[PutResult]"] = field(default_factory=list)

    async def start(self, chain_hash: ChainHash, length: int) -> None:
        """The next block begins. Raises RequestError when the last one is not complete."""
        if self._arriving is not None:
            raise self._incomplete(self._arriving)
        if length > self.max_block_bytes:
            raise LimitExceeded("length", length, self.max_block_bytes)
        if len(self._results) >= self.max_blocks:
            raise LimitExceeded("blocks of one stream", len(self._results) + 1, self.max_blocks)
        key = block_key(self.tenant.tag, chain_hash)
        arriving = Arriving(chain_hash, key, length, self._before)
        self._before = key
        await self._make_place(arriving)
        self._arriving = arriving
        if length == 0:
            await self._complete(arriving)

    async def data(self, piece: memoryview) -> None:
        """The next bytes of the current block. Raises RequestError when there are too many."""
        arriving = self._arriving
        if arriving is None:
            raise RequestError("frame", f"data of {len(piece)} bytes", "a start comes first")
        end = arriving.filled + len(piece)
        if end > arriving.length:
            raise RequestError("data", f"{end} bytes", f"the {arriving.length} of its start")
        if arriving.extent is not None:
            self.ram.view(arriving.extent, end)[arriving.filled :] = piece
        arriving.filled = end
        if end == arriving.length:
            await self._complete(arriving)

    async def finish(self) -> list[PutResult]:
        """The stream has ended: one result for each start, once all is as safe as it gets."""
        if self._arriving is not None:
            raise self._incomplete(self._arriving)
        # shielded one by one: a stream that is cancelled now must not stop what has been finished
        results = [await asyncio.shield(result) for result in self._results]
        if self.sync and any(result.status is PutStatus.STORED for result in results):
            await self.residents.flush()
        return results

    def abandon(self) -> None:
        """Gives the unfinished block back. Blocks that are complete are still committed."""
        if self._arriving is not None and self._arriving.extent is not None:
            self.ram.free(self._arriving.extent)
        self._arriving = None

    async def _make_place(self, arriving: Arriving) -> None:
        if self.residents.find(arriving.key) is not None:
            arriving.answer = _answer(arriving, PutStatus.ALREADY_PRESENT)
        elif arriving.length < HEADER.size:
            reason = f"length is {arriving.length}, a header alone is {HEADER.size} bytes"
            arriving.answer = _answer(arriving, PutStatus.REJECTED, reason)
        else:
            try:
                arriving.extent = await self.residents.ram.reserve(arriving.length)
            except NoRoom as error:
                arriving.answer = _answer(arriving, PutStatus.REJECTED, str(error))

    async def _complete(self, arriving: Arriving) -> None:
        self._arriving = None
        task = self.residents.tasks.begin(self._commit(arriving))
        self._results.append(task)
        self._pending = [one for one in self._pending if not one.done()] + [task]
        if len(self._pending) >= MAX_COMMITS:
            await asyncio.shield(self._pending[0])

    async def _commit(self, arriving: Arriving) -> PutResult:
        if arriving.extent is None:
            assert arriving.answer is not None
            return arriving.answer
        payload = self.ram.view(arriving.extent, arriving.length)
        try:
            head = await self.run(verify_payload, payload, arriving.chain_hash)
        except PayloadError as error:
            self.ram.free(arriving.extent)
            return _answer(arriving, PutStatus.REJECTED, str(error))
        try:
            status = await self.residents.admit(
                arriving.key, head, arriving.extent, self.used_at, arriving.before
            )
        except (NoRoom, TierFailure, Quarantined) as error:
            return _answer(arriving, PutStatus.REJECTED, str(error))
        return _answer(arriving, status)

    def _incomplete(self, arriving: Arriving) -> RequestError:
        got = f"{arriving.filled} bytes of a block of {arriving.length}"
        return RequestError("stream", got, "every block whole before the next start or the end")


def _answer(arriving: Arriving, status: PutStatus, reason: str = "") -> PutResult:
    return PutResult(arriving.chain_hash, status, arriving.length, reason)

"""One Put stream: blocks arrive one after another or many at a time, straight into the arena."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from packkv_store.block import (
    HEADER,
    BlockKey,
    ChainHash,
    block_key,
)
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
from packkv_store.store.verdict import Verdict, judge, judge_all
from packkv_store.store.worth import Moment
from packkv_store.tenant import Tenant
from packkv_store.tiers.extents import Extent
from packkv_store.tiers.ram import RamTier

# What `start` and `data` may have completed and not begun to commit, unless it is one block.
COMPLETE_BYTES = 16 << 20
# Blocks that come one by one are committed some at a time, as every hand-over to a thread and back
# takes a tenth of a millisecond: so many bytes of them, or what has come within so many seconds.
BATCH_BYTES = 4 << 20
BATCH_SECONDS = 0.005
# A block of `start` and `data` is judged where it was copied, on the event loop, unless it is so
# large that others would wait for half a millisecond.
LARGE_BYTES = 8 << 20
# Blocks of one stream that are written to disk at one time.
MAX_WRITES = 4
# After so many blocks, a millisecond, other calls have a turn.
TURN_BLOCKS = 64
# What one stream may have reserved in the arena and not yet committed, unless one block is larger;
# of a small arena it is a quarter.
WINDOW_BYTES = 128 << 20


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
    verdict: Verdict | None = None


@dataclass(slots=True)
class Upload:
    """Takes blocks by `start` and `data` in turn, or by `reserve` and `filled`. What is finished
    stays, whatever becomes of the stream.

    Memory is bounded: one block, or one window of blocks, is being filled or committed.
    """

    residents: Residents
    ram: RamTier
    run: Run
    tenant: Tenant
    begun: Moment
    max_block_bytes: int
    max_blocks: int
    sync: bool
    _arriving: Arriving | None = None
    _placed: list[Arriving] = field(default_factory=list)
    _before: BlockKey | None = None
    _count: int = 0
    _complete: list[Arriving] = field(default_factory=list)
    _complete_bytes: int = 0
    _results: list[PutResult] = field(default_factory=list)
    _committing: "asyncio.Task[None] | None" = None
    _timer: asyncio.TimerHandle | None = None
    _taken: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, chain_hash: ChainHash, length: int) -> None:
        """The next block begins. Raises RequestError when the last one is not complete."""
        self._check_complete()
        arriving = self._next(chain_hash, length)
        try:
            try:
                await self._make_place(arriving)
            except NoRoom:
                # what is complete and not committed yet can only be evicted afterwards
                await self._settle()
                await self._make_place(arriving)
        except NoRoom as error:
            arriving.answer = _answer(arriving, PutStatus.REJECTED, str(error))
        self._arriving = arriving
        if length == 0:
            await self._complete_one(arriving)

    async def data(self, piece: memoryview) -> None:
        """The next bytes of the current block. Raises RequestError when there are too many."""
        arriving = self._arriving
        if arriving is None:
            raise RequestError("frame", f"data of {len(piece)} bytes", "a start comes first")
        end = arriving.filled + len(piece)
        if end > arriving.length:
            raise RequestError("data", f"{end} bytes", f"the {arriving.length} of its start")
        view = self._view(arriving)
        if view is not None:
            view[arriving.filled : end] = piece
        arriving.filled = end
        if end == arriving.length:
            await self._complete_one(arriving)

    async def reserve(self, blocks: Sequence[tuple[ChainHash, int]]) -> list[memoryview | None]:
        """Room for the next blocks, named with their lengths: where the bytes of each go, or None
        where none are wanted.

        Answers for the first block at least, and for fewer than all when they take more room than
        a stream may have at one time: ask for the rest when these are filled. Raises RequestError.
        """
        self._check_complete()
        # one window at a time: what is not committed yet cannot be evicted for the next either
        await self._settle()
        room = min(WINDOW_BYTES, self.ram.capacity_bytes // 4)
        for chain_hash, length in blocks:
            if self._placed and length > room:
                break
            arriving = self._next(chain_hash, length)
            try:
                await self._make_place(arriving)
            except NoRoom as error:
                if any(one.extent is not None for one in self._placed):
                    self._take_back(arriving)
                    break
                arriving.answer = _answer(arriving, PutStatus.REJECTED, str(error))
            self._placed.append(arriving)
            room -= length if arriving.extent is not None else 0
        return [self._view(arriving) for arriving in self._placed]

    def filled(self, count: int, verdicts: Sequence[Verdict | None] = ()) -> None:
        """The first `count` places that have not been filled yet hold their bytes now; `verdicts`
        on them, if somebody has judged them already."""
        done, self._placed = self._placed[:count], self._placed[count:]
        for arrived, verdict in zip(done, verdicts, strict=False):
            arrived.verdict = verdict
        self._commit(done)

    async def finish(self) -> list[PutResult]:
        """The stream has ended: one result for each block, once all is as safe as it gets."""
        self._check_complete()
        await self._settle()
        if self.sync and any(result.status is PutStatus.STORED for result in self._results):
            await self.residents.flush()
        return self._results

    def abandon(self) -> None:
        """Gives unfinished blocks back. Blocks that are complete are still committed."""
        unfinished = [self._arriving] if self._arriving is not None else []
        for arriving in [*unfinished, *self._placed]:
            if arriving.extent is not None:
                self.ram.free(arriving.extent)
        self._arriving = None
        self._placed = []
        self._begin()

    def _next(self, chain_hash: ChainHash, length: int) -> Arriving:
        if length > self.max_block_bytes:
            raise LimitExceeded("length", length, self.max_block_bytes)
        if self._count >= self.max_blocks:
            raise LimitExceeded("blocks of one stream", self._count + 1, self.max_blocks)
        key = block_key(self.tenant.tag, chain_hash)
        arriving = Arriving(chain_hash, key, length, self._before)
        self._before = key
        self._count += 1
        return arriving

    def _take_back(self, arriving: Arriving) -> None:
        self._before = arriving.before
        self._count -= 1

    async def _make_place(self, arriving: Arriving) -> None:
        """An extent, or an answer why none is needed. Raises NoRoom."""
        if self._count % TURN_BLOCKS == 0:
            await asyncio.sleep(0)
        if self.residents.find(arriving.key) is not None:
            arriving.answer = _answer(arriving, PutStatus.ALREADY_PRESENT)
        elif arriving.length < HEADER.size:
            reason = f"length is {arriving.length}, a header alone is {HEADER.size} bytes"
            arriving.answer = _answer(arriving, PutStatus.REJECTED, reason)
        else:
            shelf = self.residents.ram_of(arriving.key)
            arriving.extent = await shelf.reserve(arriving.key, arriving.length)

    async def _complete_one(self, arriving: Arriving) -> None:
        view = self._view(arriving)
        if view is not None and arriving.length < LARGE_BYTES:
            arriving.verdict = judge(view, arriving.chain_hash)
        self._arriving = None
        self._commit([arriving])
        while self._complete_bytes >= COMPLETE_BYTES:
            self._taken.clear()
            await self._taken.wait()

    def _commit(self, done: list[Arriving]) -> None:
        """The blocks are complete: they are committed soon, after those before them."""
        self._complete += done
        self._complete_bytes += sum(one.length for one in done)
        if self._complete_bytes >= BATCH_BYTES:
            self._begin()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._begin)

    def _begin(self) -> None:
        """Commits what is complete, unless that is going on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._complete and (self._committing is None or self._committing.done()):
            self._committing = self.residents.tasks.begin(self._commit_all())

    async def _settle(self) -> None:
        self._begin()
        # shielded: a stream that is cancelled now must not stop what has been finished
        while self._committing is not None and not self._committing.done():
            await asyncio.shield(self._committing)
            self._begin()

    async def _commit_all(self) -> None:
        # what has arrived while some are committed goes together: the busier, the fewer steps
        while self._complete:
            done, self._complete, self._complete_bytes = self._complete, [], 0
            self._taken.set()
            await self._judge_rest(done)
            await self._admit_all(done)
            if self._timer is not None:
                # the stream goes on, and too little has come to be worth a step of its own
                return

    async def _judge_rest(self, done: Sequence[Arriving]) -> None:
        left = [one for one in done if one.verdict is None and one.extent is not None]
        if left:
            payloads = [(self._view(one), one.chain_hash) for one in left]
            for one, verdict in zip(left, await self.run(judge_all, payloads), strict=True):
                one.verdict = verdict

    async def _admit_all(self, ready: Sequence[Arriving]) -> None:
        # without a disk there is nothing to wait for
        at_once = 1 if self.residents.disk is None else MAX_WRITES
        for first in range(0, len(ready), at_once):
            some = [self._admit(one) for one in ready[first : first + at_once]]
            self._results += [await some[0]] if len(some) == 1 else await asyncio.gather(*some)
            if first % TURN_BLOCKS == 0:
                await asyncio.sleep(0)

    async def _admit(self, arrived: Arriving) -> PutResult:
        extent, head = arrived.extent, arrived.verdict
        if extent is None or head is None:
            assert arrived.answer is not None
            return arrived.answer
        if isinstance(head, PayloadError):
            self.ram.free(extent)
            return _answer(arrived, PutStatus.REJECTED, str(head))
        try:
            status = await self.residents.admit(
                arrived.key, head, extent, self.begun, arrived.before
            )
        except (NoRoom, TierFailure, Quarantined) as error:
            return _answer(arrived, PutStatus.REJECTED, str(error))
        return _answer(arrived, status)

    def _view(self, arriving: Arriving) -> memoryview | None:
        if arriving.extent is None:
            return None
        return self.ram.view(arriving.extent, arriving.length)

    def _check_complete(self) -> None:
        got = ""
        if self._arriving is not None:
            got = f"{self._arriving.filled} bytes of a block of {self._arriving.length}"
        elif self._placed:
            got = f"{len(self._placed)} blocks without their bytes"
        if got:
            raise RequestError("stream", got, "every block whole before the next start or the end")


def _answer(arriving: Arriving, status: PutStatus, reason: str = "") -> PutResult:
    return PutResult(arriving.chain_hash, status, arriving.length, reason)

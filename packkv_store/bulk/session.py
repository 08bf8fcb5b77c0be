"""One connection of the bulk path, from its greeting to its end."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

import numpy as np

from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Frame, FrameError, Kind
from packkv_protos.bulk.wire import Wire
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.acceptor import Idle
from packkv_store.block import ChainHash, Span
from packkv_store.errors import STATUS, LimitExceeded, Status, StoreError, StreamTimeout
from packkv_store.store import Downloading, Giving, Store, Uploading
from packkv_store.store.answers import MissReason, PutResult, PutStatus
from packkv_store.store.layout import Layout
from packkv_store.tenant import Access, Tenant

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# From the connection to the token, encryption included.
HANDSHAKE_SECONDS = 5.0
# From the first byte of a request to its last.
REQUEST_SECONDS = 10.0
IDLE_SECONDS = 600.0
# Received at one time: what has arrived is verified while the next is on its way.
STRIDE_BYTES = 16 << 20
MAX_U16 = 65_535

MISS = {
    None: pb.MISS_REASON_UNSPECIFIED,
    MissReason.ABSENT: pb.MISS_REASON_ABSENT,
    MissReason.CORRUPT: pb.MISS_REASON_CORRUPT,
    MissReason.HEADS: pb.MISS_REASON_HEADS,
}
PUT = {
    PutStatus.STORED: pb.PUT_STATUS_STORED,
    PutStatus.ALREADY_PRESENT: pb.PUT_STATUS_ALREADY_PRESENT,
    PutStatus.REJECTED: pb.PUT_STATUS_REJECTED,
}


class Session:
    """Serves the calls of one client, one at a time. Bytes are moved by a thread that no other
    connection uses; a peer that is slow or silent costs that thread and its own time."""

    def __init__(
        self,
        wire: Wire,
        store: Store,
        own: Giving,
        access: Access,
        tls: ssl.SSLContext | None,
        threads: Executor,
        nonce: bytes,
        stream_seconds: float,
    ) -> None:
        self._wire = wire
        self._store = store
        self._own = own
        self._access = access
        self._tls = tls
        self._threads = threads
        self._nonce = nonce
        self._stream_seconds = stream_seconds
        self._is_leaving = False
        # payloads are under way: a frame now would be taken for some of them
        self._is_sending = False
        self.idle: Idle | None = Idle(False, time.monotonic())

    async def serve(self) -> None:
        """Returns when the connection has ended, whatever became of it."""
        try:
            tenant = await self._welcome()
            while not self._is_leaving and await self._has_request():
                await self._answer(tenant)
        except StoreError as error:
            await self._complain(STATUS[type(error)], str(error))
        except FrameError as error:
            await self._complain(Status.INVALID_ARGUMENT, str(error))
        except OSError as error:
            log.debug("bulk connection ended: %s", error)
        except Exception:
            # the boundary to the network: one connection's trouble is no other's
            log.exception("bulk connection failed")
        finally:
            self._wire.close()

    def leave(self) -> None:
        """No more calls: `serve` returns after the one that runs."""
        self._is_leaving = True

    def close(self) -> None:
        self._wire.close()

    async def _welcome(self) -> Tenant:
        ends_at = time.monotonic() + HANDSHAKE_SECONDS
        if self._tls is not None:
            await self._in_thread(self._wire.encrypt, self._tls, None, ends_at)
        await self._send([frames.pack_greeting(self._nonce)], ends_at)
        hello = await self._receive(ends_at, Kind.HELLO)
        tenant = self._access.tenant(frames.read_hello(hello.body))
        await self._send([frames.pack_welcome()], ends_at)
        return tenant

    async def _has_request(self) -> bool:
        """Waits for one, without a thread; False when none came for too long."""
        self.idle = Idle(True, time.monotonic())
        if not self._wire.has_input() and not await self._is_readable(IDLE_SECONDS):
            return False
        self.idle = None
        return True

    async def _is_readable(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        # the loop may see it more than once before this goes on
        loop.add_reader(self._wire, lambda: None if readable.done() else readable.set_result(None))
        try:
            return bool((await asyncio.wait([readable], timeout=seconds))[0])
        finally:
            loop.remove_reader(self._wire)

    async def _answer(self, tenant: Tenant) -> None:
        request = await self._receive(time.monotonic() + REQUEST_SECONDS, Kind.GET, Kind.PUT)
        ends_at = time.monotonic() + self._stream_seconds
        try:
            async with asyncio.timeout(self._stream_seconds):
                if request.kind is Kind.GET:
                    store = self._own if request.code == frames.OWN else self._store
                    await self._get(store, tenant, request.body, ends_at)
                else:
                    await self._put(tenant, request.body, ends_at)
        except TimeoutError as error:
            raise StreamTimeout(self._stream_seconds) from error
        except StoreError as error:
            # raised only where the client waits for a frame: the connection goes on
            await self._send([frames.pack_error(STATUS[type(error)], str(error))], ends_at)

    async def _get(self, store: Giving, tenant: Tenant, body: memoryview, ends_at: float) -> None:
        get = frames.read_get(body)
        layers, heads = _span("layers", *get.layers), _span("heads", *get.heads)
        names = [ChainHash(name) for name in get.chain_hashes]
        async with store.get(tenant, names, layers, heads) as download:
            size = sum(answer.length for answer in download.answers)
            # the client refuses more than it asked for: it gets the answers alone
            layout = await download.layout(get.groups) if size <= get.max_bytes else []
            await self._send_runs(_found(download, layout), download, layout, ends_at)

    async def _send_runs(
        self, found: bytes, download: Downloading, layout: Layout, ends_at: float
    ) -> None:
        self._is_sending = True
        parts: list[bytes | memoryview] = [found]
        end = [frames.MARK.pack(frames.RUNS_END)]
        try:
            async for run in download.runs(layout):
                # one behind, so that what comes before and after the last run goes with it
                if len(parts) > 1:
                    await self._send(parts, ends_at)
                    parts = []
                parts += [frames.MARK.pack(sum(map(len, run))), *run]
        except StoreError as error:
            sentence = frames.pack_error(STATUS[type(error)], str(error))
            end = [frames.MARK.pack(frames.RUNS_FAIL), sentence]
        await self._send([*parts, *end], ends_at)
        self._is_sending = False

    async def _put(self, tenant: Tenant, body: memoryview, ends_at: float) -> None:
        async with self._store.put(tenant) as upload:
            request = Frame(Kind.PUT, 0, body)
            while request.kind is Kind.PUT:
                await self._take(upload, frames.read_put(request.body), ends_at)
                request = await self._receive(ends_at, Kind.PUT, Kind.END)
            results = await upload.finish()
        await self._send([frames.pack_results(list(map(_result, results)))], ends_at)

    async def _take(
        self, upload: Uploading, blocks: Sequence[tuple[bytes, int]], ends_at: float
    ) -> None:
        """Says which blocks are wanted and receives those, straight into the arena."""
        left = [(ChainHash(name), length) for name, length in blocks]
        while left:
            places = await upload.reserve(left)
            left = left[len(places) :]
            await self._in_thread(self._fill, places, _teller(upload), ends_at)

    def _fill(
        self,
        places: list[memoryview | None],
        filled: Callable[[int], object],
        ends_at: float,
    ) -> None:
        """Asks for the blocks that have a place, and tells of every stride of them that is there.
        In one go: between strides nothing waits for the event loop."""
        self._wire.send([frames.pack_wanted([one is not None for one in places])], ends_at)
        while places:
            stride = _stride(places)
            self._wire.receive([one for one in places[:stride] if one is not None], ends_at)
            filled(stride)
            places = places[stride:]

    async def _receive(self, ends_at: float, *due: Kind) -> Frame:
        frame = await self._in_thread(self._wire.receive_frame, ends_at)
        if frame.kind not in due:
            names = " or ".join(kind.name for kind in due)
            raise FrameError(f"{frame.kind.name} came, {names} is due")
        return frame

    async def _send(self, parts: Sequence[bytes | memoryview], ends_at: float) -> None:
        await self._in_thread(self._wire.send, parts, ends_at)

    async def _complain(self, status: Status, sentence: str) -> None:
        """The last frame of a connection that has gone wrong."""
        log.debug("bulk connection ended: %s", sentence)
        if self._is_sending:
            return
        with suppress(OSError):
            await self._send([frames.pack_error(status, sentence)], time.monotonic() + 1.0)

    async def _in_thread(self, call: Callable[..., Result], *args: object) -> Result:
        """As `call(*args)`. When this ends the thread has ended too, cancelled or not: it must not
        touch an arena extent that somebody else may have by then."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, call, *args)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._wire.abort()
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            running.exception()
            raise


def _teller(upload: Uploading) -> Callable[[int], object]:
    """What a thread calls to tell the upload, which belongs to this event loop, what is filled."""
    loop = asyncio.get_running_loop()
    return lambda count: loop.call_soon_threadsafe(upload.filled, count)


def _found(download: Downloading, layout: Layout) -> bytes:
    groups = [(group.layers.first, group.layers.count, len(group.extents)) for group in layout]
    extents = [group.extents for group in layout] or [np.empty((0, 3), np.uint32)]
    try:
        return frames.pack_found(
            frames.Found(
                np.array([answer.length for answer in download.answers], np.uint32),
                np.array([MISS[answer.miss] for answer in download.answers], np.uint8),
                np.array(groups, np.uint32).reshape(-1, 3),
                np.concatenate(extents),
            )
        )
    except FrameError as error:
        count, most = sum(map(len, extents)), frames.MAX_BODY[Kind.FOUND] // 12
        raise LimitExceeded("runs of heads and layers together", count, most) from error


def _span(field: str, first: int, count: int) -> Span:
    if first + count > MAX_U16:
        raise LimitExceeded(f"end of {field}", first + count, MAX_U16)
    return Span(first, count)


def _stride(places: Sequence[memoryview | None]) -> int:
    """How many of the places from the front are filled next."""
    size = 0
    for count, place in enumerate(places):
        if size >= STRIDE_BYTES:
            return count
        size += 0 if place is None else len(place)
    return len(places)


def _result(result: PutResult) -> frames.Result:
    return frames.Result(PUT[result.status], result.reason)

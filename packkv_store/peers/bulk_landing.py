"""Puts the runs of another node's answer where they belong, and believes nothing that it says."""

import asyncio
import time
from collections.abc import Sequence

from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Found, Frame, FrameError, Kind
from packkv_protos.bulk.wire import Wire
from packkv_store.cluster import Landed

# Block, offset in its payload, length.
Row = tuple[int, int, int]
# What is waited for at one time, and for how long.
PIECE_BYTES = 1 << 20
PIECE_SECONDS = 2.0
ANSWER_SECONDS = 5.0


class Rest:
    """Extents in the order in which their bytes come."""

    def __init__(self, extents: Sequence[Row]) -> None:
        self._extents = extents
        self._next = 0
        self._begun = 0  # bytes of the next one that have been taken

    def take(self, size: int) -> list[Row]:
        """The next extents, the last one cut short, of `size` bytes together if there are."""
        rows: list[Row] = []
        while size and self._next < len(self._extents):
            block, offset, length = self._extents[self._next]
            some = min(size, length - self._begun)
            rows.append((block, offset + self._begun, some))
            size -= some
            self._begun += some
            if self._begun == length:
                self._next, self._begun = self._next + 1, 0
        return rows


class Landing:
    """Whole payloads on their way into `places`. The bytes of each must come in order, so that a
    gap or an overlap shows without a map of what has come."""

    def __init__(
        self, places: Sequence[memoryview], on_bytes: Landed, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._places = places
        self._on_bytes = on_bytes
        self._loop = loop
        self._landed = [0] * len(places)
        self.has_begun = False

    def receive(self, wire: Wire, request: bytes) -> None:
        """Asks and takes in the whole answer. Blocks. Raises OSError, FrameError."""
        ends_at = time.monotonic() + ANSWER_SECONDS
        wire.send([request], ends_at)
        answer = wire.receive_frame(ends_at)
        self.has_begun = True
        left = self._check(frames.read_found(_body(answer)))
        mark = memoryview(bytearray(frames.MARK.size))
        while True:
            wire.receive([mark], time.monotonic() + PIECE_SECONDS)
            (size,) = frames.MARK.unpack(mark)
            if size == frames.RUNS_END:
                break
            if size == frames.RUNS_FAIL:
                _body(wire.receive_frame(time.monotonic() + PIECE_SECONDS))
            self._run(wire, left, size)
        if self._landed != list(map(len, self._places)):
            raise FrameError(f"{sum(self._landed)} of {sum(map(len, self._places))} bytes came")

    def _check(self, found: Found) -> Rest:
        """The places of the bytes that follow, in order."""
        lengths = list(map(len, self._places))
        if found.lengths.tolist() != lengths or found.misses.any():
            raise FrameError("it does not have all of these blocks, as they were, any more")
        ends = [0] * len(lengths)
        for block, offset, length in found.extents.tolist():
            if block >= len(lengths) or offset != ends[block] or offset + length > lengths[block]:
                raise FrameError(f"bytes {offset} to {offset + length} of block {block} announced")
            ends[block] += length
        if ends != lengths:
            raise FrameError(f"{sum(ends)} of {sum(lengths)} bytes announced")
        return Rest(found.extents.tolist())

    def _run(self, wire: Wire, rest: Rest, size: int) -> None:
        while size:
            rows = rest.take(min(size, PIECE_BYTES))
            parts = [self._places[block][offset : offset + n] for block, offset, n in rows]
            got = sum(map(len, parts))
            if got == 0:
                raise FrameError(f"{size} bytes more than were announced")
            wire.receive(parts, time.monotonic() + PIECE_SECONDS)
            size -= got
            for block, offset, length in rows:
                self._landed[block] = offset + length
            self._loop.call_soon_threadsafe(self._tell, rows)

    def _tell(self, rows: Sequence[Row]) -> None:
        for block, offset, length in rows:
            self._on_bytes(block, offset + length)


def _body(answer: Frame) -> memoryview:
    if answer.kind is Kind.ERROR:
        raise FrameError(f"status {answer.code}: {frames.read_error(answer.body)}")
    if answer.kind is not Kind.FOUND:
        raise FrameError(f"{answer.kind.name} came, FOUND is due")
    return answer.body

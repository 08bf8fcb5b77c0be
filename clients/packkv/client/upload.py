"""Turns blocks into the frames of a Put, one at a time, as the network takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from packkv.client.paths import Buffer
from packkv_protos.v1 import block_store_pb2 as pb

FRAME_BYTES = 1 << 20
# A frame of many small blocks stays small itself.
_MAX_STARTS = 4096
_DATA_TAG = bytes([pb.PutFrame.DATA_FIELD_NUMBER << 3 | 2])


class Upload:
    """The serialised frames of some blocks, each as full as it may be; remembers which blocks it
    began to send, and why it stopped.

    gRPC pulls the frames from a thread of its own and hides what is raised there, so an error of
    the caller's iterable is kept in `failure`, and the stream ends behind the blocks before it.
    """

    def __init__(self, blocks: Iterable[tuple[bytes, Buffer]]) -> None:
        self._blocks = blocks
        self.started: list[bytes] = []
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        frame = _Frame()
        for chain_hash, data in self._views():
            self.started.append(chain_hash)
            frame.starts.append(pb.BlockStart(chain_hash=chain_hash, length=len(data)))
            rest = frame.fill(data)
            while frame.is_full:
                yield frame.serialised()
                frame = _Frame()
                rest = frame.fill(rest)
        if frame.starts or frame.parts:
            yield frame.serialised()

    def _views(self) -> Iterator[tuple[bytes, memoryview]]:
        try:
            for chain_hash, payload in self._blocks:
                yield chain_hash, memoryview(payload).cast("B")
        except Exception as failure:
            self.failure = failure


class _Frame:
    """A PutFrame that is being filled. Its bytes are copied once, when it is serialised: by way of
    a message they would be copied twice more."""

    def __init__(self) -> None:
        self.starts: list[pb.BlockStart] = []
        self.parts: list[memoryview] = []
        self._size = 0

    @property
    def is_full(self) -> bool:
        return self._size == FRAME_BYTES or len(self.starts) == _MAX_STARTS

    def fill(self, data: memoryview) -> memoryview:
        """Takes in what there is room for; answers the rest."""
        part, rest = data[: FRAME_BYTES - self._size], data[FRAME_BYTES - self._size :]
        if part:
            self.parts.append(part)
            self._size += len(part)
        return rest

    def serialised(self) -> bytes:
        starts = pb.PutFrame(starts=self.starts).SerializeToString()
        if not self.parts:
            return starts
        return b"".join((starts, _DATA_TAG, _varint(self._size), *self.parts))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

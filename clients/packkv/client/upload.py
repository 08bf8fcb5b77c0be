"""Turns blocks into the frames of a Put, one at a time, as the network takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from packkv.client.paths import Buffer
from packkv_protos.v1 import block_store_pb2 as pb

FRAME_BYTES = 1 << 20
_DATA_TAG = bytes([pb.PutFrame.DATA_FIELD_NUMBER << 3 | 2])


class Upload:
    """The serialised frames of some blocks; remembers what it began to send, and why it stopped.

    gRPC pulls the frames from a thread of its own and hides what is raised there, so an error of
    the caller's iterable is kept in `failure` and the stream simply ends.
    """

    def __init__(self, blocks: Iterable[tuple[bytes, Buffer]]) -> None:
        self._blocks = blocks
        self.started: list[bytes] = []
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chain_hash, payload in self._blocks:
                data = memoryview(payload).cast("B")
                self.started.append(chain_hash)
                start = pb.BlockStart(chain_hash=chain_hash, length=len(data))
                yield pb.PutFrame(start=start).SerializeToString()
                for first in range(0, len(data), FRAME_BYTES):
                    piece = data[first : first + FRAME_BYTES]
                    # by way of a message the bytes would be copied twice more
                    yield b"".join((_DATA_TAG, _varint(len(piece)), piece))
        except Exception as failure:
            self.failure = failure


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

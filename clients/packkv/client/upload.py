"""Turns blocks into the frames of a Put, one at a time, as the network takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from packkv_protos.v1 import block_store_pb2 as pb

FRAME_BYTES = 1 << 20

Buffer: TypeAlias = bytes | bytearray | memoryview


class Upload:
    """The frames of some blocks; remembers what it has begun to send, and why it stopped.

    gRPC pulls the frames from a thread of its own and hides what is raised there, so an error of
    the caller's iterable is kept in `failure` and the stream simply ends.
    """

    def __init__(self, blocks: Iterable[tuple[bytes, Buffer]]) -> None:
        self._blocks = blocks
        self.started: list[bytes] = []
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[pb.PutFrame]:
        try:
            for chain_hash, payload in self._blocks:
                data = memoryview(payload).cast("B")
                self.started.append(chain_hash)
                start = pb.BlockStart(chain_hash=chain_hash, length=len(data))
                yield pb.PutFrame(start=start)
                for first in range(0, len(data), FRAME_BYTES):
                    yield pb.PutFrame(data=bytes(data[first : first + FRAME_BYTES]))
        except Exception as failure:
            self.failure = failure

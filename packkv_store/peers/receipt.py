"""Puts the frames of another node's Get where they belong, and believes nothing that they say."""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.cluster import Landed, PeerFailure


class Receipt:
    """Whole payloads on their way into `places`. The bytes of each must come in order, so that a
    gap or an overlap shows without a map of what has come."""

    def __init__(self, places: Sequence[memoryview], on_bytes: Landed) -> None:
        self._places = places
        self._on_bytes = on_bytes
        self._filled = [0] * len(places)

    def add(self, message: bytes) -> None:
        """Takes in one serialised GetFrame. Raises PeerFailure."""
        try:
            frame = pb.GetFrame.FromString(message)
        except DecodeError:
            raise PeerFailure(f"a frame of {len(message)} bytes cannot be read") from None
        for answer in frame.blocks:
            if answer.block >= len(self._places) or answer.length != len(
                self._places[answer.block]
            ):
                raise PeerFailure(f"it has {answer.length} bytes of block {answer.block} now")
        data, at = memoryview(frame.data), 0
        for extent in frame.extents:
            self._fill(extent.block, extent.offset, data[at : at + extent.length], extent.length)
            at += extent.length
        if at != len(data):
            raise PeerFailure(f"a frame has {len(data)} bytes, its extents name {at}")

    def check_complete(self) -> None:
        """Raises PeerFailure when the stream has ended too early."""
        for block, (filled, place) in enumerate(zip(self._filled, self._places, strict=True)):
            if filled != len(place):
                raise PeerFailure(f"{filled} of {len(place)} bytes of block {block} came")

    def _fill(self, block: int, offset: int, data: memoryview, length: int) -> None:
        if block >= len(self._places):
            raise PeerFailure(f"bytes for block {block} of {len(self._places)}")
        end = offset + length
        if offset != self._filled[block] or end > len(self._places[block]) or len(data) != length:
            raise PeerFailure(
                f"bytes {offset} to {end} of block {block}, which has "
                f"{self._filled[block]} of {len(self._places[block])}"
            )
        self._places[block][offset:end] = data
        self._filled[block] = end
        self._on_bytes(block, end)

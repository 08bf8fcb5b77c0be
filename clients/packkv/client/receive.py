"""Puts the frames of a Get where they belong, and believes nothing of what they claim.

The server may be broken or hostile. Every block index, offset and length is checked against what
was asked and announced before a byte is written, so the worst it can do is waste the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from packkv.client.messages import MAX_PAYLOAD_BYTES, Fetched, miss_of
from packkv.client.paths import Arrived
from packkv.client.paths.buffers import Buffers
from packkv.errors import ProtocolViolation
from packkv_protos.v1 import block_store_pb2 as pb

_DATA_TAG = bytes([pb.GetFrame.DATA_FIELD_NUMBER << 3 | 2])


class Frame(NamedTuple):
    """A GetFrame whose payload bytes are still where gRPC has put them."""

    blocks: Sequence[pb.BlockAnswer]
    extents: Sequence[pb.Extent]
    data: memoryview


def read_frame(message: bytes) -> Frame:
    """The frame that a serialised GetFrame holds; without a copy of its data when that is the first
    field, as this server sends it. Raises ProtocolViolation."""
    view = memoryview(message)
    data, rest = view[:0], message
    if message[:1] == _DATA_TAG:
        length, start = _read_varint(view, 1)
        if start + length <= len(view):
            data, rest = view[start : start + length], message[start + length :]
    try:
        frame = pb.GetFrame.FromString(rest)
    except DecodeError as error:
        raise _violation(f"a frame of {len(message)} bytes cannot be read") from error
    return Frame(frame.blocks, frame.extents, memoryview(frame.data) if frame.data else data)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """Value and where it ends; a length that no message can have when it is malformed."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return len(view) + 1, at


class Receipt:
    """The blocks of one Get while they arrive, all in one buffer.

    The buffer is allocated once, when every block has been answered for. Bytes of a block must
    arrive in ascending order, which makes an overlap or a gap visible without keeping a map.

    Args:
        count: blocks asked for.
        max_bytes: the most that the answers may announce together.
        whole: whole payloads were asked for, so a gap is an error.
        buffers: where the buffer comes from.
    """

    def __init__(self, count: int, *, max_bytes: int, whole: bool, buffers: Buffers) -> None:
        self._buffers = buffers
        self._max_bytes = max_bytes
        self._whole = whole
        self._answers: list[pb.BlockAnswer | None] = [None] * count
        self._unanswered = count
        self._announced = 0
        self._starts: list[int] = []
        self._buffer: memoryview | None = None
        self._received: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self._places: list[Fetched] | None = None

    def add(self, frame: Frame) -> None:
        """Take one frame in.

        Raises:
            ProtocolViolation: the frame contradicts the request, itself or an earlier frame.
        """
        for answer in frame.blocks:
            self._add_answer(answer)
        data = frame.data
        if not frame.extents and not data:
            return
        if self._unanswered:
            raise _violation(f"bytes came while {self._unanswered} blocks were unanswered")
        taken = 0
        for extent in frame.extents:
            self._place(extent, data[taken : taken + extent.length])
            taken += extent.length
        if taken != len(data):
            raise _violation(f"a frame has {len(data)} bytes, its extents name {taken}")

    @property
    def is_answered(self) -> bool:
        """Whether every block has been answered for."""
        return not self._unanswered

    def arrived(self) -> Arrived:
        """What is there of whole payloads, once every block has been answered for."""
        if self._places is None:
            self._places = [self._place_of(index) for index in range(len(self._answers))]
        return Arrived(self._places, [sum(r[-1]) if r else 0 for r in self._received])

    def blocks(self) -> list[Fetched]:
        """Every block, once the stream has ended.

        Raises:
            ProtocolViolation: an answer or bytes are missing.
        """
        if self._unanswered:
            raise _violation(f"the stream ended with {self._unanswered} blocks unanswered")
        return [self._block(index) for index in range(len(self._answers))]

    def _add_answer(self, answer: pb.BlockAnswer) -> None:
        index = answer.block
        if index >= len(self._answers):
            raise _violation(f"an answer for block {index}, but {len(self._answers)} were asked")
        if self._answers[index] is not None:
            raise _violation(f"block {index} was answered twice")
        if answer.miss and answer.length:
            raise _violation(f"block {index} is a miss and has {answer.length} bytes")
        if answer.length > MAX_PAYLOAD_BYTES:
            raise _violation(f"block {index} announces {answer.length} bytes; no payload has that")
        self._announced += answer.length
        if self._announced > self._max_bytes:
            raise _violation(f"{self._announced} bytes announced, the limit is {self._max_bytes}")
        self._answers[index] = answer
        self._unanswered -= 1

    def _place(self, extent: pb.Extent, data: memoryview) -> None:
        index, offset, length = extent.block, extent.offset, extent.length
        if index >= len(self._answers):
            raise _violation(f"bytes of block {index}, but {len(self._answers)} were asked")
        announced = self._length(index)
        ranges = self._received[index]
        arrived = ranges[-1][0] + ranges[-1][1] if ranges else 0
        if len(data) != length or length == 0:
            raise _violation(f"an extent of {length} bytes of block {index} has {len(data)}")
        if offset < arrived or (self._whole and offset != arrived):
            raise _violation(f"bytes {offset} of block {index} came after byte {arrived}")
        if offset + length > announced:
            raise _violation(
                f"bytes {offset} to {offset + length} of block {index}, which has {announced}"
            )
        start = self._start(index) + offset
        self._memory()[start : start + length] = data
        if ranges and offset == arrived:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((offset, length))

    def _block(self, index: int) -> Fetched:
        whole = self._place_of(index)
        if whole.data is None:
            return whole
        received = tuple(self._received[index])
        if self._whole and received != whole.received:
            arrived = sum(length for _, length in received)
            raise _violation(f"block {index} ended after {arrived} of {len(whole.data)} bytes")
        return Fetched(whole.data, None, received)

    def _place_of(self, index: int) -> Fetched:
        """The block as it will be when all of its payload has come."""
        answer = self._answers[index]
        assert answer is not None  # whoever calls has checked
        if answer.length == 0:
            return Fetched(None, miss_of(answer.miss or pb.MISS_REASON_ABSENT))
        start, length = self._start(index), answer.length
        return Fetched(self._memory()[start : start + length], None, ((0, length),))

    def _length(self, index: int) -> int:
        answer = self._answers[index]
        return 0 if answer is None else answer.length

    def _start(self, index: int) -> int:
        if not self._starts:
            ends = np.cumsum([self._length(i) for i in range(len(self._answers))], dtype=np.int64)
            self._starts = [0, *ends.tolist()]
        return self._starts[index]

    def _memory(self) -> memoryview:
        if self._buffer is None:
            # memory used before has old bytes in it, which must not show where none are sent
            self._buffer = (
                self._buffers.take(self._announced)
                if self._whole
                else np.zeros(self._announced, np.uint8).data
            )
        return self._buffer


def _violation(what: str) -> ProtocolViolation:
    return ProtocolViolation(f"Get: {what}")

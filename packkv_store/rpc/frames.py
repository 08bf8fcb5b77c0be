"""Frames as bytes. Payload bytes are copied once on their way out of the arena and once in.

gRPC hands over and takes whole messages as `bytes`. Building them by way of a protobuf message
would copy the payload twice more and, at 1 MiB a frame, cost a third of the speed.
"""

from collections.abc import AsyncIterator, Iterator, Sequence

from google.protobuf.message import DecodeError

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.errors import RequestError
from packkv_store.rpc.request import MAX_FRAME_BYTES
from packkv_store.store.answers import BlockAnswer, MissReason
from packkv_store.store.layout import Layout

# Field number and wire type: of the payload bytes, and of what precedes them.
GET_DATA_TAG = bytes([pb.GetFrame.DATA_FIELD_NUMBER << 3 | 2])
PUT_DATA_TAG = pb.PutFrame.DATA_FIELD_NUMBER << 3 | 2
PUT_STARTS_TAG = pb.PutFrame.STARTS_FIELD_NUMBER << 3 | 2
MAX_EXTENTS = 4096
MAX_ANSWERS = 4096
MISS = {
    None: pb.MISS_REASON_UNSPECIFIED,
    MissReason.ABSENT: pb.MISS_REASON_ABSENT,
    MissReason.CORRUPT: pb.MISS_REASON_CORRUPT,
    MissReason.HEADS: pb.MISS_REASON_HEADS,
}


def answer_frames(answers: Sequence[BlockAnswer]) -> Iterator[bytes]:
    """Serialised GetFrames that answer for the blocks, in order."""
    rows = [
        pb.BlockAnswer(block=block, length=answer.length, miss=MISS[answer.miss])
        for block, answer in enumerate(answers)
    ]
    for first in range(0, len(rows), MAX_ANSWERS):
        yield pb.GetFrame(blocks=rows[first : first + MAX_ANSWERS]).SerializeToString()


async def get_frames(layout: Layout, runs: AsyncIterator[list[memoryview]]) -> AsyncIterator[bytes]:
    """Serialised GetFrames with the bytes of the layout in order, each as full as it may be."""
    rows = (row for group in layout for row in group.extents.tolist())
    extents: list[pb.Extent] = []
    parts: list[memoryview] = []
    room = MAX_FRAME_BYTES
    async for run in runs:
        for data in run:
            block, offset, length = next(rows)
            while length > room or len(extents) == MAX_EXTENTS:
                fitting = room if len(extents) < MAX_EXTENTS else 0
                if fitting:
                    extents.append(pb.Extent(block=block, offset=offset, length=fitting))
                    parts.append(data[:fitting])
                yield _get_frame(extents, parts)
                extents, parts, room = [], [], MAX_FRAME_BYTES
                offset, length, data = offset + fitting, length - fitting, data[fitting:]
            extents.append(pb.Extent(block=block, offset=offset, length=length))
            parts.append(data)
            room -= length
    if parts:
        yield _get_frame(extents, parts)


def read_put_frame(message: bytes) -> tuple[Sequence[pb.BlockStart], memoryview]:
    """The starts and the data that a serialised PutFrame holds. Raises RequestError."""
    view = memoryview(message)
    at = 0
    while at < len(view) and view[at] == PUT_STARTS_TAG:
        length, start = _read_varint(view, at + 1)
        at = start + length
    if at < len(view) and view[at] == PUT_DATA_TAG:
        length, start = _read_varint(view, at + 1)
        if start + length == len(view):
            # as clients write it: starts, then the data to the end, which stays where it is
            return _put_frame(message[:at]).starts if at else (), view[start:]
    frame = _put_frame(message)
    if not frame.starts and not frame.data:
        raise RequestError("frame", "empty", "a start or data")
    return frame.starts, memoryview(frame.data)


def _put_frame(message: bytes) -> pb.PutFrame:
    try:
        return pb.PutFrame.FromString(message)
    except DecodeError as error:
        raise RequestError("frame", f"{len(message)} unreadable bytes", "a PutFrame") from error


def _get_frame(extents: list[pb.Extent], parts: list[memoryview]) -> bytes:
    fields = pb.GetFrame(extents=extents).SerializeToString()
    size = _varint(sum(map(len, parts)))
    # first, so that it can be found without reading the rest
    return b"".join([GET_DATA_TAG, size, *parts, fields])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


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

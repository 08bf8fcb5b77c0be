from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv.client.messages import Fetched, Miss
from packkv.client.paths.buffers import Buffers
from packkv.client.receive import Receipt, read_frame
from packkv.errors import ProtocolViolation
from packkv_protos.v1 import block_store_pb2 as pb


def answers(*lengths: int) -> pb.GetFrame:
    return pb.GetFrame(
        blocks=[
            pb.BlockAnswer(
                block=i, length=n, miss=pb.MISS_REASON_UNSPECIFIED if n else pb.MISS_REASON_ABSENT
            )
            for i, n in enumerate(lengths)
        ]
    )


def data(block: int, offset: int, content: bytes, **changes: Any) -> pb.GetFrame:
    extent = {"block": block, "offset": offset, "length": len(content)} | changes
    return pb.GetFrame(extents=[pb.Extent(**extent)], data=content)


def content(block: Fetched) -> bytes:
    assert block.data is not None
    return bytes(block.data)


def receive(*frames: pb.GetFrame, count: int = 2, whole: bool = True) -> list[Fetched]:
    receipt = Receipt(count, max_bytes=1000, whole=whole, buffers=Buffers(0))
    for frame in frames:
        receipt.add(read_frame(frame.SerializeToString()))
    return receipt.blocks()


def test_layer_major_frames_become_whole_payloads() -> None:
    both = pb.GetFrame(
        extents=[
            pb.Extent(block=0, offset=2, length=2),
            pb.Extent(block=1, offset=1, length=3),
        ],
        data=b"cdBCD",
    )
    one, two, three = receive(answers(4, 4, 0), data(0, 0, b"ab"), data(1, 0, b"A"), both, count=3)
    assert content(one) == b"abcd"
    assert content(two) == b"ABCD"
    assert three == Fetched(None, Miss.ABSENT)


def test_a_part_of_the_layers_leaves_zeros_and_says_what_came() -> None:
    (block,) = receive(
        answers(10), data(0, 0, b"ab"), data(0, 4, b"e"), data(0, 5, b"f"), count=1, whole=False
    )
    assert content(block) == b"ab\0\0ef\0\0\0\0"
    assert block.received == ((0, 2), (4, 2))


def test_a_reason_from_the_future_is_a_miss() -> None:
    frame = pb.GetFrame(blocks=[pb.BlockAnswer(block=0, miss=pb.MissReason.ValueType(77))])
    assert receive(frame, count=1) == [Fetched(None, Miss.ABSENT)]


START = answers(4, 4)
WILD = {
    "answer for a block nobody asked for": [pb.GetFrame(blocks=[pb.BlockAnswer(block=2)])],
    "answer far outside": [pb.GetFrame(blocks=[pb.BlockAnswer(block=2**32 - 1)])],
    "two answers for one block": [START, answers(4)],
    "a miss with bytes": [
        pb.GetFrame(blocks=[pb.BlockAnswer(block=0, length=4, miss=pb.MISS_REASON_ABSENT)])
    ],
    "more bytes than allowed": [answers(600, 600)],
    "absurd length": [answers(2**64 - 1, 1)],
    "bytes before all answers": [answers(4), data(0, 0, b"abcd")],
    "extent of a wild block": [START, data(2, 0, b"a")],
    "extent of a huge block index": [START, data(2**32 - 1, 0, b"a")],
    "extent past the end": [START, data(0, 0, b"abcde")],
    "offset past the end": [START, data(0, 5, b"a")],
    "offset near 2**64": [START, data(0, 2**64 - 1, b"a")],
    "overlap": [START, data(0, 0, b"ab"), data(0, 1, b"bc")],
    "the same bytes twice": [START, data(0, 0, b"ab"), data(0, 0, b"ab")],
    "a gap": [START, data(0, 0, b"a"), data(0, 2, b"cd")],
    "an extent longer than the data": [START, data(0, 0, b"ab", length=4)],
    "an extent shorter than the data": [START, data(0, 0, b"abcd", length=2)],
    "an empty extent": [START, data(0, 0, b"")],
    "data without an extent": [START, pb.GetFrame(data=b"abcd")],
    "bytes of a block that is a miss": [answers(4, 0), data(1, 0, b"a")],
    "the end comes early": [START, data(0, 0, b"abcd"), data(1, 0, b"abc")],
    "no bytes at all": [START],
    "no answers at all": [],
}


@pytest.mark.parametrize("frames", WILD.values(), ids=WILD.keys())
def test_wild_frames_are_refused(frames: list[pb.GetFrame]) -> None:
    with pytest.raises(ProtocolViolation):
        receive(*frames)


SMALL = st.integers(0, 6) | st.sampled_from([2**31, 2**32 - 1])
FRAMES = st.builds(
    pb.GetFrame,
    blocks=st.lists(st.builds(pb.BlockAnswer, block=SMALL, length=SMALL, miss=st.integers(0, 3))),
    extents=st.lists(st.builds(pb.Extent, block=SMALL, offset=SMALL, length=SMALL), max_size=3),
    data=st.binary(max_size=12),
)


@given(st.lists(FRAMES, max_size=5), st.booleans())
def test_any_frames_are_either_refused_or_complete(frames: list[pb.GetFrame], whole: bool) -> None:
    try:
        blocks = receive(*frames, whole=whole)
    except ProtocolViolation:
        return
    for block in blocks:
        if block.data is None:
            assert block.miss is not None
        elif whole:
            assert block.received == ((0, len(block.data)),)

"""Nothing that another node sends is believed."""

import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.cluster import PeerFailure
from packkv_store.peers.receipt import Receipt


def places(*lengths: int) -> list[memoryview]:
    return [memoryview(bytearray(length)) for length in lengths]


def frame(data: bytes, *extents: tuple[int, int, int]) -> bytes:
    rows = [pb.Extent(block=block, offset=start, length=size) for block, start, size in extents]
    return pb.GetFrame(extents=rows, data=data).SerializeToString()


def answers(*rows: pb.BlockAnswer) -> bytes:
    return pb.GetFrame(blocks=rows).SerializeToString()


def test_bytes_come_where_they_belong() -> None:
    into = places(4, 2)
    landed: list[tuple[int, int]] = []
    receipt = Receipt(into, lambda block, filled: landed.append((block, filled)))
    receipt.add(answers(pb.BlockAnswer(block=0, length=4), pb.BlockAnswer(block=1, length=2)))
    receipt.add(frame(b"abxy", (0, 0, 2), (1, 0, 2)))
    with pytest.raises(PeerFailure, match="2 of 4 bytes of block 0"):
        receipt.check_complete()
    receipt.add(frame(b"cd", (0, 2, 2)))
    receipt.check_complete()
    assert [bytes(place) for place in into] == [b"abcd", b"xy"]
    assert landed == [(0, 2), (1, 2), (0, 4)]


@pytest.mark.parametrize(
    "message",
    [
        b"\xff\xff",
        frame(b"ab", (2, 0, 2)),
        frame(b"ab", (0, 1, 2)),
        frame(b"abcde", (0, 0, 5)),
        frame(b"ab", (0, 0, 3)),
        frame(b"abc", (0, 0, 2)),
        frame(b"abab", (0, 0, 2), (0, 0, 2)),
        frame(b"", (0, 0, 2**32 - 1)),
        frame(b"a", (0, 2**63, 1)),
        answers(pb.BlockAnswer(block=0, length=5)),
        answers(pb.BlockAnswer(block=0, miss=pb.MISS_REASON_ABSENT)),
        answers(pb.BlockAnswer(block=7, length=4)),
    ],
)
def test_what_does_not_fit_is_refused(message: bytes) -> None:
    with pytest.raises(PeerFailure):
        Receipt(places(4, 2), lambda block, filled: None).add(message)

"""Blocks become frames that are as full as they may be, whatever the size of the blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packkv.client.upload import FRAME_BYTES, Upload
from packkv_protos.v1 import block_store_pb2 as pb


def blocks_of(*sizes: int) -> list[tuple[bytes, bytes]]:
    return [(bytes([i]) * 32, bytes([i + 1]) * size) for i, size in enumerate(sizes)]


def frames_of(upload: Upload) -> list[pb.PutFrame]:
    return [pb.PutFrame.FromString(message) for message in upload]


@pytest.mark.parametrize(
    "sizes",
    [
        [300, 1, 0, 7000],
        [FRAME_BYTES, FRAME_BYTES],
        [FRAME_BYTES - 1, 2, FRAME_BYTES],
        [3 * FRAME_BYTES + 5, 0, 5],
        [0],
        [],
    ],
    ids=str,
)
def test_all_bytes_come_in_order_and_every_frame_but_the_last_is_full(sizes: list[int]) -> None:
    blocks = blocks_of(*sizes)
    upload = Upload(blocks)
    frames = frames_of(upload)
    assert b"".join(frame.data for frame in frames) == b"".join(data for _, data in blocks)
    assert [len(frame.data) for frame in frames[:-1]] == [FRAME_BYTES] * (len(frames) - 1)
    starts = [(start.chain_hash, start.length) for frame in frames for start in frame.starts]
    assert starts == [(name, len(data)) for name, data in blocks]
    assert upload.started == [name for name, _ in blocks]


def test_a_start_comes_no_later_than_the_first_byte_of_its_block() -> None:
    named = sent = 0
    for frame in frames_of(Upload(blocks_of(10, FRAME_BYTES, 20, 2 * FRAME_BYTES, 30))):
        # nor earlier: the bytes of those before it are all sent by the end of the frame
        lengths = [start.length for start in frame.starts]
        sent += len(frame.data)
        assert not lengths or named + sum(lengths[:-1]) <= sent
        named += sum(lengths)
        assert named >= sent
    assert named == sent


def test_many_empty_blocks_do_not_make_a_large_frame() -> None:
    messages = list(Upload((bytes(32), b"") for _ in range(10_000)))
    assert len(messages) == 3
    assert max(map(len, messages)) < FRAME_BYTES


def test_blocks_before_a_failure_are_sent() -> None:
    def failing() -> Iterator[tuple[bytes, bytes]]:
        yield bytes(32), b"abc"
        raise ZeroDivisionError

    upload = Upload(failing())
    [frame] = frames_of(upload)
    assert frame.data == b"abc"
    assert isinstance(upload.failure, ZeroDivisionError)

"""Put takes the bytes of all blocks in frames that are cut anywhere."""

from collections.abc import Iterator

import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from tests.store.conftest import MIB, Client, Payload, build_prefix


@pytest.mark.parametrize("size", [100, 5000, MIB])
async def test_a_frame_may_hold_the_ends_and_starts_of_many_blocks(
    client: Client, size: int
) -> None:
    prefix = build_prefix("a", 9, layers=1, heads=1, section_bytes=64)
    names = [payload.chain_hash for payload in prefix]
    reply = await client.blocks.Put(shared_frames(prefix, size))
    assert [result.chain_hash for result in reply.results] == names
    assert {result.status for result in reply.results} == {pb.PUT_STATUS_STORED}
    got = await client.get(names)
    assert [bytes(got.payloads[i]) for i in range(9)] == [payload.data for payload in prefix]


def shared_frames(payloads: list[Payload], size: int) -> Iterator[pb.PutFrame]:
    """The bytes of all blocks cut into frames of that size, whatever begins or ends in them."""
    data = b"".join(payload.data for payload in payloads)
    begins = 0
    starts = []
    for payload in payloads:
        start = pb.BlockStart(chain_hash=payload.chain_hash, length=len(payload.data))
        starts.append((begins, start))
        begins += len(payload.data)
    for at in range(0, len(data), size):
        here = [start for begins, start in starts if at <= begins < at + size]
        yield pb.PutFrame(starts=here, data=data[at : at + size])

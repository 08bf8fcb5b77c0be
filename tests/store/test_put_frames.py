"""Put takes the bytes of all blocks in frames that are cut anywhere."""

from collections.abc import Iterator

import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.store.upload import LARGE_BYTES
from tests.store.conftest import MIB, Client, Payload, build_payload, build_prefix


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


async def test_a_large_block_is_judged_as_a_small_one_is(client: Client) -> None:
    good = build_payload(b"g" * 32, b"r" * 32, layers=1, heads=2, section_bytes=7 * MIB)
    assert len(good.data) >= LARGE_BYTES
    last = good.data[-1] ^ 1
    bad = Payload(good.chain_hash, good.root_hash, good.data[:-1] + bytes([last]), 1, 2)
    (result,) = await client.put([bad])
    assert result.status == pb.PUT_STATUS_REJECTED
    assert "digest of the section of layer 0, head 1" in result.reason
    assert (await client.match([good.chain_hash])).blocks == 0
    # there is room for one of them
    (result,) = await client.put([good])
    assert result.status == pb.PUT_STATUS_STORED
    assert bytes((await client.get([good.chain_hash])).payloads[0]) == good.data


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

"""A store keeps cold payloads like any: their preambles travel with their heads."""

from pathlib import Path

import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.tiers.extents import extent_size
from tests.store.conftest import (
    Client,
    HandClock,
    Payload,
    build_prefix,
    connected,
    serving,
    small_config,
)

MIB = 1 << 20


def names(prefix: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in prefix]


@pytest.mark.parametrize("blocks", [4, 60], ids=["in RAM", "on disk"])
async def test_cold_and_resident_payloads_come_whole_and_in_parts(
    tmp_path: Path, clock: HandClock, blocks: int
) -> None:
    # 60 blocks are 7 MiB, and RAM has 2
    prefix = build_prefix("cold", blocks, section_bytes=20_000, preamble_bytes=8000)
    prefix[1::2] = build_prefix("cold", blocks, section_bytes=20_000)[1::2]
    config = small_config(data_dir=tmp_path, ram_bytes=2 * MIB)
    async with serving(config, clock) as app, connected(app.address) as client:
        assert {result.status for result in await client.put(prefix)} == {pb.PUT_STATUS_STORED}
        assert (await client.match(names(prefix))).blocks == blocks
    async with serving(config, clock) as app, connected(app.address) as client:
        whole = await client.get(names(prefix))
        assert [bytes(whole.payloads[i]) for i in range(blocks)] == [p.data for p in prefix]
        some = await client.get(
            names(prefix), layers=pb.Range(first=1, count=2), heads=pb.Range(first=1, count=1)
        )
        for number, payload in enumerate(prefix):
            wanted = bytearray(len(payload.data))
            wanted[: payload.head_length] = payload.data[: payload.head_length]
            for section in (3, 5):
                row = payload.data[192 + 24 * section :]
                start = int.from_bytes(row[:4], "little")
                end = start + int.from_bytes(row[4:8], "little")
                wanted[start:end] = payload.data[start:end]
            assert some.payloads[number] == wanted


async def cold(client: Client) -> list[tuple[int, int]]:
    """Blocks in cold form and what they take, in RAM and on disk."""
    return [(tier.cold_blocks, tier.cold_bytes) for tier in (await client.stats()).tiers]


async def test_stats_tell_how_much_is_cold_as_it_comes_and_goes(
    tmp_path: Path, clock: HandClock
) -> None:
    resident = build_prefix("resident", 2, section_bytes=20_000)
    coded = build_prefix("cold", 6, section_bytes=20_000, preamble_bytes=8000)
    config = small_config(data_dir=tmp_path, ram_bytes=2 * MIB)
    async with serving(config, clock) as app, connected(app.address) as client:
        await client.put(resident)
        assert await cold(client) == [(0, 0), (0, 0)]
        await client.put(coded)
        takes = sum(extent_size(len(payload.data)) for payload in coded)
        assert await cold(client) == [(6, takes), (6, takes)]
        used = [tier.used_bytes for tier in (await client.stats()).tiers]
        assert all(takes < one for one in used)
        # 20 more are 2 MiB: all of these leave RAM, and none the disk
        await client.put(build_prefix("more", 20, section_bytes=20_000))
        assert await cold(client) == [(0, 0), (6, takes)]
    async with serving(config, clock) as app, connected(app.address) as client:
        assert await cold(client) == [(0, 0), (6, takes)]
        # what is read is promoted
        await client.get(names(coded[:2]))
        two = sum(extent_size(len(payload.data)) for payload in coded[:2])
        assert await cold(client) == [(2, two), (6, takes)]
        await client.clear(coded[0].root_hash)
        assert await cold(client) == [(0, 0), (0, 0)]

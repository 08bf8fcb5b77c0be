"""Blocks that are cleared while something still needs them."""

import asyncio
from pathlib import Path

import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from packkv_store.tiers.extents import Extent
from tests.store.conftest import (
    MIB,
    Client,
    HandClock,
    Payload,
    build_prefix,
    connected,
    serving,
    small_config,
)


def hashes_of(payloads: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in payloads]


async def used_bytes(client: Client) -> int:
    stats = await client.stats()
    return sum(tier.used_bytes for tier in stats.tiers)


async def test_a_block_that_is_cleared_while_it_is_held_goes_when_it_is_let_go(
    app: App, client: Client
) -> None:
    prefix = build_prefix("a", 3)
    await client.put(prefix)
    residents = app.store.residents
    one, two, _ = residents.table.all()
    async with residents.holding([one.key, two.key]):
        async with residents.holding([one.key]):
            await client.clear()
        assert residents.table.all() == [one, two]
    assert residents.table.all() == []
    assert await used_bytes(client) == 0


async def test_a_block_that_is_cleared_during_a_get_goes_when_the_get_is_broken_off(
    clock: HandClock,
) -> None:
    config = small_config(ram_bytes=32 * MIB)
    async with serving(config, clock) as app, connected(app.address) as reader:
        prefix = build_prefix("a", 20, layers=2, heads=2, section_bytes=350_000)
        await reader.put(prefix)
        stream = reader.blocks.Get(pb.GetRequest(chain_hashes=hashes_of(prefix)))
        await stream.read()
        assert (await reader.clear()).blocks == 20
        assert await used_bytes(reader) > 0
        stream.cancel()
        async with asyncio.timeout(60):
            while await used_bytes(reader):
                await asyncio.sleep(0.01)


async def test_a_block_that_is_put_again_stays_although_its_last_reader_leaves_at_that_moment(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(data_dir=tmp_path)
    async with serving(config, clock) as app, connected(app.address) as client:
        [payload] = build_prefix("a", 1)
        await client.put([payload])
        await client.match([payload.chain_hash], lease_ms=5000)
        await client.clear()
        residents = app.store.residents
        assert residents.disk is not None
        give_back = residents.disk.give_back

        async def while_the_reader_leaves(*extents: Extent) -> None:
            if extents:
                clock.move(5)
                await residents.collect()
            await give_back(*extents)

        monkeypatch.setattr(residents.disk, "give_back", while_the_reader_leaves)
        [result] = await client.put([payload])
        assert result.status == pb.PUT_STATUS_ALREADY_PRESENT
        got = await client.get([payload.chain_hash])
        assert got.payloads[0] == payload.data

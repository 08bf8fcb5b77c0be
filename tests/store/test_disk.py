"""Blocks that outlive RAM, the process, and damage."""

import resource
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from packkv_store.config import StoreConfig
from packkv_store.errors import ConfigError
from tests.store.conftest import (
    MIB,
    Client,
    HandClock,
    Payload,
    build_prefix,
    connected,
    server_process,
    serving,
    small_config,
)


def disk_config(folder: Path, **kwargs: object) -> StoreConfig:
    return small_config(data_dir=folder, **({"ram_bytes": 2 * MIB} | kwargs))


def hashes_of(payloads: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in payloads]


async def check_all(client: Client, prefix: list[Payload]) -> None:
    got = await client.get(hashes_of(prefix))
    assert not got.misses
    for number, payload in enumerate(prefix):
        assert got.payloads[number] == payload.data


async def test_blocks_that_left_ram_come_back_from_disk(tmp_path: Path, clock: HandClock) -> None:
    prefix = build_prefix("a", 30, section_bytes=20_000)  # 3.8 MiB, RAM has 2
    async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
        await client.put(prefix)
        match = await client.match(hashes_of(prefix))
        assert match.blocks == 30
        assert set(match.tiers) == {pb.TIER_RAM, pb.TIER_DISK}
        for payload in prefix:
            await check_all(client, [payload])
        counters = (await client.stats()).counters
        assert counters["packkv_promotions_total"] > 0
        assert counters['packkv_evictions_total{tier="ram"}'] > 0
        assert counters['packkv_evictions_total{tier="disk"}'] == 0


async def test_a_prefix_larger_than_ram_is_served_from_disk(
    tmp_path: Path, clock: HandClock
) -> None:
    prefix = build_prefix("a", 60, section_bytes=20_000)
    async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
        await client.put(prefix)
        match = await client.match(hashes_of(prefix), lease_ms=5000)
        assert match.blocks == 60
        await check_all(client, prefix)
        some = await client.get(hashes_of(prefix), layers=pb.Range(first=1, count=1))
        assert sum(some.frames) < sum(len(payload.data) for payload in prefix) / 2


async def test_a_restart_keeps_blocks_node_and_profiles(tmp_path: Path, clock: HandClock) -> None:
    prefix = build_prefix("a", 10)
    nodes = set()
    for is_first in (True, False):
        async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
            if is_first:
                await client.put(prefix)
                put = pb.PutProfileRequest(model_digest=b"m" * 32, profile=b"profile")
                await client.blocks.PutProfile(put)
            await check_all(client, prefix)
            ask = pb.GetProfileRequest(model_digest=b"m" * 32)
            assert (await client.blocks.GetProfile(ask)).profile == b"profile"
            nodes.add((await client.stats()).node)
    assert len(nodes) == 1


async def test_time_to_live_counts_through_a_restart(tmp_path: Path, clock: HandClock) -> None:
    [payload] = build_prefix("a", 1)
    config = disk_config(tmp_path, ttl_seconds=10.0)
    async with serving(config, clock) as app, connected(app.address) as client:
        await client.put([payload])
    clock.move(11)
    async with serving(config, clock) as app, connected(app.address) as client:
        assert (await client.match([payload.chain_hash])).blocks == 0


def damage(folder: Path, payload: Payload) -> None:
    """Flips one byte of the last section where the block lies on disk."""
    raw = bytearray((folder / "blocks").read_bytes())
    at = raw.index(payload.data[:192]) + len(payload.data) - 1
    raw[at] ^= 1
    (folder / "blocks").write_bytes(raw)


async def test_a_flipped_byte_on_disk_is_a_counted_miss_and_then_absent(
    tmp_path: Path, clock: HandClock
) -> None:
    prefix = build_prefix("a", 3)
    async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
        await client.put(prefix)
    damage(tmp_path, prefix[1])
    async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
        assert (await client.match(hashes_of(prefix))).blocks == 3
        got = await client.get(hashes_of(prefix))
        assert got.misses == {1: pb.MISS_REASON_CORRUPT}
        assert got.payloads[2] == prefix[2].data
        counters = (await client.stats()).counters
        assert counters['packkv_corrupt_blocks_total{tier="disk"}'] == 1
        assert counters['packkv_misses_total{reason="corrupt"}'] == 1
        match = await client.match(hashes_of(prefix))
        assert (match.blocks, match.miss) == (1, pb.MISS_REASON_ABSENT)
        # it can be put again, and is then whole
        await client.put(prefix)
        await check_all(client, prefix)


async def test_a_flipped_byte_met_on_the_way_ends_the_stream(
    tmp_path: Path, clock: HandClock
) -> None:
    prefix = build_prefix("a", 60, section_bytes=20_000)
    async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
        await client.put(prefix)
    damage(tmp_path, prefix[-1])
    async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
        # the front of the prefix fills RAM, the rest is read on the way
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.get(hashes_of(prefix))
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        got = await client.get(hashes_of(prefix))
        assert got.misses == {59: pb.MISS_REASON_ABSENT}
        assert got.payloads[58] == prefix[58].data


async def test_damage_in_ram_is_found_by_scrubbing(app: App, client: Client) -> None:
    prefix = build_prefix("a", 3)
    await client.put(prefix)
    residents = app.store.residents
    [block] = [b for b in residents.all_in_ram() if b.key[16:] == prefix[1].chain_hash]
    shelf = residents.ram_of(block.key)
    view = shelf.tier.view(shelf.extent(block), block.length)
    view[-1] ^= 1
    await app.store.promotion.scrub()
    assert (await client.match(hashes_of(prefix))).blocks == 1
    counters = (await client.stats()).counters
    assert counters['packkv_corrupt_blocks_total{tier="ram"}'] == 1


async def test_the_file_that_is_cut_short_loses_the_end_alone(
    tmp_path: Path, clock: HandClock
) -> None:
    prefix = build_prefix("a", 20)
    async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
        await client.put(prefix)
    with (tmp_path / "blocks").open("r+b") as file:
        file.truncate((tmp_path / "blocks").stat().st_size // 2)
    async with serving(disk_config(tmp_path), clock) as app, connected(app.address) as client:
        match = await client.match(hashes_of(prefix))
        assert 0 < match.blocks < 20
        await check_all(client, prefix[: match.blocks])
        await client.put(prefix)
        await check_all(client, prefix)


async def test_two_servers_cannot_share_a_directory(tmp_path: Path, clock: HandClock) -> None:
    async with serving(disk_config(tmp_path), clock):
        with pytest.raises(ConfigError, match="in use by another server"):
            App(disk_config(tmp_path))


async def test_files_stay_inside_the_capacity(tmp_path: Path, clock: HandClock) -> None:
    config = disk_config(tmp_path, disk_bytes=4 * MIB, sync=False)
    async with serving(config, clock) as app, connected(app.address) as client:
        for number in range(6):
            clock.move(1)
            await client.put(build_prefix(str(number), 20, section_bytes=15_000))
            sizes = [path.stat().st_size for path in (tmp_path / "blocks", tmp_path / "table")]
            assert sum(sizes) <= 4 * MIB
        assert (await client.stats()).counters['packkv_evictions_total{tier="disk"}'] > 0
        await check_all(client, build_prefix("5", 20, section_bytes=15_000))


async def test_a_disk_that_fills_up_evicts_and_goes_on(tmp_path: Path) -> None:
    """The system refuses any file beyond 3 MiB, as a full disk does, though 32 are configured."""
    flags = ["--ram-bytes", "2MiB", "--disk-bytes", "32MiB", "--data-dir", str(tmp_path)]
    async with AsyncExitStack() as stack:
        server = stack.enter_context(server_process(*flags))
        resource.prlimit(server.popen.pid, resource.RLIMIT_FSIZE, (3 * MIB, 3 * MIB))
        client = await stack.enter_async_context(connected(server.address))
        for number in range(5):
            prefix = build_prefix(str(number), 10, section_bytes=15_000)
            results = await client.put(prefix)
            assert {result.status for result in results} == {pb.PUT_STATUS_STORED}
        stats = await client.stats()
        assert stats.counters['packkv_tier_failures_total{tier="disk"}'] > 0
        assert stats.counters['packkv_evictions_total{tier="disk"}'] > 0
        assert (tmp_path / "blocks").stat().st_size <= 3 * MIB
        server.kill()
    async with serving(disk_config(tmp_path)) as app, connected(app.address) as client:
        await check_all(client, prefix)

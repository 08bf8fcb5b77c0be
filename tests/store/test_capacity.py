"""Capacity is a bound, whatever is put, and leases outweigh it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from tests.store.conftest import (
    MIB,
    Client,
    HandClock,
    Payload,
    build_payload,
    build_prefix,
    connected,
    server_process,
    serving,
    small_config,
)

STORED, REJECTED = pb.PUT_STATUS_STORED, pb.PUT_STATUS_REJECTED


def large(name: str, count: int) -> list[Payload]:
    """Blocks of about 210 KiB: a tier of 1 MiB has room for four."""
    return build_prefix(name, count, layers=2, heads=2, section_bytes=70_000)


def hashes_of(payloads: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in payloads]


async def present(client: Client, payloads: list[Payload]) -> list[bool]:
    return [bool((await client.match([p.chain_hash])).blocks) for p in payloads]


def prefix_part(is_present: list[bool]) -> bool:
    """Some blocks went, and all of them from the tail."""
    return is_present[0] and not is_present[-1] and is_present == sorted(is_present)[::-1]


@pytest.fixture
async def tiny(clock: HandClock) -> AsyncIterator[Client]:
    async with serving(small_config(ram_bytes=MIB), clock) as app, connected(app.address) as client:
        yield client


async def test_the_tail_of_a_prefix_goes_before_its_head(tiny: Client, clock: HandClock) -> None:
    prefix = large("a", 3)
    await tiny.put(prefix)
    clock.move(1)
    await tiny.put(large("b", 2))
    assert prefix_part(await present(tiny, prefix))


async def test_a_tail_put_later_does_not_outlive_its_head(tiny: Client, clock: HandClock) -> None:
    prefix = large("a", 3)
    await tiny.put(prefix[:1])
    clock.move(1)
    # what a worker does: it matches, finds the head, computes the rest and puts it
    await tiny.match(hashes_of(prefix))
    clock.move(1)
    await tiny.put(prefix[1:])
    clock.move(1)
    await tiny.put(large("b", 2))
    assert prefix_part(await present(tiny, prefix))


async def test_what_is_used_stays_and_what_is_not_goes(tiny: Client, clock: HandClock) -> None:
    old, new = large("old", 1), large("new", 1)
    await tiny.put(old)
    clock.move(1)
    await tiny.put(new)
    clock.move(1)
    await tiny.match(hashes_of(old))
    clock.move(1)
    await tiny.put(large("more", 3))
    assert await present(tiny, [*old, *new]) == [True, False]


async def test_leased_blocks_stay_and_a_put_without_room_is_rejected(
    tiny: Client, clock: HandClock
) -> None:
    held, more = large("held", 4), large("more", 2)
    await tiny.put(held)
    match = await tiny.match(hashes_of(held), lease_ms=5000)
    assert match.blocks == len(held)
    results = await tiny.put(more)
    assert {result.status for result in results} == {REJECTED}
    assert "no room for" in results[0].reason
    assert (await tiny.match(hashes_of(held))).blocks == len(held)
    clock.move(5)
    assert {result.status for result in await tiny.put(more)} == {STORED}


async def test_a_block_larger_than_the_tier_is_rejected(tiny: Client) -> None:
    [giant] = build_prefix("a", 1, layers=1, heads=1, section_bytes=2_000_000)
    [result] = await tiny.put([giant])
    assert result.status == REJECTED


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "match", "get", "clear", "move"]),
            st.integers(0, 11),
            st.integers(1, 5),
        ),
        max_size=30,
    ),
    on_disk=st.booleans(),
)
def test_no_sequence_of_calls_exceeds_the_capacity_or_breaks_a_lease(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], on_disk: bool
) -> None:
    folder = tmp_path_factory.mktemp("data") if on_disk else None
    asyncio.run(_replay(steps, folder))


async def _replay(steps: list[tuple[str, int, int]], folder: Path | None) -> None:
    clock = HandClock()
    config = small_config(ram_bytes=MIB, disk_bytes=3 * MIB, data_dir=folder, sync=False)
    async with serving(config, clock) as app, connected(app.address) as client:
        leased: dict[bytes, float] = {}
        for kind, number, count in steps:
            prefix = build_prefix(str(number), count, layers=1, heads=2, section_bytes=90_000)
            if kind == "put":
                await client.put(prefix)
            elif kind == "match":
                match = await client.match(hashes_of(prefix), lease_ms=count * 1000)
                end = clock.now + count
                for name in hashes_of(prefix)[: match.blocks]:
                    leased[name] = max(leased.get(name, 0), end)
            elif kind == "get":
                got = await client.get(hashes_of(prefix))
                for block, data in got.payloads.items():
                    assert data == prefix[block].data
            elif kind == "clear":
                await client.clear()
                leased.clear()
            else:
                clock.move(count)
            await _check(app, client, {n for n, end in leased.items() if end > clock.now})


async def _check(app: App, client: Client, leased: set[bytes]) -> None:
    for tier in (await client.stats()).tiers:
        assert tier.used_bytes <= tier.capacity_bytes
    if folder := app.store.residents.disk:
        assert folder.tier.used_bytes <= 3 * MIB
    for name in leased:
        assert (await client.match([name])).blocks == 1


async def test_a_stalled_reader_holds_up_nobody(clock: HandClock) -> None:
    async with (
        serving(small_config(ram_bytes=32 * MIB), clock) as app,
        connected(app.address) as slow,
        connected(app.address) as other,
    ):
        prefix = build_prefix("a", 20, layers=2, heads=2, section_bytes=350_000)
        await slow.put(prefix)
        stream = slow.blocks.Get(pb.GetRequest(chain_hashes=hashes_of(prefix)))
        await stream.read()
        for _ in range(3):
            got = await asyncio.wait_for(other.get(hashes_of(prefix)), 60)
            assert len(got.payloads) == 20
        # blocks that are being sent do not go, however much is put
        await other.put(build_prefix("b", 20, layers=2, heads=2, section_bytes=350_000))
        assert (await other.match(hashes_of(prefix))).blocks == 20
        stream.cancel()


async def test_a_deadline_ends_the_stream_and_frees_its_blocks(clock: HandClock) -> None:
    config = small_config(ram_bytes=32 * MIB)
    async with serving(config, clock) as app, connected(app.address) as client:
        prefix = build_prefix("a", 20, layers=2, heads=2, section_bytes=350_000)
        await client.put(prefix)
        request = pb.GetRequest(chain_hashes=hashes_of(prefix))
        # longer if the stream has not begun by then
        for seconds in (0.5, 5, 60):
            stream = client.blocks.Get(request, timeout=seconds)
            with suppress(grpc.aio.AioRpcError):
                await stream.read()
                break
        await let_go(app, prefix[0])
        assert await stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_stream_has_an_end(clock: HandClock) -> None:
    async with (
        serving(small_config(ram_bytes=32 * MIB, stream_seconds=1.0), clock) as app,
        connected(app.address) as client,
    ):
        prefix = build_prefix("a", 20, layers=2, heads=2, section_bytes=350_000)
        await client.put(prefix)
        stream = client.blocks.Get(pb.GetRequest(chain_hashes=hashes_of(prefix)))
        await stream.read()
        await let_go(app, prefix[0])
        stream.cancel()


async def let_go(app: App, payload: Payload) -> None:
    """Returns when no stream holds the block any more; nobody reads, so none comes to its end."""
    async with asyncio.timeout(60):
        while app.store.leases.holds(app_key(app, payload)):
            await asyncio.sleep(0.01)


def app_key(app: App, payload: Payload) -> Any:
    [block] = [b for b in app.store.residents.table.all() if b.key[16:] == payload.chain_hash]
    return block.key


def test_memory_stays_bounded_under_many_puts() -> None:
    async def fill(address: str) -> None:
        async with connected(address) as client:
            for number in range(12):
                await client.put(
                    build_payload(
                        bytes([number, other]) * 16, b"r" * 32, section_bytes=500_000, seed=number
                    )
                    for other in range(8)
                )

    with server_process("--ram-bytes", "32MiB") as server:
        before = psutil.Process(server.popen.pid).memory_info().rss
        asyncio.run(fill(server.address))
        after = psutil.Process(server.popen.pid).memory_info().rss
    # 390 MiB have gone through
    assert after - before < 200 * MIB

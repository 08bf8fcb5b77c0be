"""Nodes that leave: what they hand over, to whom, and what happens when that goes wrong."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from packkv_protos.v1 import admin_pb2
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from tests.store.cluster.conftest import apps, calling, clients, hashes_of, matches
from tests.store.conftest import Client, build_prefix
from tests.store.redis_servers import Deployment


async def drained(client: Client, seconds: float = 10) -> Any:
    request = admin_pb2.DrainRequest(timeout_ms=int(1000 * seconds))
    return await client.admin.Drain(request, metadata=client.metadata)


async def here(node: Client, hashes: Sequence[bytes]) -> int:
    """How many of the blocks from the front the node itself has."""
    found: int = (await node.match(hashes, here=True)).blocks
    return found


async def meet(*nodes: App) -> None:
    """Returns when each of the nodes knows all others."""
    async with asyncio.timeout(60):
        for node in nodes:
            while len(await node._index.members()) != len(nodes) - 1:
                await asyncio.sleep(0.05)


async def test_what_only_a_leaving_node_has_is_found_after_it_has_left(redis: Deployment) -> None:
    alone, shared = build_prefix("alone", 70), build_prefix("shared", 6)
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await meet(a, b)
        await at_a.put(alone)
        await at_a.put(shared)
        await at_a.blocks.PutProfile(pb.PutProfileRequest(model_digest=b"m" * 32, profile=b"p"))
        await matches(at_b, shared, 6)
        await at_b.get(hashes_of(shared))
        await matches(at_a, shared, 6)
        done = await drained(at_a)
        assert (done.handed_over, done.left) == (70, 0)
        # it is out of service and yet answers for what it holds
        assert len((await at_a.get(hashes_of(alone))).payloads) == 70
        await a.stop()
        assert await here(at_b, hashes_of(alone)) == 70
        got = await at_b.get(hashes_of(alone))
        assert [got.payloads[at] for at in range(70)] == [one.data for one in alone]
        profile = await at_b.blocks.GetProfile(pb.GetProfileRequest(model_digest=b"m" * 32))
        assert profile.profile == b"p"
        # nothing of it is left in the index
        located = await b._index.only_here([one.key for one in b.store.residents.table.all()])
        assert all(located)


async def test_a_full_node_takes_nothing_and_keeps_what_it_has(redis: Deployment) -> None:
    mine = build_prefix("mine", 20, section_bytes=20_000)
    others = build_prefix("others", 160, section_bytes=20_000)
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await meet(a, b)
        await at_a.put(mine)
        await at_b.put(others)
        before = len(b.store.residents.table)
        assert before < len(others)
        done = await drained(at_a)
        # what is between the last eviction and the watermark is all that is free
        assert done.left > 0
        assert done.handed_over + done.left == 20
        assert len(b.store.residents.table) == before + done.handed_over
        assert await here(at_b, hashes_of(mine)) == done.handed_over


async def test_what_one_node_has_no_room_for_goes_to_the_next(
    redis: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packkv_store.cluster.drain.MAX_RECEIVERS", 1)
    mine = build_prefix("mine", 100, section_bytes=10_000)
    others = build_prefix("others", 160, section_bytes=20_000)
    async with apps(redis, 4) as nodes, clients(nodes) as (at_a, at_b, at_c, _):
        await meet(*nodes)
        for full in (at_b, at_c):
            await full.put(others)
        await at_a.put(mine)
        done = await drained(at_a)
        assert (done.handed_over, done.left) == (100, 0)


async def test_a_node_is_pulled_from_while_it_hands_over(redis: Deployment) -> None:
    prefixes = [build_prefix(f"p{number}", 40, section_bytes=4_000) for number in range(6)]
    async with apps(redis, 3) as (a, b, c), clients([a, b, c]) as (at_a, at_b, at_c):
        await meet(a, b, c)
        for prefix in prefixes:
            await at_a.put(prefix)
            await matches(at_b, prefix, 40)
        leaving = asyncio.ensure_future(drained(at_a))
        reading = [at.get(hashes_of(prefix)) for prefix in prefixes for at in (at_b, at_c)]
        everybody = await asyncio.gather(*reading)
        assert (await leaving).left == 0
        for number, got in enumerate(everybody):
            wanted = prefixes[number // 2]
            assert [got.payloads[at] for at in range(40)] == [one.data for one in wanted]


async def test_nothing_is_handed_over_in_the_name_of_a_tenant_that_never_called(
    redis: Deployment, guarded: dict[str, Any], tmp_path: Path
) -> None:
    red, blue = build_prefix("red", 5), build_prefix("blue", 7)
    kept = tmp_path / "kept"
    async with apps(redis, 1, **guarded) as (b,), calling(b, guarded, "red") as at_b:
        async with (
            apps(redis, 1, data_dir=kept, **guarded) as (a,),
            calling(a, guarded, "red") as at_a,
            calling(a, guarded, "blue") as as_blue,
        ):
            await at_a.put(red)
            await as_blue.put(blue)
        # the tokens that it was shown are gone with its memory
        async with apps(redis, 1, data_dir=kept, **guarded) as (a,):
            await meet(a, b)
            async with calling(a, guarded, "red") as at_a:
                await matches(at_a, red, 5)
            done = await a.drain(10)
            assert (done.blocks, done.left) == (5, 7)
        assert await here(at_b, hashes_of(red)) == 5
        async with calling(b, guarded, "blue") as as_blue:
            assert await here(as_blue, hashes_of(blue)) == 0


async def test_a_node_that_comes_back_keeps_what_is_on_its_disk_and_hands_over_the_rest(
    redis: Deployment, guarded: dict[str, Any], tmp_path: Path
) -> None:
    red, blue = build_prefix("red", 5), build_prefix("blue", 7)
    tokens = guarded["tokens_file"]
    tokens.write_text(tokens.read_text().replace("[tenants.blue]", "disk = 0\n\n[tenants.blue]"))
    kept = {"data_dir": tmp_path / "kept", **guarded}
    async with (
        apps(redis, 1, **guarded) as (b,),
        calling(b, guarded, "red") as as_red,
        calling(b, guarded, "blue") as as_blue,
    ):
        async with (
            apps(redis, 1, **kept) as (a,),
            calling(a, guarded, "red") as at_a,
            calling(a, guarded, "blue") as blue_at_a,
        ):
            await meet(a, b)
            await at_a.put(red)
            await blue_at_a.put(blue)
        assert await here(as_red, hashes_of(red)) == 5
        assert await here(as_blue, hashes_of(blue)) == 0
        await matches(as_blue, blue, 0)
        async with apps(redis, 1, **kept):
            await matches(as_blue, blue, 7)


async def test_whoever_drains_must_be_an_admin(redis: Deployment, guarded: dict[str, Any]) -> None:
    async with apps(redis, 1, **guarded) as (a,), calling(a, guarded, "red") as at_a:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await drained(at_a)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not a._drain.has_begun


async def test_a_node_that_leaves_takes_nothing(redis: Deployment) -> None:
    prefix = build_prefix("a", 4)
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await meet(a, b)
        await drained(at_b)
        await at_a.put(prefix)
        request = pb.TakeRequest(chain_hashes=hashes_of(prefix), node=a.store.node)
        assert list((await at_b.blocks.Take(request)).here) == [False] * 4
        assert (await drained(at_a)).left == 4

"""Blocks that are passed on while they are still coming from another node."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from tests.store.cluster.conftest import clients, hashes_of, matches
from tests.store.cluster.link import Link, linking
from tests.store.conftest import MIB, Client, Payload, build_prefix, serving, small_config
from tests.store.redis_servers import Deployment

PREFIX = build_prefix("a", 12, section_bytes=80_000)
SIZE = sum(len(one.data) for one in PREFIX)


@asynccontextmanager
async def far(
    redis: Deployment, **settings: Any
) -> AsyncIterator[tuple[Link, App, Client, Client]]:
    """A link, behind which one node has PREFIX; another node; and a client of each."""
    common = {"index": redis.url, "ram_bytes": 64 * MIB, "bulk_listen": "off"} | settings
    async with (
        linking() as link,
        serving(small_config(advertise=link.address, **common)) as a,
        serving(small_config(**common)) as b,
        clients([a, b]) as (at_a, at_b),
    ):
        link.target = a.address
        await at_a.put(PREFIX)
        await matches(at_b, PREFIX, len(PREFIX))
        yield link, b, at_a, at_b


async def frames(at: Client, hashes: Sequence[bytes], **wanted: Any) -> AsyncIterator[Any]:
    async for frame in at.blocks.Get(pb.GetRequest(chain_hashes=hashes, **wanted)):
        yield frame


async def kept(at: Client, prefix: Sequence[Payload]) -> None:
    """Returns when the node itself has the blocks: they are passed on before they are verified."""
    async with asyncio.timeout(60):
        while (await at.match(hashes_of(prefix), here=True)).blocks < len(prefix):
            await asyncio.sleep(0.01)


def blocks_in(received: Sequence[Any]) -> set[int]:
    return {extent.block for frame in received for extent in frame.extents}


def put_together(prefix: Sequence[Payload], received: Sequence[Any]) -> list[bytearray]:
    payloads = [bytearray(len(one.data)) for one in prefix]
    for frame in received:
        at = 0
        for extent in frame.extents:
            piece = frame.data[at : at + extent.length]
            payloads[extent.block][extent.offset : extent.offset + extent.length] = piece
            at += extent.length
    return payloads


async def test_the_first_layers_go_out_before_the_last_have_come(redis: Deployment) -> None:
    async with far(redis) as (link, _, _, at_b):
        await link.allow(SIZE // 2)
        # one that nobody has holds up none of the others
        coming = frames(at_b, [*hashes_of(PREFIX), bytes(32)])
        received = [await anext(coming)]
        lengths = [answer.length for answer in received[0].blocks]
        assert lengths == [*(len(one.data) for one in PREFIX), 0]
        async with asyncio.timeout(60):
            # heads and first layers of every block
            while {extent.block for frame in received for extent in frame.extents} != set(
                range(12)
            ):
                received.append(await anext(coming))
            await link.exhausted()
        assert link.passed < SIZE
        await link.allow(float("inf"))
        received += [frame async for frame in coming]
        assert put_together(PREFIX, received) == [one.data for one in PREFIX]
        await kept(at_b, PREFIX)


async def test_who_joins_late_and_who_wants_a_part_get_it_from_the_same_pull(
    redis: Deployment,
) -> None:
    async with far(redis) as (link, b, at_a, at_b):
        await link.allow(SIZE // 2)
        some = {"layers": pb.Range(first=1, count=2), "heads": pb.Range(first=1, count=1)}
        whole = asyncio.ensure_future(at_b.get(hashes_of(PREFIX)))
        part = asyncio.ensure_future(at_b.get(hashes_of(PREFIX), **some))
        no_such_head = pb.Range(first=9, count=1)
        heads = asyncio.ensure_future(at_b.get(hashes_of(PREFIX), heads=no_such_head))
        await link.exhausted()
        await link.allow(float("inf"))
        got, cut = await whole, await part
        assert [got.payloads[at] for at in range(12)] == [one.data for one in PREFIX]
        assert (await heads).misses == dict.fromkeys(range(12), pb.MISS_REASON_HEADS)
        wanted = await at_a.get(hashes_of(PREFIX), **some)
        assert cut.payloads == wanted.payloads
        async with asyncio.timeout(60):
            while b.store.residents.tally.pulled < 12:
                await asyncio.sleep(0.01)
        assert b.store.residents.tally.pulled == 12


async def test_an_owner_that_is_lost_on_the_way_ends_the_call_and_then_is_a_miss(
    redis: Deployment,
) -> None:
    async with far(redis) as (link, _, _, at_b):
        await link.allow(SIZE // 2)
        coming = frames(at_b, hashes_of(PREFIX))
        assert (await anext(coming)).blocks
        await link.exhausted()
        link.target = "127.0.0.1:1"
        link.cut()
        await link.allow(float("inf"))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in coming:
                pass
        # which clients make again
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len((await at_b.get(hashes_of(PREFIX))).misses) == 12

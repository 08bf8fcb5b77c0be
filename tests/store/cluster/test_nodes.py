"""Nodes in one process, with a real Redis and real connections between them."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from packkv_protos.v1 import admin_pb2
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from packkv_store.cluster.shared_profiles import profile_key
from packkv_store.config import StoreConfig
from packkv_store.errors import ConfigError
from packkv_store.tenant import Tenant
from tests.store.cluster.conftest import apps, calling, clients, hashes_of, matches
from tests.store.conftest import build_prefix, connected, serving, small_config
from tests.store.redis_servers import Deployment


async def test_a_node_asks_others_in_its_callers_name_and_no_other(
    redis: Deployment, guarded: dict[str, Any]
) -> None:
    prefix = build_prefix("a", 5)
    async with (
        apps(redis, 2, **guarded) as (a, b),
        calling(a, guarded, "red") as at_a,
        calling(b, guarded, "red") as at_b,
        calling(b, guarded, "blue") as blue,
    ):
        await at_a.put(prefix)
        await matches(at_b, prefix, 5)
        assert (await blue.match(hashes_of(prefix))).blocks == 0
        assert len((await blue.get(hashes_of(prefix))).misses) == 5
        got = await at_b.get(hashes_of(prefix))
        assert [got.payloads[at] for at in range(5)] == [p.data for p in prefix]


async def test_a_token_never_goes_to_another_machine_in_plaintext(redis: Deployment) -> None:
    # what the index says where a node is may be anybody's word
    prefix = build_prefix("a", 3)
    async with apps(redis, 1) as (b,), clients([b]) as (client,):
        config = small_config(index=redis.url, advertise="192.0.2.1:1", insecure=True)
        async with serving(config) as a, connected(a.address) as at_a:
            await at_a.put(prefix)
            async with asyncio.timeout(60):
                while b._index.address(a.store.node) is None:
                    assert (await client.match(hashes_of(prefix))).blocks == 0
                    await asyncio.sleep(0.02)
            assert (await client.match(hashes_of(prefix))).blocks == 0
            assert len((await client.get(hashes_of(prefix))).misses) == 3


async def test_the_first_profile_is_in_force_on_every_node(
    redis: Deployment, tmp_path: Path
) -> None:
    digest = b"m" * 32
    async with apps(redis, 1) as (b,), clients([b]) as (at_b,):
        for _ in range(2):
            # the second time it is found on its disk
            async with apps(redis, 1, data_dir=tmp_path / "a") as (a,), clients([a]) as (at_a,):
                first = pb.PutProfileRequest(model_digest=digest, profile=b"first")
                assert (await at_a.blocks.PutProfile(first)).profile == b"first"
                async with asyncio.timeout(60):
                    while not (
                        await at_b.blocks.GetProfile(pb.GetProfileRequest(model_digest=digest))
                    ).profile:
                        await asyncio.sleep(0.02)
                async with apps(redis, 1) as (c,), clients([c]) as (at_c,):
                    second = pb.PutProfileRequest(model_digest=digest, profile=b"second")
                    assert (await at_c.blocks.PutProfile(second)).profile == b"first"


async def test_a_lifetime_is_that_of_the_node_that_is_asked(redis: Deployment) -> None:
    prefix = build_prefix("a", 3)
    brief = admin_pb2.SetLifetimeRequest(root_hash=prefix[0].root_hash, seconds=0.001)
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await at_a.put(prefix)
        await matches(at_b, prefix, 3)
        assert len((await at_b.get(hashes_of(prefix))).payloads) == 3
        await at_a.admin.SetLifetime(brief)
        async with asyncio.timeout(60):
            while (await at_a.match(hashes_of(prefix), here=True)).blocks:
                await asyncio.sleep(0.02)
        # the copies of the other one count from when they came, and by its own lifetime
        await matches(at_a, prefix, 3)
        await at_b.admin.SetLifetime(brief)
        await matches(at_a, prefix, 0)
        await matches(at_b, prefix, 0)


async def test_leases_reach_to_the_owners(redis: Deployment) -> None:
    prefix = build_prefix("a", 4, section_bytes=60_000)
    others = build_prefix("others", 60, section_bytes=60_000)
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await at_a.put(prefix)
        await matches(at_b, prefix, 4)
        found = await at_b.match(hashes_of(prefix), lease_ms=30_000)
        assert len(a.store.leases) == len(b.store.leases) == 1
        await at_a.put(others)
        assert (await at_a.match(hashes_of(others))).blocks < 60
        # what was promised here was not evicted there
        assert len((await at_b.get(hashes_of(prefix))).payloads) == 4
        await at_b.blocks.Release(pb.ReleaseRequest(lease_id=found.lease_id))
        async with asyncio.timeout(60):
            while len(a.store.leases):
                await asyncio.sleep(0.02)


async def test_the_node_says_whether_its_index_answers(redis: Deployment) -> None:
    async with apps(redis, 1) as (node,):
        [server] = redis.servers
        server.pause()
        try:
            await is_up(node, False)
        finally:
            server.go_on()
        await is_up(node, True)


async def is_up(node: App, up: bool) -> None:
    assert node._cluster is not None
    async with asyncio.timeout(60):
        while (await node._cluster.stats()).index_up is not up:
            await asyncio.sleep(0.05)


async def test_a_stale_location_is_a_miss_and_is_repaired(redis: Deployment) -> None:
    prefix = build_prefix("a", 4)
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await at_a.put(prefix)
        await matches(at_b, prefix, 4)
        redis.servers[0].pause()
        try:
            await at_a.clear()
        finally:
            redis.servers[0].go_on()
        await matches(at_b, prefix, 0)


async def test_what_a_peer_holds_corrupt_is_a_miss(redis: Deployment) -> None:
    prefix = build_prefix("a", 4)
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await at_a.put(prefix)
        await matches(at_b, prefix, 4)
        residents = a.store.residents
        block = residents.all_in_ram()[2]
        shelf = residents.ram_of(block.key)
        view = shelf.tier.view(shelf.extent(block), block.length)
        view[-1] ^= 1
        # found while it is passed on: a client makes the call again, and it is a miss then
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await at_b.get(hashes_of(prefix))
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        got = await at_b.get(hashes_of(prefix))
        assert set(got.misses) == {2}
        assert [got.payloads[at] for at in (0, 1, 3)] == [prefix[at].data for at in (0, 1, 3)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"listen": "0.0.0.0:0", "insecure": True}, "write --advertise"),
        ({"advertise": "0.0.0.0:1"}, "write --advertise"),
        ({"advertise": "node1:7437"}, "advertise node1:7437 can be reached from other machines"),
        ({"advertise": "nowhere"}, "is not HOST:PORT"),
        ({"peer_ca": Path("ca.pem")}, "peer_ca needs tls_cert"),
    ],
)
def test_a_node_that_others_cannot_reach_safely_does_not_start(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        small_config(index="redis://127.0.0.1", **settings)


def test_the_url_of_redis_is_in_no_text_of_the_settings() -> None:
    config = StoreConfig(index="redis://u:secret@127.0.0.1")
    assert "secret" not in repr(config)
    with pytest.raises(ConfigError) as refused:
        App(StoreConfig(index="redis://u:secret@nowhere:port", ram_bytes=1 << 20))
    assert "secret" not in str(refused.value)


async def test_of_profiles_put_to_all_nodes_at_one_moment_one_is_in_force(
    redis: Deployment,
) -> None:
    async with apps(redis, 3) as nodes, clients(nodes) as at:
        for number in range(20):
            digest = bytes([number]) * 32
            offers = [
                client.blocks.PutProfile(
                    pb.PutProfileRequest(model_digest=digest, profile=b"from %d" % place)
                )
                for place, client in enumerate(at)
            ]
            [first] = {reply.profile for reply in await asyncio.gather(*offers)}
            for client in at:
                found = await client.blocks.GetProfile(pb.GetProfileRequest(model_digest=digest))
                assert found.profile == first


async def test_a_profile_whose_first_node_died_before_it_was_stored_is_replaced(
    redis: Deployment,
) -> None:
    digest = b"m" * 32
    async with apps(redis, 1) as (b,), clients([b]) as (at_b,):
        key = profile_key(Tenant("").tag, digest)
        assert await b._index.claim(key, b"a node that is gone") == b"a node that is gone"
        request = pb.PutProfileRequest(model_digest=digest, profile=b"second")
        assert (await at_b.blocks.PutProfile(request)).profile == b"second"
        assert await b._index.claim(key, b"late") == b.store.node.encode()

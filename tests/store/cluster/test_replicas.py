"""Copies of what is put: where they go, and that nobody waits for them."""

import asyncio
import hashlib

from packkv_store.block import ChainHash
from packkv_store.cluster.replicas import MAX_WAITING, Replicas, ranked
from packkv_store.index import Member
from packkv_store.index.embedded import EmbeddedIndex
from packkv_store.peers.channels import Channels
from packkv_store.peers.grpc_peers import GrpcPeers
from packkv_store.store.answers import Tally
from packkv_store.tenant import Tenant
from tests.store.cluster.conftest import apps, clients, hashes_of
from tests.store.conftest import build_prefix, small_config
from tests.store.redis_servers import Deployment

NODES = [Member(f"node {number}", f"127.0.0.1:{number}") for number in range(1, 9)]


def name(number: int) -> ChainHash:
    return ChainHash(hashlib.sha256(number.to_bytes(4, "big")).digest())


def test_every_node_ranks_alike_and_the_loss_of_one_moves_nothing_else() -> None:
    for number in range(50):
        first = ranked(name(number), NODES)
        assert first == ranked(name(number), NODES[::-1])
        left = [node for node in NODES if node != first[0]]
        assert ranked(name(number), left) == first[1:]


def test_copies_are_spread_over_all_nodes() -> None:
    chosen = [ranked(name(number), NODES)[0] for number in range(800)]
    assert all(60 <= chosen.count(node) <= 150 for node in NODES)


def test_what_is_more_than_may_wait_is_dropped_and_counted() -> None:
    tally = Tally()
    # nothing is copied before it is started
    replicas = Replicas("a", 2, EmbeddedIndex(), GrpcPeers(Channels(small_config()), None), tally)
    hashes = [name(number) for number in range(MAX_WAITING)]
    replicas.add(Tenant(""), hashes)
    assert tally.replicas_dropped == 0
    replicas.add(Tenant(""), hashes[:10])
    assert tally.replicas_dropped == 20


async def test_a_put_reaches_as_many_nodes_as_are_asked_for(redis: Deployment) -> None:
    prefix = build_prefix("a", 20)
    async with apps(redis, 3, replicas=2) as nodes, clients(nodes) as at:
        for node in nodes:
            async with asyncio.timeout(60):
                while len(await node._index.members()) != 2:
                    await asyncio.sleep(0.05)
        await at[0].put(prefix)
        tally = nodes[0].store.residents.tally
        async with asyncio.timeout(60):
            while tally.replicas < 20:
                await asyncio.sleep(0.02)
        first = ranked(ChainHash(prefix[0].chain_hash), await nodes[0]._index.members())[0]
        for node, client in zip(nodes, at, strict=True):
            held = (await client.match(hashes_of(prefix), here=True)).blocks
            assert held == (20 if node is nodes[0] or node.store.node == first.node else 0)
        # a copy is not copied on
        assert [node.store.residents.tally.replicas for node in nodes] == [20, 0, 0]
        assert tally.replicas_dropped == 0


async def test_a_copy_that_nobody_can_take_is_counted(redis: Deployment) -> None:
    async with apps(redis, 1, replicas=3) as (a,), clients([a]) as (at_a,):
        await at_a.put(build_prefix("a", 5))
        async with asyncio.timeout(60):
            while a.store.residents.tally.replicas_dropped < 10:
                await asyncio.sleep(0.02)

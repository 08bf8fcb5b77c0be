"""Several nodes as one store, as a client sees them; the nodes and their Redis are real ones."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from typer.testing import CliRunner

from packkv.cli.app import app as packkv
from packkv.client import Client, ClientConfig, Fetched, Fleet, PutStatus, open_store
from packkv.errors import ClientClosed, ConfigError, StoreUnavailable
from packkv_store.app import App
from tests.store.cluster.conftest import apps, hashes_of, one_redis, patience, redis
from tests.store.conftest import Payload, build_prefix
from tests.store.redis_servers import Deployment

__all__ = ["one_redis", "patience", "redis"]

PREFIX = build_prefix("a", 12, section_bytes=4_000)
NOBODY = "127.0.0.1:1"
QUICK = ClientConfig(backoff_s=0.001)


def pairs(prefix: Sequence[Payload]) -> list[tuple[bytes, bytes]]:
    return [(one.chain_hash, one.data) for one in prefix]


def received(got: Sequence[Fetched]) -> list[bytes | None]:
    return [None if one.data is None else bytes(one.data) for one in got]


def found(fleet: Fleet) -> int:
    """Returns when PREFIX is found; its lease."""
    while True:
        match = fleet.match(hashes_of(PREFIX), lease_ms=10_000)
        if match.blocks == len(PREFIX):
            return match.lease_id


async def test_payloads_come_from_their_owners_and_not_through_the_node_asked(
    redis: Deployment,
) -> None:
    async with apps(redis, 3) as (a, b, c):

        def work() -> None:
            with (
                Fleet([a.address]) as at_a,
                Fleet([b.address]) as at_b,
                Fleet([c.address], direct=True) as fleet,
            ):
                at_a.put(pairs(PREFIX[:7]))
                at_b.put(pairs(PREFIX[7:]))
                got = fleet.get(hashes_of(PREFIX), lease_id=found(fleet))
                assert received(got) == [one.data for one in PREFIX]

        async with asyncio.timeout(120):
            await asyncio.to_thread(work)
        assert [len(node.store.residents.table) for node in (a, b, c)] == [7, 5, 0]
        assert c.store.residents.tally.pulled == 0


async def test_what_an_owner_does_not_deliver_is_asked_for_elsewhere(redis: Deployment) -> None:
    async with apps(redis, 3) as (a, b, c):
        with Fleet([c.address], direct=True, config=QUICK) as fleet:

            def before() -> int:
                with Fleet([a.address]) as at_a, Fleet([b.address]) as at_b:
                    at_a.put(pairs(PREFIX))
                    found(at_b)
                    at_b.get(hashes_of(PREFIX))
                return found(fleet)

            async with asyncio.timeout(120):
                lease_id = await asyncio.to_thread(before)
                await a.stop()
                got = await asyncio.to_thread(fleet.get, hashes_of(PREFIX), lease_id=lease_id)
                assert received(got) == [one.data for one in PREFIX]
                # renewing and releasing what a lost node granted is no error either
                assert await asyncio.to_thread(fleet.renew, lease_id, 1_000) == 1_000
                assert await asyncio.to_thread(fleet.renew, 12345, 1_000) == 0
                fleet.release(lease_id, wait=False)


async def test_a_target_that_is_away_costs_a_try(redis: Deployment) -> None:
    async with apps(redis, 1) as (node,):

        def work() -> None:
            with Fleet([NOBODY, node.address], config=QUICK) as fleet:
                for blocks in (pairs(PREFIX), iter(pairs(build_prefix("other", 2)))):
                    assert {one.status for one in fleet.put(blocks)} == {PutStatus.STORED}
                lease_id = found(fleet)
                got = fleet.get(hashes_of(PREFIX), lease_id=lease_id)
                assert received(got) == [one.data for one in PREFIX]
                assert fleet.put_profile(b"m" * 32, b"p") == b"p"
                assert fleet.get_profile(b"m" * 32) == b"p"
                assert fleet.renew(lease_id, 5_000) == 5_000

        async with asyncio.timeout(120):
            await asyncio.to_thread(work)


def test_without_any_node_a_call_fails_and_blocks_that_were_not_read_are_not_lost() -> None:
    def blocks() -> Iterator[tuple[bytes, bytes]]:
        yield from pairs(PREFIX)

    with pytest.raises(ConfigError, match="at least one target"):
        Fleet([])
    waiting = blocks()
    with Fleet([NOBODY, NOBODY], config=QUICK) as fleet:
        with pytest.raises(StoreUnavailable):
            fleet.match(hashes_of(PREFIX))
        with pytest.raises(StoreUnavailable):
            fleet.put(waiting)
    with pytest.raises(ClientClosed):
        fleet.match(hashes_of(PREFIX))


async def test_drain_takes_a_node_out_of_service(redis: Deployment) -> None:
    async with apps(redis, 1) as (node,):
        out = await asyncio.to_thread(drain, node)
        assert out == '{"handed_over":0,"left":12}'
        assert node._drain.has_begun


def drain(node: App) -> str:
    with Client(node.address) as client:
        client.put(pairs(PREFIX))
        command = ["drain", "--yes", "--target", node.address, "--seconds", "60", "--json"]
        done = CliRunner().invoke(packkv, command)
        assert done.exit_code == 0, done.output
        with pytest.raises(StoreUnavailable, match="does not serve"):
            client.ping()
        # what it has is still to be had
        assert client.match(hashes_of(PREFIX)).blocks == 12
    return "".join(done.output.split())


def test_a_target_with_commas_is_several_nodes_and_one_of_grpc_is_not() -> None:
    for target, kind in [
        ("127.0.0.1:1", Client),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", Client),
        ("127.0.0.1:1, 127.0.0.1:2", Fleet),
    ]:
        with open_store(target) as store:
            assert type(store) is kind
    with pytest.raises(ConfigError, match="in plaintext"):
        open_store("127.0.0.1:1,192.0.2.1:1", config=ClientConfig(token="secret"))

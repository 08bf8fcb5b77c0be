"""The bulk path as bytes: what honest peers get, and that strange ones harm nobody else."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from pathlib import Path

import pytest

from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Get, Kind
from packkv_store import acceptor
from packkv_store.app import App
from packkv_store.bulk import session
from packkv_store.errors import Status
from tests.store.bulk.conftest import GREETING_BYTES, Peer, peer_of
from tests.store.conftest import (
    MIB,
    Client,
    Payload,
    build_prefix,
    connected,
    serving,
    small_config,
)
from tests.store.test_disk import damage


def hashes_of(prefix: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in prefix]


def put_of(prefix: list[Payload]) -> bytes:
    return frames.pack_put([(payload.chain_hash, len(payload.data)) for payload in prefix])


async def until(condition: object, says: str = "") -> None:
    assert callable(condition)
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def used_bytes(app: App) -> int:
    return sum(tier.used_bytes for tier in app.store.residents.tier_stats())


async def check_serves(app: App) -> None:
    """Whoever comes next is served as ever."""
    async with peer_of(app) as peer:
        assert (await peer.hello()).kind is Kind.WELCOME
        found, data = await peer.get([bytes(32)])
        assert (found.lengths.tolist(), data) == ([0], b"")


async def test_one_group_is_payload_after_payload(app: App, client: Client) -> None:
    prefix = build_prefix("a", 5)
    await client.put(prefix)
    async with peer_of(app) as peer:
        await peer.hello()
        found, data = await peer.get([*hashes_of(prefix), bytes(32)])
        assert data == b"".join(payload.data for payload in prefix)
        assert found.lengths.tolist() == [*(len(payload.data) for payload in prefix), 0]
        assert found.misses.tolist() == [0, 0, 0, 0, 0, 1]
        assert found.groups.tolist() == [[0, 4, 5]]


@pytest.mark.parametrize(
    ("groups", "layers"), [(2, [0, 2, 2]), (3, [0, 1, 1, 2]), (9, [0, 1, 1, 1, 1])]
)
async def test_more_groups_bring_all_heads_and_then_layers_in_turn(
    app: App, client: Client, groups: int, layers: list[int]
) -> None:
    prefix = build_prefix("a", 3)
    await client.put(prefix)
    async with peer_of(app) as peer:
        await peer.hello()
        found, data = await peer.get(hashes_of(prefix), groups)
    assert found.groups[:, 1].tolist() == layers
    assert found.groups[:, 2].tolist() == [3] * len(layers)
    assert [row[1:] for row in found.extents[:3].tolist()] == [[0, p.head_length] for p in prefix]
    built = [bytearray(len(payload.data)) for payload in prefix]
    at = 0
    for block, offset, length in found.extents.tolist():
        built[block][offset : offset + length] = data[at : at + length]
        at += length
    assert at == len(data)
    assert [bytes(one) for one in built] == [payload.data for payload in prefix]


async def test_bytes_of_blocks_that_are_there_do_not_travel(app: App, client: Client) -> None:
    prefix = build_prefix("a", 3)
    await client.put(prefix[1:2])
    async with peer_of(app) as peer:
        await peer.hello()
        await peer.send(put_of(prefix))
        assert frames.read_wanted((await peer.frame()).body, 3) == [True, False, True]
        await peer.send(prefix[0].data, prefix[2].data, frames.pack(Kind.END))
        results = frames.read_results((await peer.frame()).body)
        assert [result.status for result in results] == [1, 2, 1]
        _, data = await peer.get(hashes_of(prefix))
        assert data == b"".join(payload.data for payload in prefix)


async def test_a_block_found_corrupt_on_the_way_ends_the_answer_and_not_the_connection(
    tmp_path: Path,
) -> None:
    prefix = build_prefix("a", 60, section_bytes=20_000)
    config = small_config(data_dir=tmp_path, ram_bytes=2 * MIB)
    async with serving(config) as app, connected(app.address) as client:
        await client.put(prefix)
    damage(tmp_path, prefix[-1])
    async with serving(config) as app, peer_of(app) as peer:
        await peer.hello()
        request = Get((0, 0), (0, 0), 1 << 40, 1, hashes_of(prefix))
        await peer.send(frames.pack_get(request))
        assert (await peer.frame()).kind is Kind.FOUND
        while (size := await peer.mark()) != frames.RUNS_FAIL:
            await peer.read(size)
        error = await peer.frame()
        assert (error.kind, error.code) == (Kind.ERROR, Status.DATA_LOSS)
        found, data = await peer.get(hashes_of(prefix))
        assert found.misses.tolist() == [0] * 59 + [1]
        assert data == b"".join(payload.data for payload in prefix[:-1])


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x02\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(64),
        frames.PREFIX.pack(Kind.HELLO, 0, 0, 2**32 - 1),
        frames.PREFIX.pack(Kind.HELLO, 0, 7, 2),
        frames.PREFIX.pack(Kind.HELLO, 0, 0, 1) + b"\1",
        frames.pack(Kind.HELLO, b"\2\0"),
        frames.pack(Kind.HELLO, b"\1\0\xff\xff"),
        frames.pack(Kind.END),
        frames.pack_greeting(bytes(16)),
        frames.pack_get(Get((0, 0), (0, 0), 1, 1, [bytes(32)])),
    ],
)
async def test_a_stranger_gets_an_error_at_most_and_is_gone(app: App, sent: bytes) -> None:
    async with peer_of(app) as peer:
        await peer.send(sent)
        peer.writer.write_eof()
        said = await peer.rest()
        rest = said[GREETING_BYTES:]
        assert not rest or frames.read_prefix(rest)[:2] == (Kind.ERROR, Status.INVALID_ARGUMENT)
    await check_serves(app)


@pytest.mark.parametrize(
    "sent",
    [
        frames.PREFIX.pack(Kind.GET, 0, 0, frames.MAX_BODY[Kind.GET] + 1),
        frames.PREFIX.pack(Kind.PUT, 0, 0, 2**32 - 1),
        frames.pack(Kind.GET, bytes(28)),
        frames.pack(Kind.GET, bytes(60)),
        frames.pack(Kind.GET, bytes(59) + b"\1"),
        frames.pack(Kind.PUT, b""),
        frames.pack(Kind.PUT, bytes(41)),
        frames.pack(Kind.END),
        frames.pack_hello("again"),
        frames.pack_results([]),
        b"\xff" * 40,
    ],
)
async def test_a_request_that_is_none_ends_the_connection(app: App, sent: bytes) -> None:
    async with peer_of(app) as peer:
        assert (await peer.hello()).kind is Kind.WELCOME
        await peer.send(sent)
        said = await peer.rest()
        assert frames.read_prefix(said)[:2] == (Kind.ERROR, Status.INVALID_ARGUMENT)
    await check_serves(app)


async def test_a_request_over_a_limit_is_refused_and_the_connection_goes_on(app: App) -> None:
    async with peer_of(app) as peer:
        await peer.hello()
        for request in (
            frames.pack_get(Get((65_535, 1), (0, 0), 1, 1, [bytes(32)])),
            frames.pack_get(Get((0, 0), (2**32 - 1, 2**32 - 1), 1, 1, [bytes(32)])),
            frames.pack_put([(bytes(32), 2**64 - 1)]),
        ):
            await peer.send(request)
            error = await peer.frame()
            assert (error.kind, error.code) == (Kind.ERROR, Status.RESOURCE_EXHAUSTED)
        found, _ = await peer.get([bytes(32)])
        assert found.misses.tolist() == [1]


async def test_more_than_max_bytes_is_announced_and_not_sent(app: App, client: Client) -> None:
    prefix = build_prefix("a", 2)
    await client.put(prefix)
    async with peer_of(app) as peer:
        await peer.hello()
        await peer.send(frames.pack_get(Get((0, 0), (0, 0), 1, 1, hashes_of(prefix))))
        found = frames.read_found((await peer.frame()).body)
        assert found.lengths.tolist() == [len(payload.data) for payload in prefix]
        assert len(found.extents) == 0
        assert await peer.mark() == frames.RUNS_END


@pytest.mark.parametrize("token", [None, "guessed", "x" * 8192])
async def test_without_the_right_token_there_is_an_error_and_the_end(
    tmp_path: Path, token: str | None
) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tenants.red]\ntoken_sha256 = "{digest}"\n')
    async with serving(small_config(tokens_file=tokens)) as app:
        async with peer_of(app) as peer:
            error = await peer.hello(token)
            assert (error.kind, error.code) == (Kind.ERROR, Status.UNAUTHENTICATED)
            assert await peer.rest() == b""
        async with peer_of(app) as peer:
            assert (await peer.hello("secret")).kind is Kind.WELCOME


async def stalled_reader(app: App, prefix: list[Payload]) -> Peer:
    """A peer that has asked for more than the sockets hold, and reads none of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", app.bulk_port))
    peer = Peer(*await asyncio.open_connection(sock=sock, limit=4096))
    await peer.hello()
    await peer.send(frames.pack_get(Get((0, 0), (0, 0), 1 << 40, 1, hashes_of(prefix))))
    return peer


async def test_a_peer_that_stops_reading_costs_only_its_own_time() -> None:
    prefix = build_prefix("a", 100, section_bytes=20_000)
    config = small_config(ram_bytes=64 * MIB, stream_seconds=3)
    async with serving(config) as app, connected(app.address) as client:
        await client.put(prefix)
        held = app.store.leases._holders
        peer = await stalled_reader(app, prefix)
        await until(lambda: held)
        await check_serves(app)
        # its blocks are let go when the longest stream is over
        await until(lambda: not held)
        peer.writer.transport.abort()
        await client.clear()
        assert used_bytes(app) == 0


@pytest.mark.parametrize("goes", [True, False], ids=["goes away", "is silent"])
async def test_a_put_that_breaks_off_leaves_finished_blocks_and_nothing_else(goes: bool) -> None:
    prefix = build_prefix("a", 3, section_bytes=2000)
    config = small_config(stream_seconds=60 if goes else 3)
    async with serving(config) as app, connected(app.address) as client:
        async with peer_of(app) as peer:
            await peer.hello()
            await peer.send(put_of(prefix[:1]))
            await peer.frame()
            await peer.send(prefix[0].data, put_of(prefix[1:]))
            await peer.frame()
            await peer.send(prefix[1].data, prefix[2].data[:-1])
            if not goes:
                # closed by the server, with an error or without
                await peer.rest()
        await until(lambda: not app._bulk or not len(app._bulk._acceptor))
        match = await client.match(hashes_of(prefix))
        assert match.blocks in (1, 2)
        await client.clear()
        assert used_bytes(app) == 0


async def test_silent_strangers_keep_nobody_out(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_CONNECTIONS", 4)
    async with peer_of(app) as known:
        await known.hello()
        strangers = [await asyncio.open_connection("127.0.0.1", app.bulk_port) for _ in range(12)]
        # the longest silent stranger goes first, a known peer last
        found, _ = await known.get([bytes(32)])
        assert found.misses.tolist() == [1]
        await check_serves(app)
        assert app._bulk is not None
        assert len(app._bulk._acceptor) <= 5
        for _, writer in strangers:
            writer.transport.abort()


async def test_a_handshake_that_does_not_end_is_ended(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(session, "HANDSHAKE_SECONDS", 0.2)
        async with peer_of(app) as peer:
            assert len(await peer.rest()) == GREETING_BYTES
    await check_serves(app)


async def test_a_silent_connection_is_closed_after_a_while(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "IDLE_SECONDS", 0.2)
    async with peer_of(app) as peer:
        await peer.hello()
        assert await peer.rest() == b""


async def test_a_server_that_leaves_closes_idle_connections_and_cuts_stalled_ones() -> None:
    prefix = build_prefix("a", 100, section_bytes=20_000)
    config = small_config(ram_bytes=64 * MIB, grace_seconds=0.3)
    async with serving(config) as app, connected(app.address) as client:
        await client.put(prefix)
        async with peer_of(app) as idle:
            await idle.hello()
            stalled = await stalled_reader(app, prefix)
            await until(lambda: app.store.leases._holders)
            assert app._bulk is not None
            async with asyncio.timeout(60):
                await app._bulk.stop(0.3)
            assert await idle.rest() == b""
            assert not app.store.leases._holders
            stalled.writer.transport.abort()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", app.bulk_port)


async def test_a_server_without_the_path_says_so() -> None:
    async with serving(small_config(bulk_listen="off")) as app:
        assert app.bulk_port == 0

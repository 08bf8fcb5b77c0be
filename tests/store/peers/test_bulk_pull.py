"""Blocks that nodes fetch from each other's bulk port, and what happens when that cannot be."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Found, FrameError
from packkv_protos.bulk.wire import Wire
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from packkv_store.peers.bulk_landing import Landing
from tests.store.cluster.conftest import apps, calling, clients, hashes_of, matches
from tests.store.conftest import build_prefix
from tests.store.redis_servers import Deployment

PREFIX = build_prefix("a", 12, section_bytes=20_000)
Rows = Sequence[tuple[int, int, int]]


def idle(node: App) -> int:
    """Connections to the bulk ports of others that are kept for the next pull."""
    assert node._peers._bulk is not None
    return len(node._peers._bulk._idle)


async def is_idle(node: App) -> None:
    """Returns when one is kept: what it brought may be passed on before it is free again."""
    async with asyncio.timeout(60):
        while idle(node) == 0:
            await asyncio.sleep(0.01)
    assert idle(node) == 1


async def test_a_pull_goes_over_the_bulk_port_with_the_callers_token(
    redis: Deployment, guarded: dict[str, Any]
) -> None:
    async with (
        apps(redis, 2, **guarded) as (a, b),
        calling(a, guarded, "red") as at_a,
        calling(b, guarded, "red") as at_b,
        calling(b, guarded, "blue") as blue,
    ):
        await at_a.put(PREFIX)
        await matches(at_b, PREFIX, 12)
        assert len((await blue.get(hashes_of(PREFIX))).misses) == 12
        assert idle(b) == 0
        for prefix in (PREFIX, build_prefix("another", 3)):
            await at_a.put(prefix)
            await matches(at_b, prefix, len(prefix))
            got = await at_b.get(hashes_of(prefix))
            assert [got.payloads[at] for at in range(len(prefix))] == [one.data for one in prefix]
            # the second goes over the connection of the first
            await is_idle(b)


async def test_a_connection_that_was_closed_meanwhile_is_replaced(redis: Deployment) -> None:
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        for name in ("first", "second"):
            prefix = build_prefix(name, 3)
            await at_a.put(prefix)
            await matches(at_b, prefix, 3)
            got = await at_b.get(hashes_of(prefix))
            assert [got.payloads[at] for at in range(3)] == [one.data for one in prefix]
            await is_idle(b)
            assert b._peers._bulk is not None
            for wire in b._peers._bulk._idle.values():
                wire.abort()


async def test_what_is_asked_for_by_a_node_is_not_looked_for_further_on(redis: Deployment) -> None:
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await at_a.put(PREFIX)
        await matches(at_b, PREFIX, 12)
        with socket.create_connection(("127.0.0.1", b.bulk_port)) as sock:
            wire = Wire(sock)
            found = await in_thread(lambda: ask(wire, own=True))
        assert found.misses.tolist() == [pb.MISS_REASON_ABSENT] * 12
        assert b.store.residents.tally.pulled == 0


async def test_without_its_port_a_node_is_asked_over_grpc(redis: Deployment) -> None:
    async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
        await at_a.put(PREFIX)
        await matches(at_b, PREFIX, 12)
        assert a._bulk is not None
        await a._bulk.stop(0)
        got = await at_b.get(hashes_of(PREFIX))
        assert [got.payloads[at] for at in range(12)] == [one.data for one in PREFIX]
        assert idle(b) == 0


async def test_no_token_goes_to_who_does_not_know_the_nonce(redis: Deployment) -> None:
    heard: list[bytes] = []

    def pretend(listener: socket.socket) -> None:
        with listener.accept()[0] as sock:
            sock.sendall(frames.pack_greeting(bytes(16)))
            heard.append(sock.recv(100))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listening = threading.Thread(target=pretend, args=(listener,))
        listening.start()
        async with apps(redis, 2) as (a, b), clients([a, b]) as (at_a, at_b):
            await at_a.put(PREFIX)
            await matches(at_b, PREFIX, 12)
            a._paths.bulk_port = listener.getsockname()[1]
            got = await at_b.get(hashes_of(PREFIX))
            assert [got.payloads[at] for at in range(12)] == [one.data for one in PREFIX]
        listening.join()
    assert heard == [b""]


@pytest.fixture
def ends() -> Iterator[tuple[Wire, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        with near, far:
            yield Wire(near), far


def found_frame(lengths: Sequence[int], misses: Sequence[int], extents: Rows) -> bytes:
    groups = np.array([(0, 1, len(extents))], np.uint32)
    rows = np.array(extents, np.uint32).reshape(-1, 3)
    return frames.pack_found(
        Found(np.array(lengths, np.uint32), np.array(misses, np.uint8), groups, rows)
    )


def run_of(data: bytes) -> bytes:
    return frames.MARK.pack(len(data)) + data


END = frames.MARK.pack(frames.RUNS_END)
FAIL = frames.MARK.pack(frames.RUNS_FAIL) + frames.pack_error(15, "corrupt")
GOOD: Rows = [(0, 0, 2), (1, 0, 2), (0, 2, 2)]


async def landed(ends: tuple[Wire, socket.socket], answer: bytes) -> list[bytes]:
    wire, far = ends
    places = [memoryview(bytearray(4)), memoryview(bytearray(2))]
    said: dict[int, int] = {}
    landing = Landing(places, said.__setitem__, asyncio.get_running_loop())
    far.sendall(answer)
    far.shutdown(socket.SHUT_WR)
    await in_thread(lambda: landing.receive(wire, frames.pack(frames.Kind.END)))
    await asyncio.sleep(0)
    assert said == {0: 4, 1: 2}
    return [bytes(place) for place in places]


async def test_runs_may_be_cut_anywhere(ends: tuple[Wire, socket.socket]) -> None:
    answer = found_frame([4, 2], [0, 0], GOOD) + run_of(b"abx") + run_of(b"ycd") + END
    assert await landed(ends, answer) == [b"abcd", b"xy"]


@pytest.mark.parametrize(
    "answer",
    [
        frames.pack_error(16, "who are you"),
        found_frame([4, 3], [0, 0], GOOD),
        found_frame([4, 2], [0, 1], GOOD),
        found_frame([4], [0], GOOD),
        found_frame([4, 2], [0, 0], [(0, 0, 4), (1, 1, 1)]),
        found_frame([4, 2], [0, 0], [(0, 0, 4), (1, 0, 3)]),
        found_frame([4, 2], [0, 0], [(0, 0, 4), (2, 0, 2)]),
        found_frame([4, 2], [0, 0], [(0, 0, 4)]),
        found_frame([4, 2], [0, 0], GOOD) + run_of(b"abxyc") + END,
        found_frame([4, 2], [0, 0], GOOD) + run_of(b"abxycde") + END,
        found_frame([4, 2], [0, 0], GOOD) + run_of(b"abx") + FAIL,
        found_frame([4, 2], [0, 0], GOOD) + run_of(b"abx"),
    ],
)
async def test_what_does_not_fit_is_refused(
    ends: tuple[Wire, socket.socket], answer: bytes
) -> None:
    with pytest.raises((FrameError, ConnectionError)):
        await landed(ends, answer)


def ask(wire: Wire, *, own: bool) -> Found:
    ends_at = time.monotonic() + 60
    wire.receive_frame(ends_at)
    wire.send([frames.pack_hello(None)], ends_at)
    wire.receive_frame(ends_at)
    get = frames.Get((0, 0), (0, 0), 1 << 30, 1, hashes_of(PREFIX))
    wire.send([frames.pack_get(get, own=own)], ends_at)
    return frames.read_found(wire.receive_frame(ends_at).body)


async def in_thread(call: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(call)

"""What a client on the same host can see, and what none of them can do to the server."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import hashlib
import mmap
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from packkv_protos.shared_memory import frames
from packkv_protos.shared_memory.frames import Kind, Staged, State
from packkv_store import acceptor as acceptor_module
from packkv_store.errors import Status
from packkv_store.shared_memory import server as server_module
from tests.store.conftest import (
    MIB,
    Process,
    build_prefix,
    connected,
    server_process,
    serving,
    small_config,
)
from tests.store.shared_memory.conftest import Peer

TOKENS = {"red": "token of red", "blue": "token of blue"}


@pytest.fixture
def own_path(tmp_path: Path) -> Path:
    return tmp_path / "store.sock"


@pytest.fixture
def shared_server(own_path: Path, tmp_path: Path) -> Iterator[Process]:
    """A server of two tenants."""
    tokens = tmp_path / "tokens.toml"
    digests = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in TOKENS.items()}
    tokens.write_text(
        "\n".join(f'[tenants.{name}]\ntoken_sha256 = "{one}"' for name, one in digests.items())
        + "\nadmin = true\n"
    )
    flags = ("--ram-bytes", "8MiB", "--shared-memory", str(own_path), "--tokens-file", str(tokens))
    with server_process(*flags) as process:
        yield process


def as_tenant(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {TOKENS[name]}")]


def sealed(data: bytes, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, data, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


async def test_a_tenant_sees_its_own_memory_and_nobody_elses(
    shared_server: Process, own_path: Path
) -> None:
    block = build_prefix("a", 1)[0]
    async with connected(shared_server.address, as_tenant("red")) as client:
        await client.put([block])
    red, blue = (Peer(own_path, TOKENS[name]).enter() for name in ("red", "blue"))
    files = [os.fstat(peer.fds[0]).st_ino for peer in (red, blue)]
    assert files[0] != files[1]
    assert red.arena_size == blue.arena_size == 4 * MIB
    assert [int(s) for s in blue.locate(block).places["state"]] == [State.ABSENT]
    place = red.locate(block).places[0]
    with (
        mmap.mmap(red.fds[0], red.arena_size, prot=mmap.PROT_READ) as own,
        mmap.mmap(blue.fds[0], blue.arena_size, prot=mmap.PROT_READ) as others,
    ):
        assert own[int(place["offset"]) :][: int(place["length"])] == block.data
        assert others.find(block.data[-64:]) == -1
    red.close()
    blue.close()


async def test_no_tenant_can_release_the_leases_of_another(
    shared_server: Process, own_path: Path
) -> None:
    block = build_prefix("a", 1)[0]
    async with connected(shared_server.address, as_tenant("blue")) as client:
        await client.put([block])
        red, blue = (Peer(own_path, TOKENS[name]).enter() for name in ("red", "blue"))
        lease_id = blue.locate(block).lease_id
        red.say(frames.pack_number(Kind.RELEASE, lease_id))
        red.locate(block)
        assert (await client.stats()).leases == 1
        blue.say(frames.pack_number(Kind.RELEASE, lease_id))
        blue.locate(build_prefix("b", 1)[0])
        assert (await client.stats()).leases == 0
    red.close()
    blue.close()


@pytest.mark.parametrize("token", ["", "token of nobody", "token of red "])
def test_without_the_right_token_there_is_nothing(
    shared_server: Process, own_path: Path, token: str
) -> None:
    peer = Peer(own_path, token)
    kind, code, _ = peer.frame()
    assert (kind, code) == (Kind.ERROR, Status.UNAUTHENTICATED)
    assert peer.fds == []
    assert peer.is_closed()
    peer.close()


def test_the_memory_can_be_read_and_not_changed(server: Process, path: Path) -> None:
    peer = Peer(path).enter()
    [fd] = peer.fds
    size = peer.arena_size
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    attempts: list[Callable[[], object]] = [
        lambda: os.write(fd, b"x"),
        lambda: os.pwrite(again, b"x", 0),
        lambda: os.ftruncate(again, size // 2),
        lambda: os.ftruncate(again, 2 * size),
        lambda: os.posix_fallocate(again, 0, 2 * size),
        lambda: mmap.mmap(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: mmap.mmap(again, size, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match=r"not permitted|denied|Bad file"):
            attempt()
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping:
        assert len(mapping) == size
    os.close(again)
    peer.close()


def prefixed(kind: int, length: int, body: bytes = b"") -> bytes:
    return frames.PREFIX.pack(kind, 0, 0, length) + body


@pytest.mark.parametrize(
    "said",
    [
        prefixed(77, 0),
        struct.pack("<BBHI", Kind.LOCATE, 0, 1, 0),
        prefixed(Kind.LOCATE, 0),
        prefixed(Kind.LOCATE, 20, bytes(20)),
        prefixed(Kind.LOCATE, 53, bytes(53)),
        prefixed(Kind.LOCATE, 2**32 - 1),
        prefixed(Kind.PUT, 0),
        prefixed(Kind.PUT, 47, bytes(47)),
        prefixed(Kind.PUT, 48, bytes(48)),
        prefixed(Kind.RELEASE, 3, bytes(3)),
        prefixed(Kind.HELLO, 2, b"\1\0"),
        prefixed(Kind.END, 0),
        prefixed(Kind.ARENA, 8, bytes(8)),
        prefixed(Kind.STAGE, 8, bytes(8)),
    ],
)
def test_bytes_that_are_no_request_end_the_connection(
    server: Process, path: Path, said: bytes
) -> None:
    peer = Peer(path).enter()
    peer.say(said)
    kind, code, _ = peer.frame()
    assert (kind, code) == (Kind.ERROR, Status.INVALID_ARGUMENT)
    assert peer.is_closed()
    peer.close()
    other = Peer(path).enter()
    assert list(other.locate(*build_prefix("a", 1)).places["state"]) == [State.ABSENT]
    other.close()


@pytest.mark.parametrize(
    "hello",
    [prefixed(Kind.HELLO, 1, b"\1"), prefixed(Kind.HELLO, 2, b"\2\0"),
     prefixed(Kind.HELLO, 3, b"\1\0\xff"), prefixed(Kind.LOCATE, 0)],
)  # fmt: skip
def test_a_wrong_hello_ends_the_connection(server: Process, path: Path, hello: bytes) -> None:
    peer = Peer(path, None)
    peer.say(hello)
    assert peer.frame()[:2] == (Kind.ERROR, Status.INVALID_ARGUMENT)
    assert peer.is_closed()
    assert peer.fds == []
    peer.close()


def a_pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


def a_file() -> int:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8192))
        file.flush()
        return os.dup(file.fileno())


STRANGE_FILES: dict[str, Callable[[], tuple[int, int]]] = {
    "pipe": lambda: (a_pipe(), 4096),
    "device": lambda: (os.open("/dev/zero", os.O_RDONLY), 4096),
    "directory": lambda: (os.open("/", os.O_RDONLY), 4096),
    "socket": lambda: (os.dup(socket.socket(socket.AF_UNIX).detach()), 4096),
    "file on disk": lambda: (a_file(), 4096),
    "may shrink": lambda: (sealed(bytes(8192), 0), 4096),
    "smaller than it is said to be": lambda: (sealed(bytes(4095)), 4096),
    "nothing": lambda: (sealed(bytes(4096)), 0),
    "more than anybody may stage": lambda: (sealed(bytes(4096)), 1 << 40),
}


@pytest.mark.parametrize("kind", STRANGE_FILES)
def test_only_sealed_memory_is_staged(server: Process, path: Path, kind: str) -> None:
    before = open_files(server)
    peer = Peer(path).enter()
    fd, size = STRANGE_FILES[kind]()
    peer.say(frames.pack_number(Kind.STAGE, size), fd)
    assert peer.frame()[:2] == (Kind.ERROR, Status.INVALID_ARGUMENT)
    assert peer.is_closed()
    os.close(fd)
    peer.close()
    for _ in range(250):
        if open_files(server) <= before:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the server keeps descriptors that a peer has sent")


@pytest.mark.parametrize("count", [1, 2, 40])
def test_descriptors_that_nobody_asked_for_are_closed(
    server: Process, path: Path, count: int
) -> None:
    before = open_files(server)
    peer = Peer(path).enter()
    fd = sealed(bytes(4096))
    kind = Kind.RELEASE if count == 1 else Kind.STAGE
    peer.say(frames.pack_number(kind, 4096), *[fd] * count)
    assert peer.frame()[:2] == (Kind.ERROR, Status.INVALID_ARGUMENT)
    assert peer.is_closed()
    os.close(fd)
    peer.close()
    for _ in range(250):
        if open_files(server) <= before:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the server keeps descriptors that a peer has sent")


def open_files(server: Process) -> int:
    return psutil.Process(server.popen.pid).num_fds()


async def test_a_block_outside_of_what_was_staged_is_refused(server: Process, path: Path) -> None:
    block = build_prefix("a", 1)[0]
    for offset, length in ((4096, 1), (2**64 - 1, 1), (0, 4097)):
        peer = Peer(path).enter()
        fd = sealed(bytes(8192))
        peer.say(frames.pack_number(Kind.STAGE, 4096), fd)
        peer.say(frames.pack_put([Staged(block.chain_hash, offset, length)]))
        assert peer.frame()[:2] == (Kind.ERROR, Status.RESOURCE_EXHAUSTED)
        os.close(fd)
        peer.close()
    async with connected(server.address) as client:
        assert (await client.stats()).tiers[0].used_bytes == 0


async def test_what_changes_after_it_was_taken_changes_nothing(server: Process, path: Path) -> None:
    first, second = build_prefix("a", 2)
    fd = sealed(first.data.ljust(MIB, b"\0"))
    peer = Peer(path).enter()
    peer.say(frames.pack_number(Kind.STAGE, MIB), fd)
    peer.say(frames.pack_put([Staged(first.chain_hash, 0, len(first.data))]))
    peer.hear(Kind.TAKEN)
    os.pwrite(fd, bytes(len(first.data)), 0)
    # and these bytes are zeros by the time they are asked for
    peer.say(frames.pack_put([Staged(second.chain_hash, 0, len(second.data))]))
    peer.hear(Kind.TAKEN)
    peer.say(frames.pack(Kind.END))
    results = frames.read_results(peer.hear(Kind.RESULTS))
    assert [result.status for result in results] == [1, 3]
    async with connected(server.address) as client:
        got = await client.get([first.chain_hash, second.chain_hash])
    assert bytes(got.payloads[0]) == first.data
    assert list(got.misses) == [1]
    os.close(fd)
    peer.close()


async def test_a_put_that_is_broken_off_leaves_what_was_whole(server: Process, path: Path) -> None:
    block = build_prefix("a", 1)[0]
    fd = sealed(block.data)
    peer = Peer(path).enter()
    peer.say(frames.pack_number(Kind.STAGE, len(block.data)), fd)
    peer.say(frames.pack_put([Staged(block.chain_hash, 0, len(block.data))]))
    peer.hear(Kind.TAKEN)
    peer.say(frames.pack_number(Kind.RELEASE, 1))
    assert peer.frame()[:2] == (Kind.ERROR, Status.INVALID_ARGUMENT)
    assert peer.is_closed()
    peer.close()
    os.close(fd)
    async with connected(server.address) as client:
        assert (await client.match([block.chain_hash])).blocks == 1
        await client.clear()
        assert (await client.stats()).tiers[0].used_bytes == 0


async def test_leases_beyond_what_one_client_may_have_are_not_granted(
    server: Process, path: Path
) -> None:
    block = build_prefix("a", 1)[0]
    async with connected(server.address) as client:
        await client.put([block])
        peer = Peer(path).enter()
        states = [int(peer.locate(block).places["state"][0]) for _ in range(70)]
        assert states == [State.HERE] * 64 + [State.ELSEWHERE] * 6
        assert (await client.stats()).leases == 64
        peer.close()
        for _ in range(200):
            if (await client.stats()).leases == 0:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the leases of a client that is gone are still held")


async def test_who_stops_within_a_frame_is_let_go(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "STALL_SECONDS", 0.1)
    async with serving(small_config(shared_memory=str(own_path))):
        peer = await asyncio.to_thread(lambda: Peer(own_path).enter())
        peer.say(frames.pack_locate(frames.Locate(0, (0, 0), (0, 0), [bytes(32)]))[:-1])
        assert await asyncio.to_thread(peer.is_closed)
        peer.close()


async def test_when_all_connections_are_taken_the_idle_ones_make_room(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor_module, "MAX_CONNECTIONS", 3)
    async with serving(small_config(shared_memory=str(own_path))):
        peers = [await asyncio.to_thread(lambda: Peer(own_path).enter()) for _ in range(8)]
        assert await asyncio.to_thread(peers[0].is_closed)
        located = await asyncio.to_thread(peers[-1].locate, *build_prefix("a", 1))
        assert list(located.places["state"]) == [State.ABSENT]
        for peer in peers:
            peer.close()


async def test_a_connection_that_is_cancelled_before_its_first_word_is_closed(
    own_path: Path,
) -> None:
    async with serving(small_config(shared_memory=str(own_path))) as app:
        assert app._shared_memory is not None
        acceptor = app._shared_memory._acceptor
        assert acceptor._listener is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(str(own_path))
            acceptor._accept(acceptor._listener)
            [task] = acceptor._sessions.values()
            # its session has not begun, so it cannot close anything
            task.cancel()
            await asyncio.wait([task])
            peer.settimeout(60)
            assert peer.recv(1) == b""
        gc.collect()

"""What only the shared-memory path can do, and what becomes of it when one side goes away."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packkv.client import Client, ClientConfig, Fetched, Miss, PutStatus, Span
from packkv.client.paths import Offer, Opening, PathBroken
from packkv.client.paths.arena import Arena
from packkv.client.paths.buffers import Buffers
from packkv.client.paths.shared_memory import open_shared_memory
from packkv.errors import ProtocolViolation, StoreError
from packkv_protos.shared_memory import frames
from tests.clients.conftest import StoreProcess
from tests.store.conftest import Payload, build_prefix

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a path of Linux")

ONLY = ClientConfig(paths=("shared-memory",), breaker_failures=1000)


def named(prefix: list[Payload]) -> list[tuple[bytes, bytes]]:
    return [(block.chain_hash, block.data) for block in prefix]


def names(prefix: list[Payload]) -> list[bytes]:
    return [block.chain_hash for block in prefix]


def payloads(blocks: list[Fetched]) -> list[bytes | None]:
    return [bytes(block.data) if block.data is not None else None for block in blocks]


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within a minute."""
    ends_at = time.monotonic() + 60
    while not condition():
        if time.monotonic() > ends_at:
            return False
        threading.Event().wait(0.02)
    return True


@pytest.fixture
def client(store: StoreProcess) -> Iterator[Client]:
    with Client(store.target, config=ONLY) as client:
        yield client


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[StoreProcess]:
    """A store with 1 MiB of RAM and nothing else."""
    store = StoreProcess(tmp_path / "small", ("--ram-bytes", "1MiB"))
    store.start()
    yield store
    store.kill()


def test_views_are_the_memory_of_the_store_and_cannot_be_written(client: Client) -> None:
    prefix = build_prefix("a", 5)
    client.put(named(prefix))
    with client.views(names(prefix)) as views:
        assert payloads(views.blocks) == [b.data for b in prefix]
        assert views.are_held
        assert client.stats().leases == 1
        view = views.blocks[0].data
        assert view is not None
        assert view.readonly
        with client.views(names(prefix)) as again:
            assert view.obj is not None
            assert again.blocks[0].data is not None
            assert again.blocks[0].data.obj is view.obj
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    assert soon(lambda: client.stats().leases == 0)


def test_views_of_parts_say_which_parts_were_asked_for(client: Client) -> None:
    prefix = build_prefix("a", 2)
    client.put(named(prefix))
    copies = client.get(names(prefix), layers=Span(1, 1))
    with client.views(names(prefix), layers=Span(1, 1)) as views:
        assert [b.received for b in views.blocks] == [b.received for b in copies]


def test_views_are_copies_where_the_memory_cannot_be_seen(store: StoreProcess) -> None:
    prefix = build_prefix("a", 2)
    with Client(store.target, config=ClientConfig(paths=("grpc",))) as client:
        client.put(named(prefix))
        with client.views([*names(prefix), bytes(32)]) as views:
            assert payloads(views.blocks) == [*(b.data for b in prefix), None]
            assert views.are_held
        assert client.path == "grpc"


def test_what_the_body_of_views_raises_comes_out(client: Client) -> None:
    client.put(named(build_prefix("a", 1)))
    with pytest.raises(KeyError), client.views(names(build_prefix("a", 1))):
        raise KeyError("the caller's own")
    assert soon(lambda: client.stats().leases == 0)


def test_what_is_in_view_is_not_evicted_and_a_full_arena_refuses(
    small_store: StoreProcess,
) -> None:
    first = build_prefix("a", 3, section_bytes=40_000)
    second = build_prefix("b", 1, section_bytes=80_000)
    with Client(small_store.target, config=ONLY) as client:
        client.put(named(first))
        with client.views(names(first)) as views:
            refused = client.put(named(second))
            assert [result.status for result in refused] == [PutStatus.REJECTED]
            assert "no room" in refused[0].reason
            assert payloads(views.blocks) == [b.data for b in first]
        assert [result.status for result in client.put(named(second))] == [PutStatus.STORED]
        assert payloads(client.get(names(second))) == [b.data for b in second]


def test_a_copy_that_outlives_its_lease_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreProcess(tmp_path / "store", ("--lease-seconds", "0.2"))
    store.start()
    prefix = build_prefix("a", 2)
    copy = Arena.copy

    def late(*arguments: object) -> object:
        copied = copy(*arguments)  # type: ignore[arg-type]
        time.sleep(0.25)
        return copied

    try:
        with Client(store.target, config=ONLY) as client:
            client.put(named(prefix))
            with client.views(names(prefix)) as views:
                assert soon(lambda: not views.are_held)
            monkeypatch.setattr(Arena, "copy", late)
            assert [b.miss for b in client.get(names(prefix))] == [Miss.ABSENT] * 2
            monkeypatch.undo()
            # unless the machine is too busy to copy it in time
            assert soon(lambda: payloads(client.get(names(prefix))) == [b.data for b in prefix])
    finally:
        store.kill()


HOLDER = """
import sys, time
from packkv.client import Client, ClientConfig
client = Client(sys.argv[1], config=ClientConfig(paths=("shared-memory",)))
name, payload = bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])

def blocks():
    yield name, payload
    with client.views([bytes.fromhex(sys.argv[4])], lease_ms=60_000):
        print("holding", flush=True)
        time.sleep(600)

client.put(blocks())
"""


def test_a_client_that_is_killed_holds_nothing_any_more(own_store: StoreProcess) -> None:
    held, unfinished = build_prefix("a", 2, section_bytes=64)
    with Client(own_store.target, config=ONLY) as client:
        client.put(named([held]))
        assert own_store.process is not None
        before = open_files(own_store.process.pid)
        used = client.stats().tiers[0].used_bytes
        arguments = [unfinished.chain_hash, unfinished.data, held.chain_hash]
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, own_store.target, *(one.hex() for one in arguments)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            assert client.stats().leases == 1
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait(60)
            if holder.stdout is not None:
                holder.stdout.close()
        assert soon(lambda: client.stats().leases == 0)
        pid = own_store.process.pid
        assert soon(lambda: open_files(pid) == before)
        assert client.stats().tiers[0].used_bytes == used
        client.clear()
        assert client.stats().tiers[0].used_bytes == 0


def open_files(pid: int) -> int:
    # descriptors of connections and of staged memory; gRPC opens some of its own as it likes
    found = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:
            continue
        found += "packkv-staging" in target
    return found


def test_after_a_restart_calls_fall_back_and_come_back(own_store: StoreProcess) -> None:
    prefix = build_prefix("a", 3)
    config = ClientConfig(breaker_failures=1000)
    with Client(own_store.target, config=config) as client:
        client.put(named(prefix))
        assert client.path == "shared-memory"
        with client.views(names(prefix)) as views:
            own_store.kill()
            # the memory stays as it was, whatever has become of the store
            assert payloads(views.blocks) == [b.data for b in prefix]
        own_store.start(own_store.target)
        paths: list[str | None] = []

        def is_back() -> bool:
            try:
                got = client.get(names(prefix))
            except StoreError:
                return False
            assert payloads(got) == [b.data for b in prefix]
            paths.append(client.path)
            return client.path == "shared-memory"

        assert soon(is_back), paths
        assert set(paths) <= {"shared-memory", "bulk", "grpc"}


def test_a_store_without_shared_memory_is_served_on_the_next_path(tmp_path: Path) -> None:
    store = StoreProcess(tmp_path / "store", ("--shared-memory", "off"))
    store.start()
    try:
        with Client(store.target) as client:
            prefix = build_prefix("a", 1)
            client.put(named(prefix))
            assert client.path == "bulk"
    finally:
        store.kill()


def opening(path: Path, nonce: bytes, token: str | None = None) -> Opening:
    return Opening(
        "127.0.0.1:1",
        Offer(str(path), 0, nonce),
        ClientConfig(token=token),
        Buffers(0),
        timeout_s=60.0,
    )


def test_no_token_is_said_to_another_server(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    said: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(frames.pack_greeting(b"another nonce..."))
                said.append(sock.recv(1000))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(PathBroken, match="another server"):
            open_shared_memory(opening(path, b"the nonce we had", "a secret"))
        thread.join(60)
    assert said == [b""]


def test_a_socket_that_is_not_on_this_host_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(PathBroken):
        open_shared_memory(opening(tmp_path / "nothing.sock", bytes(16)))


@pytest.mark.parametrize("flaw", ["may shrink", "smaller", "no descriptor", "size"])
def test_memory_that_could_fail_under_a_reader_is_not_mapped(tmp_path: Path, flaw: str) -> None:
    path = tmp_path / "flawed.sock"
    size = 0 if flaw == "size" else 8192
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096 if flaw == "smaller" else 8192)
    if flaw != "may shrink":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(frames.pack_greeting(bytes(16)))
                sock.recv(1000)
                answer = frames.pack_number(frames.Kind.ARENA, size)
                socket.send_fds(sock, [answer], [] if flaw == "no descriptor" else [fd])
                sock.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises((ProtocolViolation, PathBroken), match=r"arena|shrink|descriptor"):
            open_shared_memory(opening(path, bytes(16)))
        thread.join(60)
    os.close(fd)

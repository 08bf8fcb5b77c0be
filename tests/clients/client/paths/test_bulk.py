"""What is the bulk path's own: trust, lying servers, connections that break, and many callers."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from packkv.client import Client, ClientConfig, Fetched, PutStatus
from packkv.client.paths import Offer, Opening, PathBroken, Wanted
from packkv.client.paths.buffers import Buffers
from packkv.client.paths.bulk import BulkPath, host_of, open_bulk
from packkv.errors import (
    AccessDenied,
    DeadlineExceeded,
    PackKVError,
    ProtocolViolation,
    StoreError,
    StoreUnavailable,
)
from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Found, Kind
from packkv_protos.bulk.wire import Wire
from tests.clients.conftest import StoreProcess
from tests.clients.test_security import certificates, config, guarded
from tests.store.conftest import MIB, Payload, build_prefix

__all__ = ["certificates", "guarded"]

NONCE = bytes(range(16))
FAR = float(2**31)
Script = Callable[[Wire], None]


def names(prefix: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in prefix]


def named(prefix: list[Payload]) -> list[tuple[bytes, bytes]]:
    return [(payload.chain_hash, payload.data) for payload in prefix]


def contents(blocks: list[Fetched]) -> list[bytes | None]:
    return [None if block.data is None else bytes(block.data) for block in blocks]


def wanted(count: int, max_bytes: int = 1 << 40) -> Wanted:
    return Wanted(tuple(bytes([i]) * 32 for i in range(count)), None, None, 0, max_bytes, None)


@contextmanager
def puppet(script: Script, nonce: bytes = NONCE) -> Iterator[int]:
    """A port where each connection is greeted, welcomed, and then treated as the script says."""
    listener = socket.create_server(("127.0.0.1", 0))
    wires: list[Wire] = []

    def serve() -> None:
        while True:
            try:
                wire = Wire(listener.accept()[0])
            except OSError:
                return
            wires.append(wire)
            threads.append(threading.Thread(target=talk, args=(wire,)))
            threads[-1].start()

    def talk(wire: Wire) -> None:
        try:
            wire.send([frames.pack_greeting(nonce)], FAR)
            wire.receive_frame(FAR)
            wire.send([frames.pack_welcome()], FAR)
            script(wire)
        except OSError:
            return

    threads = [threading.Thread(target=serve)]
    threads[0].start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    threads[0].join(60)
    for wire in wires:
        wire.abort()
    for thread in threads[1:]:
        thread.join(60)
    for wire in wires:
        wire.close()


@contextmanager
def opened(port: int, nonce: bytes = NONCE) -> Iterator[BulkPath]:
    offer = Offer("", port, nonce)
    path = open_bulk(Opening(f"127.0.0.1:{port}", offer, ClientConfig(), Buffers(0), 60.0))
    assert path is not None
    yield path
    path.close()


def found(
    lengths: list[int], extents: list[tuple[int, int, int]], misses: list[int] | None = None
) -> bytes:
    return frames.pack_found(
        Found(
            np.array(lengths, np.uint32),
            np.array(misses or [0] * len(lengths), np.uint8),
            np.array([(0, 1, len(extents))], np.uint32),
            np.array(extents, np.uint32).reshape(-1, 3),
        )
    )


def answering(*parts: bytes, then: Script = Wire.abort) -> Script:
    def script(wire: Wire) -> None:
        wire.receive_frame(FAR)
        wire.send(parts, FAR)
        then(wire)

    return script


def wait(event: threading.Event) -> None:
    event.wait(60)


def runs(*sizes: int) -> bytes:
    return b"".join([frames.MARK.pack(size) + b"x" * size for size in sizes]) + frames.MARK.pack(0)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ([b"\xff" * 64], ProtocolViolation),
        ([frames.PREFIX.pack(Kind.FOUND, 0, 0, 2**32 - 1)], ProtocolViolation),
        ([frames.pack(Kind.FOUND, bytes(11))], ProtocolViolation),
        ([frames.pack(Kind.FOUND, b"\xff" * 12)], ProtocolViolation),
        ([frames.pack(Kind.END)], ProtocolViolation),
        ([found([4], [(0, 0, 4)]), runs(4)], ProtocolViolation),
        ([found([4, 4, 4], []), runs()], ProtocolViolation),
        ([found([4, 0], [(0, 0, 4), (2, 0, 4)]), runs(8)], ProtocolViolation),
        ([found([4, 0], [(0, 0, 4), (1, 0, 1)]), runs(5)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 1, 4)]), runs(8)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 0, 3)]), runs(7)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 1, 3)]), runs(7)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 2, 2), (1, 0, 2)]), runs(8)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 0, 4), (0, 0, 4)]), runs(12)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 0, 0), (1, 0, 4)]), runs(8)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 0, 2**32 - 1)]), runs(8)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 2**32 - 1, 4)]), runs(8)], ProtocolViolation),
        ([found([4, 4], [(0, 0, 4), (1, 0, 4)], [0, 1]), runs(8)], ProtocolViolation),
        ([found([2**32 - 1] * 2, [(0, 0, 4)]), runs(4)], ProtocolViolation),
        ([found([4, 0], [(0, 0, 4)]), runs(5)], ProtocolViolation),
        ([found([4, 0], [(0, 0, 4)]), runs(3)], ProtocolViolation),
        ([found([4, 0], [(0, 0, 4)]), runs(4, 1)], ProtocolViolation),
        ([found([4, 0], [(0, 0, 4)]), frames.MARK.pack(2**64 - 1), runs(4)], ProtocolViolation),
        ([found([4, 0], [(0, 0, 4)]), frames.MARK.pack(4), b"xxx"], PathBroken),
        ([found([4, 0], [(0, 0, 4)]), frames.MARK.pack(4), b"xxxx"], PathBroken),
        ([found([4, 0], [(0, 0, 4)])], PathBroken),
        ([found([4, 0], [(0, 0, 4)])[:20]], PathBroken),
        ([], PathBroken),
        ([frames.pack_error(14, "it is leaving")], StoreUnavailable),
        ([frames.pack_error(255, "\ud7ff")], StoreError),
    ],
)
def test_what_a_lying_server_says_is_never_handed_out(
    said: list[bytes], error: type[PackKVError]
) -> None:
    with (
        puppet(answering(*said)) as port,
        opened(port) as path,
        pytest.raises(error),
    ):
        path.get(wanted(2, max_bytes=1 << 30), 60)


def test_the_least_that_is_right_is_taken() -> None:
    said = [found([4, 0], [(0, 0, 1), (0, 1, 3)], [0, 1]), runs(2, 1, 1)]
    with puppet(answering(*said)) as port, opened(port) as path:
        first, second = path.get(wanted(2), 60)
        assert contents([first, second]) == [b"xxxx", None]
        assert first.received == ((0, 4),)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (frames.pack(Kind.WANTED, b""), ProtocolViolation),
        (frames.pack(Kind.WANTED, b"\1\1\1"), ProtocolViolation),
        (frames.pack(Kind.WANTED, b"\2\0"), ProtocolViolation),
        (frames.pack_results([]), ProtocolViolation),
        (frames.pack_wanted([False, False]) + frames.pack_results([]), ProtocolViolation),
        (
            frames.pack_wanted([False, False]) + frames.pack_results([frames.Result(9, "")] * 2),
            ProtocolViolation,
        ),
        (frames.pack_wanted([False, False]) + frames.pack(Kind.RESULTS, b"\1"), ProtocolViolation),
        (frames.pack_wanted([True]), PathBroken),
    ],
)
def test_a_put_believes_no_more(said: bytes, error: type[PackKVError]) -> None:
    with puppet(answering(said)) as port, opened(port) as path, pytest.raises(error):
        path.put([(bytes(32), b"abc"), (bytes(32), b"def")], 60)


def test_somebody_elses_port_gets_no_token() -> None:
    heard: list[Kind] = []
    with puppet(
        lambda wire: heard.append(wire.receive_frame(FAR).kind), b"another server."
    ) as port:
        with pytest.raises(PathBroken) as caught, opened(port):
            pass
        assert caught.value.is_untouched
    assert heard == []


def test_a_server_that_says_nothing_is_waited_for_until_the_deadline() -> None:
    silent = threading.Event()
    try:
        with puppet(lambda wire: wait(silent)) as port, opened(port) as path:
            with pytest.raises(DeadlineExceeded):
                path.get(wanted(1), 0.2)
            with pytest.raises(DeadlineExceeded):
                path.put([(bytes(32), b"abc")], 0.2)
            silent.set()
    finally:
        silent.set()


def test_a_server_that_does_not_read_is_waited_for_until_the_deadline() -> None:
    silent = threading.Event()
    wants = answering(frames.pack_wanted([True]), then=lambda wire: wait(silent))
    try:
        with puppet(wants) as port, opened(port) as path:
            with pytest.raises(DeadlineExceeded):
                path.put([(bytes(32), bytes(64 * MIB))], 0.3)
            silent.set()
    finally:
        silent.set()


def test_closing_ends_calls_under_way() -> None:
    asked, silent = threading.Event(), threading.Event()

    def script(wire: Wire) -> None:
        wire.receive_frame(FAR)
        asked.set()
        silent.wait(60)

    with puppet(script) as port, opened(port) as path:
        ended: list[PathBroken] = []

        def call() -> None:
            try:
                path.get(wanted(1), 60)
            except PathBroken as error:
                ended.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert asked.wait(60)
        path.close()
        thread.join(60)
        silent.set()
        assert len(ended) == 1
        with pytest.raises(PathBroken):
            path.get(wanted(1), 1)


def test_a_connection_that_was_closed_meanwhile_is_replaced_unseen() -> None:
    said = [found([4], [(0, 0, 4)]), runs(4)]
    with puppet(answering(*said)) as port, opened(port) as path:
        for _ in range(5):
            assert contents(path.get(wanted(1), 60)) == [b"xxxx"]


def test_more_callers_than_connections_wait_their_turn(store: StoreProcess) -> None:
    prefix = build_prefix("a", 4)
    with Client(store.target, config=ClientConfig(paths=("bulk",))) as client:
        client.put(named(prefix))
        right: list[bool] = []

        def work() -> None:
            for _ in range(10):
                right.append(contents(client.get(names(prefix))) == [p.data for p in prefix])

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert right == [True] * 200


@pytest.mark.parametrize("signal", ["killed", "stopped"])
def test_a_store_that_ends_within_a_transfer_is_an_error_and_never_short_data(
    own_store: StoreProcess, signal: str
) -> None:
    prefix = build_prefix("a", 40, section_bytes=150_000)
    settings = ClientConfig(paths=("bulk",), retries=0, breaker_failures=10_000)
    with Client(own_store.target, config=settings) as client:
        client.put(named(prefix))
        outcomes: list[object] = []
        first = threading.Event()

        def work() -> None:
            deadline_s = 1.0
            while not outcomes or outcomes[-1] is True:
                try:
                    got = client.get(names(prefix), deadline_s=deadline_s)
                except StoreError as error:
                    if first.is_set():
                        outcomes.append(error)
                    # this machine takes longer
                    deadline_s *= 2
                else:
                    outcomes.append(contents(got) == [p.data for p in prefix])
                    first.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert first.wait(60)
        own_store.kill() if signal == "killed" else own_store.pause()
        thread.join(60)
        if signal == "stopped":
            own_store.resume()
    assert all(one is True for one in outcomes[:-1])
    assert isinstance(outcomes[-1], StoreUnavailable | DeadlineExceeded)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes keys with openssl")
class TestTls:
    def test_blocks_travel_encrypted_with_both_certificates(
        self, guarded: StoreProcess, certificates: Path
    ) -> None:
        prefix = build_prefix("bulk", 5, section_bytes=40_000)
        settings = config(certificates, "token of ann", paths=("bulk",))
        with Client(guarded.target, config=settings) as client:
            results = client.put(named(prefix))
            assert {result.status for result in results} == {PutStatus.STORED}
            assert contents(client.get(names(prefix))) == [p.data for p in prefix]
            assert client.path == "bulk"

    @pytest.mark.parametrize(
        ("ca", "who", "host"),
        [
            ("stranger", "client", "127.0.0.1"),
            ("server", "stranger", "127.0.0.1"),
            ("server", None, "127.0.0.1"),
            ("server", "client", "127.0.0.2"),
        ],
        ids=["unknown server", "unknown client", "no client", "another host's name"],
    )
    def test_without_trust_there_is_no_path(
        self, guarded: StoreProcess, certificates: Path, ca: str, who: str | None, host: str
    ) -> None:
        good = config(certificates, "token of ann")
        with Client(guarded.target, config=good) as client:
            offer = client._ask_paths(60.0)
        settings = config(certificates, "token of ann", ca=ca, who=who)
        target = f"{host}:{guarded.target.rpartition(':')[2]}"
        with pytest.raises(PathBroken):
            open_bulk(Opening(target, offer, settings, Buffers(0), 60.0))

    def test_a_guessed_token_is_refused(self, guarded: StoreProcess, certificates: Path) -> None:
        with Client(guarded.target, config=config(certificates, "token of ann")) as client:
            offer = client._ask_paths(60.0)
        settings = config(certificates, "guessed")
        with pytest.raises(AccessDenied):
            open_bulk(Opening(guarded.target, offer, settings, Buffers(0), 60.0))


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("127.0.0.1:7437", "127.0.0.1"),
        ("store.example:7437", "store.example"),
        ("[::1]:7437", "::1"),
        ("dns:///store.example:7437", "store.example"),
        ("dns://8.8.8.8/store.example:7437", "store.example"),
        ("ipv4:10.0.0.1:7437", "10.0.0.1"),
        ("ipv6:[::1]:7437", "::1"),
        ("ipv4:10.0.0.1:7437,10.0.0.2:7437", None),
        ("unix:/run/store", None),
    ],
)
def test_the_host_of_a_target(target: str, host: str | None) -> None:
    assert host_of(target) == host

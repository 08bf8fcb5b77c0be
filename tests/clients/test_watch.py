"""`Client.watch` and `packkv watch` against a real store, and against one that lies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from packkv.client import Changes, Client, ClientConfig
from packkv.errors import (
    ClientClosed,
    DeadlineExceeded,
    ProtocolViolation,
    StoreUnavailable,
    Unsupported,
)
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_protos.v1 import block_store_pb2_grpc
from tests.clients.conftest import StoreProcess, Worker
from tests.clients.test_cli import NOWHERE, packkv

TOKENS = list(range(64 * 3))


def publish(client: Client, worker: Worker) -> set[bytes]:
    names = worker.hashes(TOKENS)
    client.put([(name, data) for name, (_, data) in zip(names, worker.blocks(TOKENS), strict=True)])
    return set(names)


def test_a_watch_follows_what_a_store_has(client: Client, worker: Worker) -> None:
    with client.watch(deadline_s=60) as watch:
        assert next(watch) == Changes(1, frozenset(), frozenset(), True, False)
        assert next(watch) == Changes(2, frozenset(), frozenset(), False, True)
        names = publish(client, worker)
        stored: set[bytes] = set()
        while stored != names:
            stored |= next(watch).stored
        client.clear()
        removed: set[bytes] = set()
        while removed != names:
            removed |= next(watch).removed
    with client.watch(deadline_s=60) as watch:
        assert next(watch).reset
        assert next(watch).current


def test_a_watch_ends_at_its_deadline(client: Client) -> None:
    with pytest.raises(DeadlineExceeded), client.watch(deadline_s=0.3) as watch:
        for _ in watch:
            pass


def test_closing_a_watch_ends_who_waits_for_it(client: Client) -> None:
    watch = client.watch()
    assert [next(watch).reset, next(watch).current] == [True, True]
    threading.Timer(0.2, watch.close).start()
    with pytest.raises(ClientClosed):
        next(watch)


def test_a_store_that_dies_ends_a_watch_and_a_new_one_starts_over(
    own_store: StoreProcess, worker: Worker
) -> None:
    with Client(own_store.target) as client:
        watch = client.watch()
        names = publish(client, worker)
        own_store.kill()
        with pytest.raises(StoreUnavailable):
            for _ in watch:
                pass
        own_store.start(own_store.target)
        with client.watch(deadline_s=60) as again:
            changes = [next(again) for _ in range(3)]
    assert [change.reset for change in changes] == [True, False, False]
    assert changes[1].stored == names
    assert changes[2].current


def test_a_store_that_does_not_begin_in_time_is_not_waited_for(own_store: StoreProcess) -> None:
    with Client(own_store.target, config=ClientConfig(deadline_s=0.5, retries=0)) as client:
        client.ping(deadline_s=60)
        own_store.pause()
        with pytest.raises(StoreUnavailable):
            client.watch()
        own_store.resume()


class Liar(block_store_pb2_grpc.BlockStoreServicer):
    """Answers every Watch with the same frames, and then with nothing."""

    def __init__(self, frames: list[pb.WatchFrame]) -> None:
        self._frames = frames

    def Watch(
        self, request: pb.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchFrame]:
        yield from self._frames


RESET = pb.WatchFrame(sequence=1, reset=True)
NAME = bytes(32)
LIES = {
    "no reset": [pb.WatchFrame(sequence=1)],
    "a gap": [RESET, pb.WatchFrame(sequence=3)],
    "a short hash": [RESET, pb.WatchFrame(sequence=2, stored=[b"short"])],
    "both at once": [RESET, pb.WatchFrame(sequence=2, stored=[NAME], removed=[NAME])],
    "an end": [RESET],
}


@pytest.mark.parametrize("frames", LIES.values(), ids=LIES)
def test_a_server_that_lies_is_a_protocol_violation(frames: list[pb.WatchFrame]) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    liar = Liar(frames)  # type: ignore[abstract]
    block_store_pb2_grpc.add_BlockStoreServicer_to_server(liar, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client, pytest.raises(ProtocolViolation):
            for _ in client.watch(deadline_s=60):
                pass
    finally:
        server.stop(None).wait()


def test_a_server_that_does_not_know_the_call_is_said_so() -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client, pytest.raises(Unsupported):
            client.watch()
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_the_command_tells_it_until_it_is_interrupted(
    client: Client, worker: Worker, as_json: bool
) -> None:
    names = {name.hex() for name in publish(client, worker)}
    command = [sys.executable, "-c", "from packkv.cli import main; main()", "watch"]
    command += ["--target", client.target, *(["--json"] if as_json else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if as_json:
            told = [json.loads(process.stdout.readline()) for _ in range(3)]
            assert [one["sequence"] for one in told] == [1, 2, 3]
            assert [one["reset"] for one in told] == [True, False, False]
            assert [one["current"] for one in told] == [False, False, True]
            assert set(told[1]["stored"]) == names
        else:
            assert process.stdout.readline() == "reset\n"
            stored = {process.stdout.readline() for _ in names}
            assert stored == {f"+ {name}\n" for name in names}
            assert process.stdout.readline() == "current\n"
            client.clear()
            assert {process.stdout.readline() for _ in names} == {f"- {n}\n" for n in names}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_the_command_ends_after_its_seconds(client: Client) -> None:
    result = packkv("watch", "--seconds", "1", "--no-snapshot", "--target", client.target)
    assert result.exit_code == 0


def test_the_command_without_a_store_says_so_in_one_line() -> None:
    result = packkv("--timeout", "0.5", "watch", "--json", "--target", NOWHERE)
    assert result.exit_code == 1
    assert result.stderr.startswith("packkv: Watch at ")

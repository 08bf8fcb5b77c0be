"""Servers and clients are killed at any point, over and over: nothing stored is lost or leaked.

`make soak` runs hundreds of rounds, every other run a few.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from packkv.client import Client, ClientConfig
from tests.clients.conftest import StoreProcess
from tests.e2e.faults import traffic
from tests.e2e.faults.conftest import (
    PATIENCE_S,
    StartStore,
    contents,
    names,
    pid_of,
    until,
)

pytestmark = [pytest.mark.soak, pytest.mark.timeout(24 * 3600)]

# all that one round puts has room in both
FLAGS = ("--ram-bytes", "16MiB", "--disk-bytes", "4GiB", "--no-sync")


class Traffic:
    """A process that puts and gets on one path, and what it has said."""

    def __init__(self, store: StoreProcess, path: str, seed: str) -> None:
        self.stored: list[str] = []
        self.wrong: list[str] = []
        # what it gets layer by layer
        self.begun: list[str] = []
        self.came: list[str] = []
        self._begins = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, str(traffic.__file__), store.target, path, seed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def begin(self, generation: str) -> None:
        """Returns when it has stored something under a name of this generation."""
        self.stored = []
        assert self.process.stdin is not None
        print(generation, file=self.process.stdin, flush=True)
        until(lambda: self.stored_of(generation) != [], "the client has stored nothing")

    def wait(self, rng: random.Random) -> None:
        """Returns at a random moment, half of the times while layers are on their way."""
        if rng.random() < 0.5:
            self._begins.clear()
            assert self._begins.wait(PATIENCE_S), "the client gets nothing layer by layer"
            threading.Event().wait(rng.random() / 500)
        else:
            threading.Event().wait(rng.random() / 2)

    def stored_of(self, generation: str) -> list[str]:
        return [name for name in self.stored if name.startswith(f"{generation} ")]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, name = line.strip().partition(" ")
            heard = {
                "stored": self.stored,
                "wrong": self.wrong,
                "begun": self.begun,
                "came": self.came,
            }
            heard[kind].append(name)
            if kind == "begun":
                self._begins.set()


@contextmanager
def running(store: StoreProcess, path: str, seed: str) -> Iterator[Traffic]:
    client = Traffic(store, path, seed)
    try:
        yield client
    finally:
        if client.process.returncode is None:
            client.kill()


def plain(store: StoreProcess) -> Client:
    """For looking at the store; what is under test is another client."""
    return Client(store.target, config=ClientConfig(paths=("grpc",), deadline_s=PATIENCE_S))


def check_all_is_there(store: StoreProcess, stored: list[str]) -> None:
    with plain(store) as client:
        for name in stored:
            prefix = traffic.prefix_of(name)
            assert contents(client.get(names(prefix))) == [b.data for b in prefix], name
        counters = client.stats().counters
        assert counters['packkv_corrupt_blocks_total{tier="ram"}'] == 0
        assert counters['packkv_corrupt_blocks_total{tier="disk"}'] == 0


def check_nothing_is_held(store: StoreProcess) -> None:
    """No lease, no staged memory, not a byte of a block that was not finished."""
    with plain(store) as client:
        until(lambda: client.stats().leases == 0, "a lease has outlived its client")
        until(lambda: staged(store) == 0, "memory of a client has outlived it")
        # what was taken whole may still be on its way to the disk

        def is_empty() -> bool:
            client.clear()
            return all(tier.used_bytes == 0 for tier in client.stats().tiers)

        until(is_empty, "bytes are lost until the next start")


def staged(store: StoreProcess) -> int:
    folder = f"/proc/{pid_of(store)}/fd"
    if not os.path.isdir(folder):
        return 0
    found = 0
    for name in os.listdir(folder):
        try:
            found += "packkv-staging" in os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue
    return found


def test_a_store_killed_at_any_point_has_all_that_was_answered_as_stored(
    start_store: StartStore, path: str, soak_rounds: int
) -> None:
    store = start_store(*FLAGS)
    rng = random.Random(f"{path} {soak_rounds}")
    with running(store, path, path) as client:
        for number in range(soak_rounds):
            generation = f"round-{number}"
            client.begin(generation)
            client.wait(rng)
            store.kill()
            store.start(store.target)
            check_all_is_there(store, client.stored_of(generation))
            assert client.wrong == []
            with plain(store) as admin:
                admin.clear()


def test_a_client_killed_at_any_point_leaves_nothing_behind_and_loses_nothing(
    start_store: StartStore, path: str, soak_rounds: int
) -> None:
    store = start_store(*FLAGS)
    rng = random.Random(f"{path} {soak_rounds}")
    for number in range(soak_rounds):
        with running(store, path, f"client-{number}") as client:
            client.begin("it")
            client.wait(rng)
            client.kill()
            check_all_is_there(store, client.stored_of("it"))
            assert client.wrong == []
            check_nothing_is_held(store)


def test_a_client_that_freezes_at_any_point_holds_nothing_for_long(
    start_store: StartStore, path: str, soak_rounds: int
) -> None:
    store = start_store(*FLAGS, "--lease-seconds", "0.5", "--stream-seconds", "1")
    rng = random.Random(f"{path} {soak_rounds}")
    with running(store, path, path) as client:
        for number in range(soak_rounds):
            client.begin(f"round-{number}")
            client.wait(rng)
            client.process.send_signal(signal.SIGSTOP)
            # its leases end, its calls do, and what it was about to read may be overwritten
            check_nothing_is_held(store)
            client.process.send_signal(signal.SIGCONT)
        client.begin("end")
        assert client.wrong == []

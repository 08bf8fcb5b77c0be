"""A node whose cable is pulled: it is in a network namespace of its own, and packets vanish.

tests/e2e/test_compose.py has the same fault without namespaces, on any machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from packkv.client import Client, PutStatus
from packkv.demo.processes import Child
from tests.store.conftest import Payload, build_prefix

# of the range for tests of networks, which is nobody's
NETWORK = f"198.18.{os.getpid() % 256}"
HERE, THERE, MASK = f"{NETWORK}.1", f"{NETWORK}.2", "/30"
REDIS_PORT, STORE_PORT = 26379, 27437
WAIT_S = 60.0

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server"),
]


def eventually(condition: Callable[[], object], what: str) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Cable:
    """Two ends of an Ethernet pair: one here, one in a namespace."""

    namespace: str

    def inside(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *command]

    def pull(self) -> None:
        self._link("down")

    def plug(self) -> None:
        self._link("up")

    def _link(self, state: str) -> None:
        ip("-n", self.namespace, "link", "set", "eth0", state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@pytest.fixture
def cable() -> Iterator[Cable]:
    namespace, end = f"pkv{os.getpid()}", f"pkv{os.getpid() % 10**8}"
    try:
        ip("netns", "add", namespace)
    except (OSError, subprocess.CalledProcessError) as reason:
        why = getattr(reason, "stderr", "") or reason
        pytest.skip(f"network namespaces cannot be made here: {why}".strip())
    try:
        ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("addr", "add", HERE + MASK, "dev", end)
        ip("link", "set", end, "up")
        inside = ("-n", namespace)
        ip(*inside, "addr", "add", THERE + MASK, "dev", "eth0")
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "link", "set", "eth0", "up")
        yield Cable(namespace)
    except subprocess.CalledProcessError as reason:
        pytest.skip(f"no Ethernet pair can be made here: {reason.stderr}".strip())
    finally:
        # takes the pair along
        ip("netns", "del", namespace)


@pytest.fixture
def nodes(cable: Cable, tmp_path: Path) -> Iterator[tuple[Client, Client]]:
    """Clients, here, of a node that is here and of one behind the cable."""
    redis = ["redis-server", "--bind", HERE, "--port", str(REDIS_PORT), "--protected-mode", "no"]
    redis += ["--save", "", "--dir", str(tmp_path)]
    store = [sys.executable, "-m", "packkv_store", "--insecure", "--ram-bytes", "32MiB"]
    store += ["--index", f"redis://{HERE}:{REDIS_PORT}", "--grace-seconds", "1", "--listen"]
    with ExitStack() as stack:
        begun = stack.enter_context(Child("redis", redis, tmp_path))
        while "Ready to accept connections" not in begun.hear(WAIT_S):
            pass
        here = [*store, f"{HERE}:{STORE_PORT}"]
        there = cable.inside(*store, f"{THERE}:{STORE_PORT}")
        children = [
            stack.enter_context(Child(name, command, tmp_path))
            for name, command in (("here", here), ("there", there))
        ]
        for child in children:
            assert child.hear(WAIT_S).startswith("packkv-store listening on ")
        yield (
            stack.enter_context(Client(f"{HERE}:{STORE_PORT}")),
            stack.enter_context(Client(f"{THERE}:{STORE_PORT}")),
        )


def names_of(prefix: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in prefix]


def put(client: Client, prefix: list[Payload]) -> None:
    results = client.put([(payload.chain_hash, payload.data) for payload in prefix])
    assert {result.status for result in results} <= {PutStatus.STORED, PutStatus.ALREADY_PRESENT}


@dataclass
class Load:
    """Finds, fetches and publishes at one node, again and again."""

    client: Client
    here: list[Payload]
    there: list[Payload]
    rounds: int = 0
    failures: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._thread.join(WAIT_S)
        assert self.failures == []

    def go_on(self) -> None:
        wanted = self.rounds + 3
        eventually(lambda: self.rounds >= wanted or self.failures, "the node answers")
        assert self.failures == []

    def _run(self) -> None:
        while not self.over.is_set():
            try:
                self._round()
            except Exception as error:
                self.failures.append(repr(error))
                return
            self.rounds += 1

    def _round(self) -> None:
        put(self.client, build_prefix(f"news {id(self)} {self.rounds}", 1))
        for prefix, is_here in ((self.here, True), (self.there, False)):
            names = names_of(prefix)
            found = self.client.match(names)
            assert found.blocks == len(names) or not is_here
            fetched = self.client.get(names[: found.blocks]) if found.blocks else []
            for block, payload in zip(fetched, prefix, strict=False):
                # what was found and cannot be brought is a miss
                assert block.data is not None or not is_here
                assert block.data is None or bytes(block.data) == payload.data


def test_a_node_that_is_cut_off_is_missed_and_found_again(
    cable: Cable, nodes: tuple[Client, Client]
) -> None:
    here, there = nodes
    # of these the load may bring blocks here; of the other only the test asks
    mine, fetched, other = (build_prefix(name, 8) for name in ("mine", "fetched", "other"))
    put(here, mine)
    put(there, fetched + other)

    def finds_other() -> bool:
        return here.match(names_of(other)).blocks == len(other)

    eventually(finds_other, "the node here finds what is there")
    with Load(here, mine, fetched) as load:
        load.go_on()
        cable.pull()
        load.go_on()
        eventually(lambda: not finds_other(), "what is there is missed")
        load.go_on()
        cable.plug()
        eventually(finds_other, "what is there is found again")
        eventually(
            lambda: there.match(names_of(mine)).blocks == len(mine), "and what is here from there"
        )
        load.go_on()

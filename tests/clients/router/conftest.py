"""Workers that do what a test wants, and a real router in front of them."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from packkv.demo.processes import Child

WAIT_S = 60.0


def names_of(prompt: str) -> list[bytes]:
    """A chain hash for each word of a prompt."""
    names, parent = [], bytes(32)
    for word in prompt.split():
        parent = sha256(parent + word.encode()).digest()
        names.append(parent)
    return names


def eventually(condition: Callable[[], object], what: str) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.01)


class Answering(BaseHTTPRequestHandler):
    """One connection of a puppet."""

    protocol_version = "HTTP/1.1"
    puppet: PuppetWorker

    def do_GET(self) -> None:
        if self.path == "/ready":
            self.reply({}, 200 if self.puppet.is_ready else 503)
        else:
            self.reply({"path": self.path})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = json.loads(body)
        if self.path.startswith("/packkv/blocks/"):
            self.puppet.on_names()
            names = [name.hex() for name in names_of(asked["prompt"])]
            self.reply({"blocks": names})
            return
        self.puppet.asked.append(asked)
        self.puppet.keys.append(self.headers.get("authorization", ""))
        self.puppet.act(self, asked)

    def reply(self, body: object, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after", "7")
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


Act = Callable[[Answering, dict[str, Any]], None]


def answer(self: Answering, asked: dict[str, Any]) -> None:
    """What a worker in order does."""
    if not asked.get("stream"):
        self.reply({"text": f"answer of {self.puppet.number}"})
        return
    self.begin_stream()
    for number in range(3):
        self.piece(f"data: {number}\n\n".encode())
    self.piece(b"data: [DONE]\n\n")
    self.end_stream()


@dataclass
class PuppetWorker:
    """A real HTTP server that answers as the test wants, and counts what it was asked."""

    number: int
    act: Act = answer
    on_names: Callable[[], object] = lambda: None
    is_ready: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        class Mine(Answering):
            puppet = self

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def reset(self) -> None:
        self.act, self.on_names, self.is_ready = answer, lambda: None, True
        self.asked.clear()
        self.keys.clear()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class RouterProcess(Child):
    """A `packkv route` on a free port."""

    def __init__(self, name: str, folder: Path, *options: str, first: tuple[str, ...] = ()) -> None:
        command = [sys.executable, "-c", "from packkv.cli import main; main()", *first]
        command += ["route", "--listen", "127.0.0.1:0", *options]
        super().__init__(name, command, folder)
        self.url = self.hear(WAIT_S).removeprefix("packkv-router listening on ")


@pytest.fixture(scope="module")
def all_puppets() -> Iterator[list[PuppetWorker]]:
    made = [PuppetWorker(number) for number in range(3)]
    yield made
    for puppet in made:
        puppet.close()


@pytest.fixture(scope="module")
def router(
    all_puppets: list[PuppetWorker], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterProcess]:
    options = [word for puppet in all_puppets for word in ("--worker", puppet.url)]
    folder = tmp_path_factory.mktemp("router")
    with RouterProcess("router", folder, *options, "--look-seconds", "0.1") as process:
        yield process

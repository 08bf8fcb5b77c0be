"""`packkv bench store` on few small blocks: real processes, real paths, the agreed keys."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from packkv.bench.store import tcp_peer
from packkv.bench.store.blocks import random_blocks
from packkv.bench.store.cpu import Foreign, cpu_seconds
from packkv.bench.store.experiment import Found, Target, run
from packkv.bench.store.fetching_client import config_of
from packkv.bench.store.matching import Matching
from packkv.bench.store.movers import StoreMover, TcpMover, WrongResult
from packkv.bench.store.plan import MAX_TOTAL_BYTES, Plan
from packkv.bench.store.processes import RedisServer, TcpPeer
from packkv.bench.store.report import as_json
from packkv.bench.store.spinning import spinning_thread
from packkv.bench.store.transfers import Transfer, measure, warm_up
from packkv.cli.app import app
from packkv.client import Client, ClientConfig
from packkv.client.config import PATHS
from packkv.client.paths import Buffer
from packkv.errors import ConfigError
from packkv_kernels.format.payload import read_payload

NUMBERS = (
    "memcpy_gbs",
    "tcp_gbs",
    "put_gbs",
    "get_gbs",
    "get_grpc_gbs",
    "get_shm_gbs",
    "gil_busy_ratio_remote",
    "gil_busy_ratio_shm",
    "match_2048_p50_ms",
    "match_2048_p99_ms",
    "cpu_s_per_gb",
)
PLAN = Plan(blocks=4, block_bytes=64 << 10, rounds=2, looks=10, clients=(1, 2), gets=4)
HAS_REDIS = RedisServer.is_installed()


class Quiet:
    """Progress that counts."""

    def __init__(self) -> None:
        self.announced = self.done = 0

    def begin(self, what: str, steps: int) -> None:
        assert self.done == self.announced, f"{self.done} steps of {self.announced} before {what}"
        self.announced += steps

    def step(self) -> None:
        self.done += 1


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "store", *arguments])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what one run of the command wrote."""
    folder = tmp_path_factory.mktemp("bench")
    sizes = ["--blocks", "4", "--block-bytes", "65536", "--rounds", "2", "--looks", "10"]
    files = ["--json", str(folder / "store.json"), "--csv", str(folder / "results.csv")]
    index = ["--index", "redis"] if HAS_REDIS else []
    done = bench(*sizes, *files, *index, "--clients", "1,2", "--note", "a test")
    assert done.exit_code == 0, done.output
    (folder / "output.txt").write_text(done.output)
    return folder


@pytest.fixture(scope="module")
def figures(written: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((written / "store.json").read_text("utf-8"))
    return loaded


def test_the_json_has_the_agreed_keys(figures: dict[str, Any]) -> None:
    for name in NUMBERS:
        assert isinstance(figures[name], float), name
        assert figures[name] > 0, name


@pytest.mark.skipif(not HAS_REDIS, reason="no redis-server")
def test_a_redis_and_its_index_are_measured_where_there_is_one(figures: dict[str, Any]) -> None:
    for name in ("redis_set_gbs", "redis_get_gbs", "match_2048_redis_p50_ms"):
        assert figures[name] > 0
    assert figures["notes"] == []


def test_every_path_has_rows_idle_and_busy_both_ways(figures: dict[str, Any]) -> None:
    found = {(row["path"], row["call"], row["busy_thread"]) for row in figures["rows"]}
    movers = ("tcp", *PATHS, *(("redis",) if HAS_REDIS else ()))
    wanted = {(mover, call, busy) for mover in movers for call in ("put", "get") for busy in (0, 1)}
    assert found == wanted | {("memcpy", "get", False)}


def test_the_keys_are_medians_of_the_rows(figures: dict[str, Any]) -> None:
    of = {(row["path"], row["call"], row["busy_thread"]): row for row in figures["rows"]}
    remote = figures["remote_path"]
    assert figures["get_gbs"] == max(of[path, "get", False]["gbs"] for path in ("bulk", "grpc"))
    assert figures["get_gbs"] == of[remote, "get", False]["gbs"]
    assert figures["cpu_s_per_gb"] == of[remote, "get", False]["cpu_s_per_gb"]
    assert figures["gil_busy_ratio_shm"] == of["shared-memory", "get", True]["busy_ratio"]
    for row in figures["rows"]:
        assert row["best_gbs"] >= row["gbs"]


def test_many_clients_are_measured_on_every_path(figures: dict[str, Any]) -> None:
    found = [(row["path"], row["clients"]) for row in figures["scaling"]]
    assert found == [(path, count) for path in PATHS for count in (1, 2)]
    assert all(row["gbs"] > 0 for row in figures["scaling"])


def test_the_rows_say_where_and_when(written: Path, figures: dict[str, Any]) -> None:
    with (written / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    matches = 2 if HAS_REDIS else 1
    assert len(rows) == len(figures["rows"]) + len(figures["scaling"]) + matches
    for row in rows:
        assert row["bench"] == "store"
        assert row["note"] == "a test"
        assert row["date"] == figures["date"]
        assert row["cpu"] == figures["cpu"]


def test_the_tables_name_what_was_measured(written: Path) -> None:
    output = (written / "output.txt").read_text()
    for words in ("memcpy", "shared-memory", "bulk", "grpc", "many client", "Match of 2,048"):
        assert words in output


def test_a_store_that_runs_is_left_as_it_was(store: Any, tmp_path: Path) -> None:
    kept = random_blocks(2, 4096)
    with Client(store.target) as client:
        client.put(kept.pairs)
        progress = Quiet()
        found = run(Target(store.target, ClientConfig()), PLAN, "embedded", tmp_path, progress)
        assert progress.done == progress.announced
        assert not found.both_ends
        assert client.stats().blocks == 2
        assert client.match(kept.names).blocks == 2


def test_a_store_that_is_not_there_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = CliRunner().invoke(
        app, ["--timeout", "1", "bench", "store", "--quick", "--target", f"127.0.0.1:{port}"]
    )
    assert done.exit_code == 1
    assert f"127.0.0.1:{port}" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "one"], "no list of numbers"),
        (["--clients", "0"], "not between 1 and 64"),
        (["--clients", "65"], "not between 1 and 64"),
        (["--index", "etcd"], "not one of embedded, redis"),
        (["--blocks", "16384", "--block-bytes", "1048576"], "choose fewer --blocks"),
        (["--blocks", "0"], "--blocks"),
        (["--block-bytes", "100"], "--block-bytes"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_it_says_what_it_cannot_do(arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_no_redis_server_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("redis-server") is None
    done = bench("--index", "redis")
    assert done.exit_code == 2
    assert "needs redis-server" in done.output


def test_the_help_says_what_the_references_are() -> None:
    output = bench("--help").output
    for words in ("memcpy", "tcp", "redis", "--target", "spins"):
        assert words in output


@pytest.mark.parametrize("size", [4096, 65_536, 1 << 20])
def test_the_blocks_are_sound_and_about_as_large_as_asked_for(size: int) -> None:
    blocks = random_blocks(3, size)
    assert len(set(blocks.names)) == 3
    for name, payload in blocks.pairs:
        assert read_payload(payload).header.chain_hash == name
        assert 0.95 * size <= len(payload) <= size


def test_two_runs_do_not_share_blocks() -> None:
    assert set(random_blocks(2, 4096).names).isdisjoint(random_blocks(2, 4096).names)


class Scripted:
    """A mover whose other end is this process; `spoil` is what happens to what comes back."""

    name = "tcp"
    others: tuple[int, ...] = ()

    def __init__(self, payloads: Sequence[Buffer], spoil: Callable[[bytes], bytes] = bytes) -> None:
        self.payloads = [spoil(bytes(payload)) for payload in payloads]
        self.calls: list[str] = []
        self.threads: list[int] = []

    def clear(self) -> None:
        self.calls.append("clear")

    def put(self) -> None:
        self.calls.append("put")
        self.threads.append(threading.active_count())

    def get(self) -> Sequence[Buffer]:
        self.calls.append("get")
        return self.payloads

    def close(self) -> None:
        self.calls.append("close")


def test_a_path_that_returns_other_bytes_is_not_measured() -> None:
    blocks = random_blocks(2, 4096)
    warm_up(Scripted(blocks.payloads), blocks)
    with pytest.raises(WrongResult, match="not what was put"):
        warm_up(Scripted(blocks.payloads, lambda payload: payload[:-1] + b"\0"), blocks)


def test_idle_and_busy_rounds_take_turns() -> None:
    blocks = random_blocks(2, 4096)
    mover, progress = Scripted(blocks.payloads), Quiet()
    moved = measure([mover], blocks, 3, progress)
    assert mover.calls == ["clear", "put", "get"] * 6
    idle = min(mover.threads)
    assert mover.threads == [idle, idle + 1] * 3
    assert [len(transfer.seconds) for transfer in moved] == [3] * 5
    assert progress.done == progress.announced


def test_figures_are_medians_and_the_best_round() -> None:
    transfer = Transfer("bulk", "get", False, 10**9, seconds=[1.0, 4.0, 2.0], cpu_s=[0.5, 0.1, 0.3])
    assert (transfer.gbs, transfer.best_gbs, transfer.cpu_s_per_gb) == (0.5, 1.0, 0.3)


def test_a_remote_store_has_no_figures_of_shared_memory() -> None:
    def moved(mover: str, busy: bool, seconds: float) -> list[Transfer]:
        return [Transfer(mover, call, busy, 10**9, [seconds], [0.1]) for call in ("put", "get")]

    found = Found(10**9, both_ends=False)
    found.transfers = [Transfer("memcpy", "get", False, 10**9, [0.1], [0.1])]
    for mover, idle, busy in (("tcp", 0.25, 0.5), ("bulk", 0.5, 1.5), ("grpc", 1.0, 9.0)):
        found.transfers += moved(mover, False, idle) + moved(mover, True, busy)
    found.matches = {"embedded": Matching(1.0, 2.0)}
    said = as_json(found, PLAN, {})
    assert said["get_shm_gbs"] is None
    assert said["gil_busy_ratio_shm"] is None
    assert (said["remote_path"], said["get_gbs"], said["get_grpc_gbs"]) == ("bulk", 2.0, 1.0)
    assert said["gil_busy_ratio_remote"] == 3.0
    assert said["cpu_is_of"] == "the client"
    bulk = next(row for row in said["rows"] if row["path"] == "bulk" and row["call"] == "get")
    assert (bulk["to_tcp"], bulk["to_memcpy"]) == (0.5, 0.2)


def test_a_block_that_is_there_already_is_no_measurement(store: Any) -> None:
    blocks = random_blocks(2, 4096)
    mover = StoreMover("grpc", store.target, ClientConfig(paths=("grpc",)), blocks, ())
    try:
        mover.put()
        with pytest.raises(WrongResult, match="already_present"):
            mover.put()
        mover.clear()
        with pytest.raises(WrongResult, match="2 of 2 blocks are missing"):
            mover.get()
    finally:
        mover.close()


def test_the_raw_peer_returns_what_it_was_given(tmp_path: Path) -> None:
    blocks = random_blocks(3, 65_536)
    with TcpPeer(tmp_path, blocks.total_bytes) as peer:
        mover = TcpMover(peer, blocks)
        try:
            warm_up(mover, blocks)
        finally:
            mover.close()


def test_a_connection_that_ends_early_is_an_error() -> None:
    near, far = socket.socketpair()
    with near:
        far.sendall(b"123")
        far.close()
        with pytest.raises(ConnectionError, match="closed after 3 of 10"):
            tcp_peer.receive_all(near, memoryview(bytearray(10)))


def test_the_settings_survive_the_pipe_to_a_client_process() -> None:
    config = ClientConfig(tls_ca=Path("/ca.pem"), token="secret", paths=("bulk",))
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    sent = json.loads(json.dumps(values, default=str))
    assert config_of({**sent, "paths": ("bulk",)}) == config


@contextmanager
def working_process() -> Iterator[int]:
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def eventually(holds: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + 60
    while not (answer := holds()) and time.monotonic() < ends_at:
        time.sleep(0.02)
    return answer


def test_cpu_time_is_that_of_the_named_processes() -> None:
    with working_process() as pid:
        before = cpu_seconds([pid])
        assert eventually(lambda: cpu_seconds([pid]) > before + 0.05)
        alone = cpu_seconds([pid])
        assert cpu_seconds([pid, os.getpid()]) > max(alone, cpu_seconds([os.getpid()]))


def test_the_work_of_others_is_seen_and_ones_own_is_not() -> None:
    with working_process() as pid:
        others, ours = Foreign([os.getpid()]), Foreign([os.getpid(), pid])

        def is_told_apart() -> bool:
            seen, own = others.cores(), ours.cores()
            return seen is not None and own is not None and own + 0.1 < seen

        assert eventually(is_told_apart)


def test_a_spinning_thread_ends_with_its_block() -> None:
    before = threading.active_count()
    with spinning_thread():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_the_plan_refuses_what_no_machine_has() -> None:
    most = MAX_TOTAL_BYTES // PLAN.block_bytes
    assert replace(PLAN, blocks=most).total_bytes == MAX_TOTAL_BYTES
    with pytest.raises(ConfigError, match="the most is"):
        replace(PLAN, blocks=most + 1)

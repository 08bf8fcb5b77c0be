"""`packkv bench ttft`: a link of some bandwidth, and small real runs over it."""

from __future__ import annotations

import csv
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from typer.testing import CliRunner

from packkv.bench.store.processes import free_port
from packkv.bench.ttft.experiment import MEASURED, SIMULATED, Choice, Found, Row, run
from packkv.bench.ttft.first_token import FirstToken
from packkv.bench.ttft.pace import Pace
from packkv.bench.ttft.plan import Plan
from packkv.bench.ttft.report import as_json, csv_rows
from packkv.cli.app import app
from packkv.demo.processes import Child
from packkv.errors import ConfigError

MB = 10**6


class Clock:
    """Time that passes when somebody sleeps, and `late` more each time."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 0.0
        self.late = late

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late


@pytest.mark.parametrize("late", [0.0, 0.003])
def test_waiting_bytes_pass_at_the_bandwidth_however_late_a_thread_wakes(late: float) -> None:
    clock = Clock(late)
    pace = Pace(100 * MB, clock, clock.sleep)
    ready_at = 0.0
    for _ in range(1000):
        ready_at = pace.pass_through(100_000, ready_at)
    assert ready_at == pytest.approx(1.0)
    assert clock.now == pytest.approx(1.0, abs=0.004)


def test_a_link_that_rested_has_saved_nothing() -> None:
    clock = Clock()
    pace = Pace(10 * MB, clock, clock.sleep)
    pace.pass_through(MB, ready_at=0.0)
    clock.now = 60.0
    pace.pass_through(MB, ready_at=60.0)
    assert clock.now == pytest.approx(60.1)


def test_connections_share_the_bandwidth() -> None:
    clock = Clock()
    pace = Pace(10 * MB, clock, clock.sleep)
    assert pace.pass_through(MB, 0.0) == pytest.approx(0.1)
    assert pace.pass_through(MB, 0.0) == pytest.approx(0.2)


def received(connection: socket.socket) -> bytes:
    """All that comes until the other end has no more."""
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


@contextmanager
def echo_server() -> Iterator[int]:
    """Sends back what it gets, once it has all of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(received(connection))

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        # shutting it down wakes the thread, which closing alone does not
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


@contextmanager
def linked(port: int, bits_per_s: float, folder: Path) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "packkv.bench.ttft.shaped_link", str(bits_per_s)]
    with Child("link", [*command, "127.0.0.2", "127.0.0.1", str(port)], folder) as link:
        assert link.hear(60) == "listening"
        yield "127.0.0.2", port


def exchange(address: tuple[str, int], data: bytes) -> tuple[bytes, float]:
    """What comes back of `data`, and how long that took."""
    with closing(socket.create_connection(address, 60)) as connection:
        began = time.monotonic()
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return received(connection), time.monotonic() - began


def test_a_real_link_lets_bytes_through_unchanged_and_no_faster(tmp_path: Path) -> None:
    data = bytes(range(256)) * (4 * MB // 256)
    with echo_server() as port, linked(port, 160 * MB, tmp_path) as address:
        heard, took = exchange(address, data)
    assert heard == data
    # 4 MB there and 4 MB back at 20 MB/s; a busy machine only makes it longer
    assert took > 0.39


def test_a_link_to_nowhere_ends_the_connection(tmp_path: Path) -> None:
    with linked(free_port(), 1000 * MB, tmp_path) as address:
        assert exchange_or_end(address) == b""


def exchange_or_end(address: tuple[str, int]) -> bytes:
    try:
        return exchange(address, b"anybody?")[0]
    except OSError:
        return b""


def tiny_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=1024,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def tokens(count: int) -> torch.Tensor:
    return torch.randint(3, 300, (1, count), generator=torch.Generator().manual_seed(1))


class Quiet:
    """Progress that counts."""

    def __init__(self) -> None:
        self.announced = self.done = 0

    def begin(self, what: str, steps: int) -> None:
        self.announced += steps

    def step(self) -> None:
        self.done += 1


def test_the_choice_turns_with_the_link(tmp_path: Path) -> None:
    # 128 tokens of raw K and V are some 200 KB: 0.8 s over the slow link, which is far more than
    # this model takes to compute them, and far less than the imagined worker takes
    plan = Plan((64, 128), gbps=(0.002, None), prefill_rates=(10.0,), loads=1)
    progress = Quiet()
    rows, first_tokens = run(
        tiny_model(), tokens(160), plan, "raw", tmp_path, progress, weights_digest="w1"
    )
    assert progress.done == progress.announced
    assert [(row.prefix_tokens, row.gbps, row.choice.prefill) for row in rows] == [
        (length, gbps, kind)
        for gbps in (0.002, None)
        for length in (64, 128)
        for kind in (MEASURED, SIMULATED)
    ]
    assert {row.path for row in rows} == {"bulk"}
    of = {(row.prefix_tokens, row.gbps, row.choice.prefill): row for row in rows}
    slow, straight = of[128, 0.002, MEASURED], of[128, None, MEASURED]
    assert slow.moved_bytes == straight.moved_bytes > of[64, None, MEASURED].moved_bytes
    assert slow.load_s >= 0.95 * slow.moved_bytes / (0.002e9 / 8)
    assert straight.load_s < slow.load_s
    assert slow.choice.loaded_tokens == 0
    assert of[128, None, SIMULATED].choice == Choice(SIMULATED, 12.8, 128)
    assert [(one.prefix_tokens, one.question_tokens, one.gbps) for one in first_tokens] == [
        (128, 32, 0.002),
        (128, 32, None),
    ]
    # either way the bytes have to come
    assert min(first_tokens[0].whole_s, first_tokens[0].layerwise_s) >= 0.95 * slow.load_s / 2


def test_too_few_tokens_are_an_error(tmp_path: Path) -> None:
    plan = Plan((128,), gbps=(None,), prefill_rates=(), loads=1)
    with pytest.raises(ConfigError, match="159 tokens are too few for a prefix of 128"):
        run(tiny_model(), tokens(159), plan, "raw", tmp_path, Quiet(), weights_digest="w1")


def row(gbps: float | None, load_s: float, loaded: int, kind: str = MEASURED) -> Row:
    return Row(1024, gbps, 5 * MB, "bulk", load_s, Choice(kind, 2.0, loaded))


def test_the_json_has_the_agreed_keys_and_states_the_crossover() -> None:
    rows = [row(1, 0.06, 1024), row(1, 0.06, 448, SIMULATED), row(None, 0.02, 0)]
    first_tokens = [FirstToken(1024, 64, 1.0, 0.3, 0.2, 0.15)]
    figures = as_json(Found(rows, first_tokens), {"date": "2030-01-01", "texts": "a text"})
    assert [one["chosen"] for one in figures["rows"]] == ["load", "part", "recompute"]
    first = figures["rows"][0]
    assert (first["recompute_s"], first["load_s"]) == (2.0, 0.06)
    assert first["reached_gbps"] == pytest.approx(2 / 3)
    assert first["crossover_tokens_per_s"] == pytest.approx(1024 / 0.06)
    # 40 Mbit within the 1.98 s that computing takes longer than everything but the wire
    assert figures["crossover"] == [
        {"prefix_tokens": 1024, "gbps": pytest.approx(0.04 / 1.98)},
    ]
    flat = csv_rows(figures, {"date": "2030-01-01", "crossover": []})
    assert [one["bench"] for one in flat] == ["ttft"] * 3 + ["ttft first token"]
    assert (flat[-1]["whole_s"], flat[-1]["layerwise_s"]) == (0.3, 0.2)
    assert all(one["date"] == "2030-01-01" and "crossover" not in one for one in flat)


def test_a_prefix_that_no_link_makes_worth_loading_has_no_crossover() -> None:
    slow_store = row(None, 2.5, 0)
    assert as_json(Found([slow_store], []), {})["crossover"] == [
        {"prefix_tokens": 1024, "gbps": None}
    ]


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "ttft", *arguments])


def test_the_command_measures_the_model_of_the_demo(tmp_path: Path, smollm2: Path) -> None:
    path, results = tmp_path / "ttft.json", tmp_path / "results.csv"
    files = ["--json", str(path), "--csv", str(results)]
    done = bench("--quick", "--model", str(smollm2), "--codec", "raw", *files)
    assert done.exit_code == 0, done.output
    figures = json.loads(path.read_text("utf-8"))
    assert [one["gbps"] for one in figures["rows"]] == [1, 1, None, None]
    for one in figures["rows"]:
        assert one["recompute_s"] > 0
        assert one["load_s"] > 0
        assert one["chosen"] in ("load", "part", "recompute")
    # computing 128 tokens takes this model a hundred times as long as its blocks take
    assert figures["rows"][2]["chosen"] == "load"
    assert "this machine should load above" in done.output
    with results.open(newline="", encoding="utf-8") as file:
        assert [line["codec"] for line in csv.DictReader(file)] == [figures["codec"]] * 6
    for one in figures["first_token"]:
        assert min(one["question_s"], one["whole_s"], one["layerwise_s"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prefix-tokens", "many"], "'many' is no number"),
        (["--prefix-tokens", "100"], "not a multiple of 64"),
        (["--prefix-tokens", "0"], "not a multiple of 64"),
        (["--prefix-tokens", "1e9"], "not a multiple of 64 up to 131,072"),
        (["--prefix-tokens", "128,64"], "shortest first"),
        (["--prefix-tokens", ""], "one or more lengths"),
        (["--gbps", "fast"], "'fast' is no number"),
        (["--gbps", "0"], "not between 0.001 and 1000"),
        (["--gbps", "nan"], "not between 0.001 and 1000"),
        (["--gbps", ""], "names no bandwidth"),
        (["--prefill-rate", "-1"], "is not above 0"),
        (["--codec", "zip"], "zip"),
        (["--loads", "0"], "--loads"),
        (["--question-tokens", "64"], "not between 1 and 63"),
        (["--model", "/nowhere"], "no model at /nowhere"),
        (["--text", "/nowhere"], "/nowhere"),
    ],
)
def test_it_says_what_it_cannot_do(arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output

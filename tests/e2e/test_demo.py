"""`packkv demo` as a newcomer runs it: real processes, a real model, the figures it promises."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

COMMAND = [str(Path(sys.executable).with_name("packkv")), "demo"]
NUMBERS = {
    *("prefix_tokens", "matched_tokens", "ttft_cold_s", "ttft_warm_s", "ttft_speedup"),
    *("raw_bytes", "stored_bytes", "ratio", "wire_bytes", "kl_mean", "top1_agreement"),
    *("greedy_tokens", "greedy_equal_tokens"),
}
TEXTS = {"codec", "attention_backend", "index"}
CLUSTER = ["--nodes", "2", "--index", "redis"]
HAS_REDIS = shutil.which("redis-server") is not None

# two model loads and about 2,000 computed tokens, on a machine that may be busy with other things
pytestmark = pytest.mark.timeout(900)


def run_demo(*options: str, timeout_s: float = 800.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def figures(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, smollm2: Path
) -> dict[str, Any]:
    """The JSON of a run with the options that the test names."""
    file = tmp_path_factory.mktemp("demo") / "figures.json"
    options = ["--model", str(smollm2), "--json", str(file), *request.param]
    done = run_demo(*options, "--prefix-tokens", "640", "--new-tokens", "24")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tokens matched" in done.stdout
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def assert_contract(figures: dict[str, Any], codec: str) -> None:
    assert all(isinstance(figures[name], int | float) for name in NUMBERS)
    assert all(isinstance(figures[name], str) and figures[name] for name in TEXTS)
    assert figures["codec"].startswith(codec)
    assert figures["ratio"] == pytest.approx(figures["raw_bytes"] / figures["stored_bytes"])
    # every full block of the shared prefix, and not one byte more than those
    assert figures["prefix_tokens"] >= 640
    assert figures["matched_tokens"] == figures["prefix_tokens"] // 64 * 64
    assert figures["wire_bytes"] <= figures["stored_bytes"]
    cold_s, warm_s = figures["ttft_cold_s"], figures["ttft_warm_s"]
    assert min(cold_s, warm_s) > 0
    assert figures["ttft_speedup"] == pytest.approx(cold_s / warm_s)


@pytest.mark.parametrize("figures", [[]], ids=["default"], indirect=True)
def test_hybrid_moves_a_fraction_and_stays_close(figures: dict[str, Any]) -> None:
    assert_contract(figures, "hybrid")
    assert figures["ratio"] > 4.8
    assert figures["kl_mean"] < 0.03
    assert figures["top1_agreement"] > 0.8


@pytest.mark.skipif(not HAS_REDIS, reason="no redis-server: `make setup`")
@pytest.mark.parametrize("figures", [["--codec", "raw", *CLUSTER]], ids=["raw"], indirect=True)
def test_raw_gives_the_very_tokens_of_the_uncached_run_over_two_nodes(
    figures: dict[str, Any],
) -> None:
    assert_contract(figures, "raw")
    assert (figures["nodes"], figures["index"]) == (2, "redis")
    assert figures["greedy_equal_tokens"] == figures["greedy_tokens"] > 0
    assert figures["kl_mean"] < 1e-6
    assert figures["top1_agreement"] == 1


def test_without_redis_two_nodes_say_what_to_install(tmp_path: Path, smollm2: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--model", str(smollm2), "--nodes", "2", "--index", "redis"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "apt-get install redis-server" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--codec", "hybird"], "no codec is called 'hybird'"),
        (["--model", "/nowhere"], "no model at /nowhere"),
        (["--text", "/nowhere"], "cannot read the text /nowhere"),
        (["--nodes", "2"], "2 nodes find each other through Redis: --index redis"),
        (["--index", "memcached"], "there are: embedded, redis"),
        (["--nodes", "2", "--store", "127.0.0.1:1", "--index", "redis"], "a store that runs"),
    ],
    ids=["codec", "model", "text", "nodes", "index", "store"],
)
def test_a_wrong_option_is_one_sentence(options: list[str], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run_demo(*options, "--json", str(file), timeout_s=300)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert sentence in json.loads(file.read_text())["error"]


def test_a_text_that_is_too_short_is_refused(tmp_path: Path, smollm2: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Three words only.")
    done = run_demo("--text", str(text), "--model", str(smollm2), timeout_s=300)
    assert done.returncode == 1
    assert "too few for a shared prefix of 2,048" in done.stderr


@pytest.mark.parametrize(
    ("number", "options", "count"),
    [(signal.SIGINT, [], 2), (signal.SIGTERM, CLUSTER, 4)],
    ids=["SIGINT", "SIGTERM"],
)
def test_an_interrupted_demo_leaves_no_process_behind(
    number: int, options: list[str], count: int, smollm2: Path
) -> None:
    if options and not HAS_REDIS:
        pytest.skip("no redis-server: `make setup`")
    demo = subprocess.Popen(
        [*COMMAND, "--model", str(smollm2), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        children = wait_for_children(demo.pid, count)
        os.kill(demo.pid, number)
        assert demo.wait(60) != 0
        gone, alive = psutil.wait_procs(children, timeout=280)
        assert len(gone) == len(children)
        assert alive == []
    finally:
        demo.kill()
        demo.wait()


def wait_for_children(pid: int, count: int) -> list[psutil.Process]:
    """Everything up to the first worker, as soon as all of it runs."""
    ends_at = time.monotonic() + 280
    while time.monotonic() < ends_at:
        children = psutil.Process(pid).children()
        if len(children) >= count:
            return children
        time.sleep(0.05)
    raise AssertionError(f"the demo did not start {count} processes")

"""Conversations through a real router, to real workers whose stores share nothing."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from packkv.bench.codec.texts import TUNING_MODULES, read_module
from packkv.bench.route.experiment import measure
from packkv.bench.route.plan import Plan
from packkv.bench.route.report import as_json, csv_rows
from packkv.bench.route.trace import Trace
from packkv.cli import app
from packkv.client import Client, ClientConfig
from packkv.demo.processes import StoreProcess
from packkv.hashing import BLOCK_SIZE
from packkv.router.config import Policy
from tests.clients.conftest import StoreProcess as TokenStore
from tests.clients.router.conftest import RouterProcess
from tests.clients.worker.conftest import TENANTS, make_certificate

Wait = Callable[[Callable[[], object]], None]

# of the workers' tenant where a store asks for one, and of another
RED, BLUE = (ClientConfig(token=TENANTS[name]) for name in ("red", "blue"))
CREDENTIAL = ("--token", TENANTS["red"])


@pytest.fixture
def pairs(workers: Any, worker_store: StoreProcess, apart_store: TokenStore) -> tuple[str, str]:
    first, apart = workers["first"].ready(), workers["apart"].ready()
    return f"{first.url}={worker_store.address}", f"{apart.url}={apart_store.target}"


class Silent:
    """Nobody looks at the progress."""

    def begin(self, what: str, steps: int) -> None: ...

    def step(self) -> None: ...


def test_conversations_stay_where_their_prefix_is_and_compute_less(
    pairs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKKV_TOKEN", TENANTS["red"])
    # one after another, so that chance has no part in it but for the seed of who asks next
    plan = Plan(workers=2, conversations=3, turns=3, document_tokens=64, answer_tokens=8,
                at_once=1, seed=1)  # fmt: skip
    text = read_module(TUNING_MODULES[0]).content
    in_turn, by_prefix = (
        measure(policy, plan, Trace(plan, text), pairs, tmp_path, Silent())
        for policy in (Policy.ROUND_ROBIN, Policy.PREFIX)
    )
    assert sum(in_turn.requests) == sum(by_prefix.requests) == 9
    assert min(in_turn.requests + by_prefix.requests) > 0
    # each question but the first finds what was asked and answered before it
    assert by_prefix.cached_tokens > 0.9 * by_prefix.possible_tokens > 0
    assert 0 < in_turn.cached_tokens < 0.8 * by_prefix.cached_tokens
    figures = as_json([in_turn, by_prefix], plan, {"date": "today"})
    rows = csv_rows(figures)
    assert [row["policy"] for row in rows] == ["round-robin", "prefix"]
    assert [row["bench"] for row in rows] == ["route", "route"]
    assert figures["rows"][1]["hit_rate"] == by_prefix.cached_tokens / by_prefix.prompt_tokens


def test_a_router_that_has_seen_nothing_follows_what_stores_hold(
    pairs: tuple[str, str], workers: Any, apart_store: TokenStore, tmp_path: Path,
    eventually: Wait,
) -> None:  # fmt: skip
    options = [word for pair in pairs for word in ("--worker", pair)]
    prompt = "Of the ships that went north nobody speaks any more. " * 8
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
    with (
        Client(apart_store.target, config=RED) as store,
        Client(apart_store.target, config=BLUE) as stranger,
        httpx2.Client(timeout=60, trust_env=False) as http,
    ):
        before = store.stats().blocks
        http.post(f"{workers['apart'].url}/v1/completions", json=body)
        eventually(lambda: store.stats().blocks == before + len(prompt) // BLOCK_SIZE)
        named = http.post(f"{workers['first'].url}/packkv/blocks/completions", json=body).json()
        assert named["prompt_tokens"] == len(prompt)
        names = [bytes.fromhex(name) for name in named["blocks"]]
        # the last token is always computed, so a block that ends with it is of no use
        assert len(names) == (len(prompt) - 1) // BLOCK_SIZE
        assert store.match(names).blocks == len(names)
        # a worker's blocks are its tenant's
        assert stranger.match(names).blocks == 0
        with RouterProcess("follower", tmp_path, *options, first=CREDENTIAL) as router:
            followed = f'packkv_router_followed_blocks{{store="{apart_store.target}"}}'
            eventually(
                lambda: (
                    f"{followed} {float(store.stats().blocks)}"
                    in http.get(f"{router.url}/metrics").text
                )
            )
            places = [
                http.post(f"{router.url}/v1/completions", json=body).headers["x-packkv-worker"]
                for _ in range(3)
            ]
    assert places == ["1", "1", "1"]


def test_naming_blocks_refuses_what_asking_refuses(workers: Any) -> None:
    url = workers["first"].ready().url
    with httpx2.Client(timeout=60, trust_env=False) as http:
        wrong = http.post(f"{url}/packkv/blocks/completions", json={"model": "tiny"})
        other = http.post(
            f"{url}/packkv/blocks/chat/completions",
            json={"model": "huge", "messages": [{"role": "user", "content": "x"}]},
        )
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


def test_workers_say_what_their_blocks_are_and_the_doctor_compares_it(
    workers: Any, tmp_path: Path
) -> None:
    files = []
    for name in ("first", "apart"):
        file = tmp_path / f"{name}.json"
        file.write_bytes(workers[name].ready().get("/packkv/namespace"))
        files.append(str(file))
    compared = CliRunner().invoke(app, ["doctor", *files, "--json"])
    assert compared.exit_code == 0
    assert json.loads(compared.stdout)["equal"] is True


def test_a_router_before_workers_with_tls_and_keys_has_both_itself(
    narrow: Any, tmp_path: Path
) -> None:
    if narrow.ca is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = make_certificate(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text("sesame-one\nunknown-to-the-worker\n")
    options = ["--worker", narrow.url, "--workers-ca", narrow.ca, "--api-key-file", keys]
    options += ["--tls-cert", certificate, "--tls-key", key]
    body = {"model": "tiny", "prompt": "who goes there", "max_tokens": 1}
    trusted = ssl.create_default_context(cafile=str(certificate))
    with (
        RouterProcess("guarded", tmp_path, *map(str, options)) as router,
        httpx2.Client(base_url=router.url, verify=trusted, timeout=60, trust_env=False) as http,
    ):
        assert router.url.startswith("https://")
        assert http.get("/ready").status_code == 200

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return http.post("/v1/completions", json=body, headers=headers).status_code

        assert status("sesame-one") == 200
        assert status("unknown-to-the-router") == 401
        # the worker looks at it, too
        assert status("unknown-to-the-worker") == 401
        refused = http.get("/metrics")
        assert refused.status_code == 401

"""The services of docker-compose.yml with their own commands, as processes of this machine, and
requests that go on through every fault."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Completion

from packkv.client import Client
from packkv.demo.processes import Child
from tests.compose import ROOT, SERVICES, command, local_program, remapped
from tests.store.redis_servers import free_port

STORES = ("store-1", "store-2")
WORKERS = ("worker-cpu-1", "worker-cpu-2")
PORTS = {
    "redis": (6379,),
    **dict.fromkeys(STORES, (7437, 9437)),
    **dict.fromkeys(WORKERS, (8000,)),
    "router": (8080,),
}
READY = {
    "redis": "Ready to accept connections",
    **dict.fromkeys(STORES, "packkv-store listening on "),
    **dict.fromkeys(WORKERS, "packkv-worker ready: "),
    "router": "packkv-router listening on ",
}
# This machine by another address, where a process forwards: the cable between store-2 and the
# rest. A process that is stopped takes connections and lets nothing through.
FAR = "127.0.0.2"
CABLE = [sys.executable, "-m", "packkv.bench.ttft.shaped_link", "1e12", FAR, "127.0.0.1"]
# for a machine that is busy with other things
WAIT_S = 180.0
PROMPT = "The keeper of the light counts the ships that pass at night, and writes them down. " * 4
BLOCKS = len(PROMPT) // 64
SETTINGS: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0}

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server"),
]


def eventually(condition: Callable[[], object], what: str) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.05)


@dataclass
class Deployment:
    """The compose network on loopback: each port of each service has a free one here."""

    folder: Path
    model: Path
    ports: dict[tuple[str, int], int]
    running: dict[str, Child] = field(default_factory=dict)

    def address(self, service: str) -> str:
        return f"127.0.0.1:{self.ports[service, PORTS[service][0]]}"

    def lay_cable(self) -> None:
        """Between the nodes, and between store-2 and Redis."""
        ends = [str(self.ports[name, PORTS[name][0]]) for name in ("redis", *STORES)]
        self.running["cable"] = Child("cable", [*CABLE, *ends], self.folder)
        assert self.running["cable"].hear(WAIT_S) == "listening"

    def begin(self, service: str) -> None:
        """Runs the service's own command in its own environment."""
        environment = SERVICES[service].get("environment", {})
        words = ["env", *(f"{name}={value}" for name, value in environment.items())]
        words += [*remapped(command(service), self.places(service)), *self._options(service)]
        self.running[service] = Child(service, words, self.folder)

    def begin_all(self) -> None:
        """All at one time: most of it is importing libraries."""
        for service in PORTS:
            self.begin(service)
        for service in PORTS:
            self.ready(service)
        eventually(lambda: self.is_healthy("router"), "the router has found a worker")

    def ready(self, service: str) -> None:
        while READY[service] not in self.running[service].hear(WAIT_S):
            pass

    def kill(self, service: str) -> None:
        child = self.running.pop(service)
        child.process.kill()
        child.stop()

    def is_healthy(self, service: str) -> bool:
        """What the service's own health check says."""
        _, program, *words = SERVICES[service]["healthcheck"]["test"]
        places = self.places(service)
        # it looks at the container's own loopback, on the default port
        places |= {f"127.0.0.1:{port}": self._at(service, port) for port in PORTS[service]}
        words = remapped(words, places)
        if service == "redis":
            words = ["-p", self.address(service).split(":")[1], *words]
        if service in STORES:
            words += ["--target", self.address(service)]
        check = [local_program(program), *words]
        return (
            subprocess.run(check, capture_output=True, timeout=WAIT_S, check=False).returncode == 0
        )

    def places(self, service: str) -> dict[str, str]:
        """What stands for the network, the volumes and the sizes of a container."""
        named = {f"{name}:{port}": self._at(name, port) for name, port in self.ports}
        if service in STORES:
            # where other nodes find it; its own worker and clients need no cable
            named[f"{service}:7437"] = self._at(service, 7437, FAR)
        if service == "store-2":
            named["redis:6379"] = self._at("redis", 6379, FAR)
        return named | {
            **{f"0.0.0.0:{port}": self._at(service, port) for port in PORTS[service]},
            "/var/lib/packkv": str(self.folder / f"{service}.data"),
            "/run/packkv": str(self.folder),
            "1GiB": "64MiB",
        }

    def metrics(self, service: str) -> str:
        port = self.ports[service, PORTS[service][-1]]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as reply:
            return bytes(reply.read()).decode()

    def stop(self) -> None:
        for child in self.running.values():
            child.process.send_signal(signal.SIGTERM)
        for child in self.running.values():
            child.stop()
        self.running.clear()

    def _at(self, service: str, port: int, host: str = "127.0.0.1") -> str:
        return f"{host}:{self.ports[service, port]}"

    def _options(self, service: str) -> list[str]:
        if service == "redis":
            port = self.address("redis").split(":")[1]
            return ["--bind", "127.0.0.1", "--port", port, "--dir", str(self.folder)]
        if service in STORES:
            return ["--grace-seconds", "1"]
        if service == "router":
            return []
        # the other model and codec: what is compared to the token must not be rounded
        options = ["--model", str(self.model), "--model-name", "tiny", "--codec", "raw"]
        return [*options, "--grace-seconds", "1"]


@pytest.fixture(scope="module")
def deployment(tiny_model: Path) -> Iterator[Deployment]:
    # a Unix socket's path may have 107 bytes, which pytest's folders come near to
    folder = Path(tempfile.mkdtemp(prefix="pkv-"))
    ports = {(name, port): free_port() for name, inner in PORTS.items() for port in inner}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        environment = pytest.MonkeyPatch()
        stack.callback(environment.undo)
        environment.setenv("OMP_NUM_THREADS", "1")
        made = Deployment(folder, tiny_model, ports)
        stack.callback(made.stop)
        made.lay_cable()
        made.begin_all()
        yield made


def ask(client: OpenAI, prompt: str, salt: str = "") -> tuple[str, int]:
    """Text of the answer, and how many tokens of the prompt were not computed."""
    found: Completion = client.completions.create(
        prompt=prompt, extra_body={"cache_salt": salt}, **SETTINGS
    )
    assert found.usage is not None
    assert found.usage.prompt_tokens_details is not None
    return found.choices[0].text, found.usage.prompt_tokens_details.cached_tokens or 0


def client_of(deployment: Deployment, worker: str) -> OpenAI:
    url = f"http://{deployment.address(worker)}/v1"
    return OpenAI(base_url=url, api_key="none", max_retries=0, timeout=WAIT_S)


@dataclass
class Load:
    """Requests to one worker, one after another, each compared with the answer from before."""

    client: OpenAI
    prompts: list[str]
    texts: dict[str, str]
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self.over.is_set():
            prompt = self.prompts[self.answered % len(self.prompts)]
            # every other request is of somebody whose blocks nobody has: looked for and published
            salt = f"{id(self)}-{self.answered}" if self.answered % 2 else ""
            try:
                text, _ = ask(self.client, prompt, salt)
            except Exception as error:
                self.failures.append(repr(error))
                return
            if text != self.texts[prompt]:
                self.failures.append(f"{text!r} instead of {self.texts[prompt]!r}")
            self.answered += 1

    def goes_on(self) -> None:
        """Returns when some more requests, begun from now on, have been answered."""
        wanted = self.answered + 4
        eventually(lambda: self.answered >= wanted or self.failures, "requests are answered")
        assert self.failures == []

    def stop(self) -> None:
        self.over.set()
        self._thread.join(WAIT_S)
        self.client.close()


def held(deployment: Deployment, store: str) -> set[bytes]:
    """The blocks that a node holds itself."""
    found: list[bytes] = []
    with Client(deployment.address(store)) as client:
        while blocks := client.page(max(found, default=b"")):
            found += [block.chain_hash for block in blocks]
    return set(found)


def finds(deployment: Deployment, store: str, chain_hash: bytes) -> bool:
    """Whether a node finds a block, wherever it is; what is elsewhere stays there."""
    with Client(deployment.address(store)) as client:
        return client.match([chain_hash]).blocks == 1


def counter(deployment: Deployment, store: str, name: str) -> int:
    with Client(deployment.address(store)) as client:
        return client.stats().counters[name]


@pytest.mark.parametrize("service", PORTS)
def test_a_service_is_healthy_by_its_own_check(deployment: Deployment, service: str) -> None:
    if shutil.which(local_program(SERVICES[service]["healthcheck"]["test"][1])) is None:
        pytest.skip("the program of the check is not installed here")
    assert deployment.is_healthy(service)


def test_a_prefix_of_one_worker_is_found_by_the_other_through_both_stores(
    deployment: Deployment,
) -> None:
    with client_of(deployment, WORKERS[0]) as first, client_of(deployment, WORKERS[1]) as second:
        cold, computed = ask(first, PROMPT)
        assert computed == 0
        eventually(lambda: len(held(deployment, "store-1")) == BLOCKS, "the blocks are published")
        for chain_hash in held(deployment, "store-1"):
            eventually(partial(finds, deployment, "store-2", chain_hash), "Redis knows it")
        assert held(deployment, "store-2") == set()
        warm, cached = ask(second, PROMPT)
    assert (warm, cached) == (cold, 64 * BLOCKS)
    assert counter(deployment, "store-2", "packkv_pulled_blocks_total") == BLOCKS


def test_the_dashboard_asks_for_metrics_that_there_are(deployment: Deployment) -> None:
    exposed = "".join(deployment.metrics(name) for name in (STORES[0], WORKERS[0], "router"))
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/packkv.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"packkv_\w+", target["expr"])
    }
    # counters by reason show nothing before there is a reason
    late = {"packkv_worker_store_misses_total", "packkv_worker_store_dropped_blocks_total"}
    families = set(re.findall(r"^# TYPE (\w+) ", exposed, re.M))
    named = {re.sub(r"_bucket$", "", name) for name in asked}
    assert len(named) > 20
    assert named - families - late == set()
    assert {name.removesuffix("_total") for name in late} <= {
        name.removesuffix("_total") for name in families
    }


def test_requests_go_on_through_every_fault(deployment: Deployment) -> None:
    prompts = [f"{number} {PROMPT}" for number in range(3)]
    with client_of(deployment, WORKERS[0]) as client:
        cold = {prompt: ask(client, prompt) for prompt in prompts}
    assert [cached for _, cached in cold.values()] == [0] * len(prompts)
    texts = {prompt: text for prompt, (text, _) in cold.items()}
    asked = (*WORKERS, "router")
    loads = {name: Load(client_of(deployment, name), prompts, texts) for name in asked}

    def all_go_on() -> None:
        for load in loads.values():
            load.goes_on()

    try:
        all_go_on()
        pause_redis(deployment, all_go_on)
        restart_redis_empty(deployment, all_go_on)
        cut_a_store_off(deployment, all_go_on)
        kill_a_store(deployment, all_go_on)
        ended = loads.pop(WORKERS[0])
        ended.stop()
        assert ended.failures == []
        deployment.kill(WORKERS[0])
        all_go_on()
    finally:
        for load in loads.values():
            load.stop()
    assert [load.failures for load in loads.values()] == [[], []]
    find_everything_after_a_restart(deployment, texts)


def pause_redis(deployment: Deployment, all_go_on: Callable[[], None]) -> None:
    process = deployment.running["redis"].process
    process.send_signal(signal.SIGSTOP)
    try:
        all_go_on()
    finally:
        process.send_signal(signal.SIGCONT)
    all_go_on()


def restart_redis_empty(deployment: Deployment, all_go_on: Callable[[], None]) -> None:
    # of somebody who has only asked the first worker
    alone = (held(deployment, "store-1") - held(deployment, "store-2")).pop()
    eventually(lambda: finds(deployment, "store-2", alone), "Redis knows it")
    deployment.kill("redis")
    all_go_on()
    assert not finds(deployment, "store-2", alone)
    deployment.begin("redis")
    deployment.ready("redis")
    # what the stores hold is announced again
    eventually(lambda: finds(deployment, "store-2", alone), "Redis knows it again")
    all_go_on()


def cut_a_store_off(deployment: Deployment, all_go_on: Callable[[], None]) -> None:
    """From Redis and the other node; its worker and its clients still reach it."""
    own = {store: held(deployment, store) for store in STORES}
    only_2 = (own["store-2"] - own["store-1"]).pop()
    eventually(lambda: finds(deployment, "store-1", only_2), "Redis knows it")
    cable = deployment.running["cable"].process
    cable.send_signal(signal.SIGSTOP)
    try:
        all_go_on()
        assert not finds(deployment, "store-1", only_2)
        assert finds(deployment, "store-2", only_2)
    finally:
        cable.send_signal(signal.SIGCONT)
    eventually(lambda: finds(deployment, "store-1", only_2), "it is found again")
    all_go_on()


def find_everything_after_a_restart(deployment: Deployment, texts: dict[str, str]) -> None:
    """Everything ends and begins again, Redis with nothing: what is on disk is not computed."""
    deployment.stop()
    deployment.lay_cable()
    deployment.begin_all()
    for name in (*WORKERS, "router"):
        with client_of(deployment, name) as client:
            for prompt, text in texts.items():
                found, cached = ask(client, prompt)
                assert found == text
                assert cached == len(prompt) // 64 * 64


def kill_a_store(deployment: Deployment, all_go_on: Callable[[], None]) -> None:
    deployment.kill("store-1")
    all_go_on()
    deployment.begin("store-1")
    deployment.ready("store-1")
    assert counter(deployment, "store-1", "packkv_recovered_blocks_total") >= BLOCKS
    all_go_on()

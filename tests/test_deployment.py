"""docker-compose.yml, the Dockerfiles and deploy/, checked without Docker.

tests/e2e/test_compose.py runs the services' own commands.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose import BUILT, COMPOSE, ROOT, SERVICES, command, dockerfile

DOCKERFILES = sorted({dockerfile(name) for name in BUILT})
STORES = ["store-1", "store-2"]
CPU = ["worker-cpu-1", "worker-cpu-2"]
GPU = [f"worker-gpu-{number}" for number in range(4)]
PULLED = [name for name in SERVICES if name not in BUILT]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_service_is_known_here() -> None:
    ours = {*STORES, *CPU, *GPU, "router", "demo"}
    assert set(SERVICES) == {"redis", *ours, "prometheus", "grafana"}
    assert set(PULLED) == {"redis", "prometheus", "grafana"}


# services whose commands have the same options
@pytest.mark.parametrize("name", ["store-1", "worker-cpu-1", "worker-gpu-0", "router", "demo"])
def test_every_option_of_a_service_is_an_option_of_its_program(name: str) -> None:
    words = command(name)
    program = words[: 3 if words[1] == "-m" else 2]
    done = subprocess.run(
        [*program, "--help"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for option in (word for word in words[len(program) :] if word.startswith("--")):
        assert option in done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=short)
def test_an_image_gets_what_its_build_needs(path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    # hatchling refuses to build when one of these is missing
    assert {"pyproject.toml", "README.md", "LICENSE"} <= kept
    assert {"packkv_store", "protos", "kernels", "clients", "constraints.txt"} <= kept
    assert all((ROOT / name).exists() for name in kept)
    assert "-c constraints.txt" in path.read_text()


@pytest.mark.parametrize("path", DOCKERFILES, ids=short)
def test_an_image_has_a_pinned_base_and_its_own_user(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim-\w+$", text, re.M)
    assert "USER packkv" in text
    # one user everywhere: stores and workers have the sockets' directory as a volume
    assert "--uid 10001" in text
    assert "--gid 10001" in text


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_pinned_and_not_root(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] not in ("root", "0")
    assert name in PULLED or service["user"] == "10001:10001"
    assert name in BUILT or re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", service["image"])
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"].get("test") or name == "demo"
    # from this machine alone
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_published_ports_do_not_collide() -> None:
    ports = [port.rsplit(":", 1)[0] for one in SERVICES.values() for port in one.get("ports", [])]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("name", SERVICES)
def test_a_named_volume_is_declared_and_a_folder_is_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (ROOT / source).is_dir()
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", STORES)
def test_a_store_has_a_volume_of_its_own_and_the_sockets(name: str) -> None:
    service, words = SERVICES[name], command(name)
    own = name.replace("store", "blocks") + ":/var/lib/packkv"
    assert service["volumes"] == [own, "sockets:/run/packkv"]
    assert words[words.index("--data-dir") + 1] == "/var/lib/packkv"
    assert words[words.index("--shared-memory") + 1] == f"/run/packkv/{name}.sock"
    assert words[words.index("--advertise") + 1] == f"{name}:7437"


@pytest.mark.parametrize("name", [*CPU, *GPU, "demo"])
def test_a_worker_asks_a_store_that_it_waits_for_and_shares_its_sockets(name: str) -> None:
    service, words = SERVICES[name], command(name)
    store, port = words[words.index("--store") + 1].split(":")
    assert (store in STORES, port) == (True, "7437")
    assert service["depends_on"][store] == {"condition": "service_healthy"}
    assert "sockets:/run/packkv" in service["volumes"]


def test_the_router_follows_the_store_of_each_worker() -> None:
    words = command("router")
    routed = [words[at + 1] for at, word in enumerate(words) if word == "--worker"]
    asked = [command(name) for name in CPU]
    stores = [worker[worker.index("--store") + 1] for worker in asked]
    pairs = zip(CPU, stores, strict=True)
    assert routed == [f"http://{name}:8000={store}" for name, store in pairs]
    assert words[words.index("--listen") + 1] == "0.0.0.0:8080"
    assert SERVICES["router"]["profiles"] == ["route"]


@pytest.mark.parametrize("number", range(len(GPU)))
def test_a_gpu_worker_has_one_device_and_a_profile_for_it(number: int) -> None:
    service = SERVICES[GPU[number]]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": [str(number)], "capabilities": ["gpu"]}
    assert service["profiles"] == [f"gpu-{number}"]
    assert "--device cuda:0" in service["command"]


def test_prometheus_looks_at_every_service_that_tells() -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    found = {
        (name, lookup["port"])
        for job in config["scrape_configs"]
        for lookup in job["dns_sd_configs"]
        for name in lookup["names"]
    }
    workers = {(name, 8000) for name in [*CPU, *GPU]}
    assert found == {(name, 9437) for name in STORES} | workers | {("router", 8080)}
    assert all("--metrics-listen 0.0.0.0:9437" in SERVICES[name]["command"] for name in STORES)
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]


def test_grafana_is_provisioned_with_the_dashboard_and_its_source() -> None:
    folder = ROOT / "deploy/grafana"
    sources = yaml.safe_load((folder / "provisioning/datasources/prometheus.yml").read_text())
    (source,) = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    dashboards = yaml.safe_load((folder / "provisioning/dashboards/packkv.yml").read_text())
    (provider,) = dashboards["providers"]
    assert (
        f"./deploy/grafana/dashboards:{provider['options']['path']}:ro"
        in (SERVICES["grafana"]["volumes"])
    )
    dashboard = json.loads((folder / "dashboards/packkv.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}

"""docker-compose.yml and the Dockerfiles, checked without Docker: their own commands are run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from packkv.demo.processes import Child

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
BUILT = [name for name, service in SERVICES.items() if "build" in service]
DOCKERFILES = [ROOT / SERVICES[name]["build"]["dockerfile"] for name in BUILT]


def entrypoint(dockerfile: Path) -> list[str]:
    """ENTRYPOINT of an image, with this environment's programs in place of the image's."""
    found = re.search(r"^ENTRYPOINT (\[.*\])$", dockerfile.read_text(), re.M)
    assert found, f"{dockerfile} has no ENTRYPOINT"
    program, *rest = json.loads(found[1])
    here = {"python": sys.executable, "packkv": str(Path(sys.executable).with_name("packkv"))}
    return [here[program], *rest]


def command(service: str) -> list[str]:
    dockerfile = ROOT / SERVICES[service]["build"]["dockerfile"]
    return entrypoint(dockerfile) + shlex.split(SERVICES[service]["command"])


def test_every_service_is_known_here() -> None:
    assert set(SERVICES) == {"store", "workers", "redis"}


@pytest.mark.parametrize("name", BUILT)
def test_every_option_of_a_service_is_an_option_of_its_program(name: str) -> None:
    words = command(name)
    program = words[: 3 if words[1] == "-m" else 2]
    done = subprocess.run(
        [*program, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for option in (word for word in words[len(program) :] if word.startswith("--")):
        assert option in done.stdout


def test_the_store_starts_with_its_own_command(tmp_path: Path) -> None:
    # only what belongs to the container's machine is another here
    mine = {
        "0.0.0.0:7437": "127.0.0.1:0",
        "/var/lib/packkv": str(tmp_path / "data"),
        "/run/packkv/store.sock": str(tmp_path / "store.sock"),
        "2GiB": "16MiB",
    }
    words = [mine.get(word, word) for word in command("store")]
    with Child("store", words, tmp_path) as store:
        assert store.hear(60).startswith("packkv-store listening on 127.0.0.1:")
    assert store.process.returncode == 0


def test_redis_starts_with_its_own_command(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server here: `make setup` says how to get it")
    words = [*shlex.split(SERVICES["redis"]["command"]), "--port", "0"]
    words += ["--unixsocket", str(tmp_path / "redis.sock"), "--dir", str(tmp_path)]
    with Child("redis", words, tmp_path) as redis:
        while "ready to accept connections" not in redis.hear(30):
            pass
    assert redis.process.returncode == 0


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_image_gets_what_its_build_needs(path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    # hatchling refuses to build when one of these is missing
    assert {"pyproject.toml", "README.md", "LICENSE"} <= kept
    assert {"packkv_store", "protos", "kernels", "clients", "constraints.txt"} <= kept
    assert all((ROOT / name).exists() for name in kept)
    assert "-c constraints.txt" in path.read_text()


def test_a_named_volume_is_mounted_where_the_program_writes() -> None:
    assert set(COMPOSE["volumes"]) == {"blocks", "models", "sockets"}
    assert "blocks:/var/lib/packkv" in SERVICES["store"]["volumes"]
    assert "--data-dir /var/lib/packkv" in SERVICES["store"]["command"]
    assert "--shared-memory /run/packkv/store.sock" in SERVICES["store"]["command"]
    assert all("sockets:/run/packkv" in SERVICES[name]["volumes"] for name in BUILT)

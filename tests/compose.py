"""docker-compose.yml as the tests read it: its services, and their commands on this machine."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def _substituted(text: str) -> str:
    """As compose does where no variable is set: with the defaults."""
    return VARIABLE.sub(lambda found: found[2], text)


COMPOSE: dict[str, Any] = yaml.safe_load(_substituted((ROOT / "docker-compose.yml").read_text()))
SERVICES: dict[str, Any] = COMPOSE["services"]
BUILT = [name for name, service in SERVICES.items() if "build" in service]


def dockerfile(service: str) -> Path:
    path: str = SERVICES[service]["build"]["dockerfile"]
    return ROOT / path


def local_program(word: str) -> str:
    """This environment's program in place of the image's."""
    here = {"python": sys.executable, "packkv": str(Path(sys.executable).with_name("packkv"))}
    return here.get(word, word)


def command(service: str) -> list[str]:
    """What the container runs: our image's ENTRYPOINT, if it is ours, and the service's command."""
    words = shlex.split(SERVICES[service]["command"])
    if service not in BUILT:
        return words
    found = re.search(r"^ENTRYPOINT (\[.*\])$", dockerfile(service).read_text(), re.M)
    assert found, f"{dockerfile(service)} has no ENTRYPOINT"
    program, *rest = json.loads(found[1])
    return [local_program(program), *rest, *words]


def remapped(words: list[str], places: Mapping[str, str]) -> list[str]:
    """The words with what belongs to the compose network or a container exchanged."""
    changed = []
    for word in words:
        for old, new in places.items():
            word = word.replace(old, new)
        changed.append(word)
    return changed

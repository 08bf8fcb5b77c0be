"""What the documents say can be done, can be done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from packkv.cli import app
from packkv.client import Client
from packkv.demo.processes import StoreProcess

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [path.name for path in DOCUMENTS]
ADDRESS = "127.0.0.1:7437"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.timeout(1800)
def test_the_python_of_the_readme_runs_and_publishes(tmp_path: Path, smollm2: Path) -> None:
    examples = blocks(ROOT / "README.md", "python")
    assert examples
    with StoreProcess(tmp_path, ram_bytes="64MiB") as store:
        for code in examples:
            assert ADDRESS in code
            done = subprocess.run(
                [sys.executable, "-P", "-W", "error", "-c", code.replace(ADDRESS, store.address)],
                capture_output=True,
                text=True,
                timeout=1500,
                check=False,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
            assert done.returncode == 0, done.stderr
        with Client(store.address) as client:
            assert client.stats().blocks > 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_commands_and_targets_exist(path: Path) -> None:
    text = path.read_text()
    commands = set(typer.main.get_group(app).commands)
    assert set(re.findall(r"^(?:\$ )?(?:\.venv/bin/)?packkv ([a-z]+)", text, re.M)) <= commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text, re.M)) <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", path.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_the_map_of_the_code_names_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    places = ("packkv_store", "kernels/packkv_kernels", "clients/packkv")
    parts = {
        part.stem
        for place in places
        for part in (ROOT / place).iterdir()
        if part.suffix == ".py" or (part / "__init__.py").exists()
    }
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert parts - named - {"__init__", "__main__"} == set()

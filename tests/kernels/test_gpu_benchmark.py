"""benchmarks/gpu.py as far as it goes without a GPU: its arguments, its checks, its honesty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


def run(repository: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, repository / "benchmarks" / "gpu.py", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contexts", "100"], "context 100 is not a multiple of 64"),
        (["--groups", "17"], "are not all in 1 … 16"),
        (["--batches", "0"], "are not all positive"),
    ],
)
def test_arguments_are_checked(repository: Path, arguments: list[str], message: str) -> None:
    status, output = run(repository, *arguments)
    assert status == 2
    assert message in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would measure")
def test_without_a_gpu_it_times_nothing(repository: Path, tmp_path: Path) -> None:
    status, output = run(repository, "--json", str(tmp_path / "gpu.json"))
    assert status == 2
    assert "no GPU here" in output
    assert not (tmp_path / "gpu.json").exists()


def test_its_checks_pass_in_the_interpreter(repository: Path) -> None:
    status, output = run(repository, "--check-only", TRITON_INTERPRET="1")
    assert status == 0, output
    assert "every kernel agrees with the reference" in output

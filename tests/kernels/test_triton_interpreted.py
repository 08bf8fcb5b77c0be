"""Every Triton kernel against the reference, as Python: `TRITON_INTERPRET=1` needs no GPU.

Triton decides when a kernel is defined whether it is compiled or interpreted, so the checks run in
processes of their own, and this one can still compile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

CHECKS = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize(
    "checks",
    [("fast", "poisoned", "widened"), ("narrow", "unpacked"), ("left_aside", "windowed")],
    ids="-".join,
)
def test_attention_kernels_agree_with_the_reference(checks: tuple[str, ...]) -> None:
    run_interpreted("attention.py", *checks)


@pytest.mark.parametrize("check", ["hybrid", "hybrid_widths", "hybrid_raw", "packkv", "layers"])
def test_encode_kernels_write_the_references_bytes(check: str) -> None:
    run_interpreted("encode.py", check)


def test_kvcomp_kernels_write_and_read_the_hosts_bits() -> None:
    run_interpreted("kvcomp.py", "blocks", "extremes", "attention", "refused")


def test_cold_kernels_write_the_hosts_sections() -> None:
    run_interpreted("cold.py", "partial", "wild", "through", "refused")


@pytest.mark.soak
def test_cold_kernels_write_sections_of_every_kind(soak_rounds: int) -> None:
    if soak_rounds < 10:
        pytest.skip("a minute of the interpreter, for `make soak`")
    run_interpreted("cold.py", "together", "wide", "split", "tables")


def test_kernels_are_operators_that_graphs_can_hold() -> None:
    run_interpreted("operators.py", "schemas", "compiled", "growing")


def test_a_device_keeps_the_contract_of_the_paged_cache() -> None:
    # what a sequence does with its pages is the same on both, and slow here
    chosen = "device and not (token or window or leaves_tokens or forks)"
    warnings = ("-W", "ignore::DeprecationWarning", "-p", "no:cacheprovider")
    tests = CHECKS.parent / "test_paged_cache.py"
    run_python("-m", "pytest", "-q", *warnings, str(tests), "-k", chosen)


def run_interpreted(script: str, *checks: str) -> None:
    run_python("-W", "error::RuntimeWarning", str(CHECKS / script), *checks)


def run_python(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_machine_without_a_gpu_never_loads_triton() -> None:
    code = (
        "import sys, torch\n"
        "from packkv_kernels.backend import available_backends\n"
        "import packkv_kernels.testing, packkv_kernels.paged_cache\n"
        "mine = [name for name in sys.modules if 'packkv_kernels' in name and 'triton' in name]\n"
        "print(mine, 'triton' in available_backends() or torch.cuda.is_available())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=environment,
    )
    assert done.stdout.split()[0] == "[]"
    assert torch.cuda.is_available() or done.stdout.split()[1] == "False"

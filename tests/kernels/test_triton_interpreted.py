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
    "check", ["fast", "narrow", "left_aside", "unpacked", "poisoned", "plugged_in"]
)
def test_attention_kernels_agree_with_the_reference(check: str) -> None:
    run_interpreted("attention.py", check)


@pytest.mark.parametrize("check", ["hybrid", "hybrid_widths", "hybrid_raw", "packkv", "layers"])
def test_encode_kernels_write_the_references_bytes(check: str) -> None:
    run_interpreted("encode.py", check)


def run_interpreted(script: str, check: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", CHECKS / script, check],
        capture_output=True,
        text=True,
        timeout=200,
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
        timeout=60,
        check=True,
        env=environment,
    )
    assert done.stdout.split()[0] == "[]"
    assert torch.cuda.is_available() or done.stdout.split()[1] == "False"

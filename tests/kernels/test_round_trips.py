"""Every codec × backend × odd shape: back within the bound that docs/codec.md states."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent / "interpreted" / "round_trips.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("round_trips", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRIPS = loaded()


@pytest.mark.parametrize("shape", TRIPS.SHAPES, ids=str)
@pytest.mark.parametrize(
    ("codec", "backend"),
    [
        *((codec, "cpu") for codec in TRIPS.CODECS),
        # of KVComp the compiled code is the only one on a host
        *((codec, "reference") for codec in TRIPS.CODECS if codec != "kvcomp"),
    ],
)
def test_values_come_back_within_the_stated_bound(
    codec: str, backend: str, shape: tuple[int, int, int]
) -> None:
    TRIPS.check(codec, backend, shape)


@pytest.mark.parametrize("codec", TRIPS.CODECS)
def test_values_come_back_from_interpreted_kernels(codec: str) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", SCRIPT, codec],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr

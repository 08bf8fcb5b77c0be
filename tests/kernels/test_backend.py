"""Which backend runs, how work is spread, and what an import drags in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from packkv_kernels.backend import (
    available_backends,
    choose_backend,
    default_backend,
    run_parallel,
)
from packkv_kernels.errors import InvalidInput


def test_the_default_is_available_and_others_are_refused() -> None:
    device = torch.device("cpu")
    assert default_backend(device) in available_backends()
    assert choose_backend("reference", device) == "reference"
    with pytest.raises(InvalidInput, match="abacus"):
        choose_backend("abacus", device)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_every_piece_of_work_is_done_once(threads: int, count: int) -> None:
    torch.set_num_threads(threads)
    done: list[int] = []
    run_parallel(lambda start, stop: done.extend(range(start, stop)), count)
    assert sorted(done) == list(range(count))


def test_an_error_in_any_share_reaches_the_caller() -> None:
    torch.set_num_threads(2)

    def work(start: int, stop: int) -> None:
        if stop == 4:
            raise ValueError(f"{start} … {stop}")

    with pytest.raises(ValueError, match="2 … 4"):
        run_parallel(work, 4)


def test_work_is_still_spread_after_a_fork() -> None:
    torch.set_num_threads(2)
    run_parallel(lambda _start, _stop: None, 2)
    code = (
        "import os, torch\n"
        "from packkv_kernels.backend import run_parallel\n"
        "torch.set_num_threads(2)\n"
        "run_parallel(lambda a, b: None, 2)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    run_parallel(lambda a, b: None, 2)\n"
        "    os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert run_python(code) == "7"


def test_the_format_needs_no_torch_and_the_codec_no_zstandard() -> None:
    run_python("import sys; sys.modules['torch'] = None; import packkv_kernels.format")
    run_python("import sys; sys.modules['zstandard'] = None; import packkv_kernels.testing")


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

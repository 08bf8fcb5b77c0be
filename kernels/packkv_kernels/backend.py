"""Which implementation of the codec runs where, and how its work is spread over cores."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Final

import torch

from packkv_kernels.errors import InvalidInput

__all__ = ["available_backends", "choose_backend", "default_backend", "run_parallel"]

REFERENCE: Final = "reference"
CPU: Final = "cpu"
TRITON: Final = "triton"


def available_backends() -> tuple[str, ...]:
    """Names of the backends that run on this machine, the definition of right first."""
    on_gpu = find_spec("triton") is not None and (torch.cuda.is_available() or _interpreted())
    return (REFERENCE, CPU, TRITON) if on_gpu else (REFERENCE, CPU)


def default_backend(device: torch.device) -> str:
    """The fastest backend for tensors on `device`."""
    # torch calls ROCm devices cuda, too
    on_gpu = device.type == "cuda" and TRITON in available_backends()
    return TRITON if on_gpu else CPU


def choose_backend(name: str | None, device: torch.device) -> str:
    """`name`, or the default for the device.

    Raises:
        InvalidInput: no such backend on this machine.
    """
    choice = name or default_backend(device)
    if choice not in available_backends():
        raise InvalidInput(f"no backend {choice!r} here: {', '.join(available_backends())}")
    if choice == TRITON and device.type != "cuda" and not _interpreted():
        raise InvalidInput(f"backend {choice!r} takes tensors on a GPU, not on {device}")
    return choice


def _interpreted() -> bool:
    """Whether Triton runs kernels as Python, on tensors anywhere: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def run_parallel(work: Callable[[int, int], None], count: int, threads: int | None = None) -> None:
    """Runs work(start, stop) over 0 … count, split evenly over torch's number of threads, or over
    `threads` if that is less.

    `work` must release the GIL to gain anything. Numba's own parallel loops are not used: one of
    their threading layers ends the process when two Python threads enter at once.
    """
    most = torch.get_num_threads()
    threads = min(most if threads is None else min(threads, most), count)
    if threads <= 1:
        work(0, count)
        return
    bounds = [count * part // threads for part in range(threads + 1)]
    own, *others = pairwise(bounds)
    shares = [_pool(threads - 1).submit(work, *share) for share in others]
    work(*own)
    for share in shares:
        share.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="packkv-codec")


# threads do not survive a fork; the child starts its own
os.register_at_fork(after_in_child=_pool.cache_clear)

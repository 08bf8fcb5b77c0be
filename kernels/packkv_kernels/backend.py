"""Which implementation of the codec runs where, and how its work is spread over cores."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Final

import torch

from packkv_kernels.errors import InvalidInput

__all__ = ["available_backends", "choose_backend", "default_backend", "run_parallel"]

REFERENCE: Final = "reference"
CPU: Final = "cpu"


def available_backends() -> tuple[str, ...]:
    """Names of the backends that run on this machine, the definition of right first."""
    return (REFERENCE, CPU)


def default_backend(device: torch.device) -> str:
    """The fastest backend for tensors on `device`."""
    return CPU


def choose_backend(name: str | None, device: torch.device) -> str:
    """`name`, or the default for the device.

    Raises:
        InvalidInput: no such backend on this machine.
    """
    choice = name or default_backend(device)
    if choice not in available_backends():
        raise InvalidInput(f"no backend {choice!r} here: {', '.join(available_backends())}")
    return choice


def run_parallel(work: Callable[[int, int], None], count: int) -> None:
    """Runs work(start, stop) over 0 … count, split evenly over torch's number of threads.

    `work` must release the GIL to gain anything. Numba's own parallel loops are not used: one of
    their threading layers ends the process when two Python threads enter at once.
    """
    threads = min(torch.get_num_threads(), count)
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

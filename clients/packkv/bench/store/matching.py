"""How long a Match of a long prompt takes, as a worker makes it: with a lease."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from packkv.bench.store.blocks import Blocks
from packkv.bench.store.movers import WrongResult
from packkv.bench.store.transfers import Progress
from packkv.client import Client, PutStatus

_WARM_UP = 20
_LEASE_MS = 10_000
# An index of many nodes hears of blocks after their Put was answered: how long that may take.
_KNOWN_S = 60.0
_LOOK_S = 0.01


@dataclass(frozen=True)
class Matching:
    """Milliseconds of a Match, of all that were timed."""

    p50_ms: float
    p99_ms: float


def put_small(holder: Client, blocks: Blocks) -> None:
    """Blocks to be matched; how large they are does not matter to a Match."""
    for result in holder.put(blocks.pairs):
        if result.status is not PutStatus.STORED:
            raise WrongResult(f"a small block was {result.status}: {result.reason}")


def wait_until_known(asked: Client, blocks: Blocks) -> None:
    """Returns when a Match at this store finds all blocks.

    Raises:
        WrongResult: it never does.
    """
    ends_at = time.monotonic() + _KNOWN_S
    while (found := asked.match(blocks.names).blocks) != len(blocks.names):
        if time.monotonic() > ends_at:
            raise WrongResult(f"{found} of {len(blocks.names)} blocks are known after {_KNOWN_S} s")
        time.sleep(_LOOK_S)


def measure_matches(asked: Client, blocks: Blocks, looks: int, progress: Progress) -> Matching:
    """Matches all blocks again and again, at one store; releases are not in the time."""
    seconds = []
    for _ in range(_WARM_UP + looks):
        began = time.perf_counter()
        match = asked.match(blocks.names, lease_ms=_LEASE_MS)
        seconds.append(time.perf_counter() - began)
        if match.blocks != len(blocks.names):
            raise WrongResult(f"Match found {match.blocks} of {len(blocks.names)} blocks")
        asked.release(match.lease_id)
        progress.step()
    p50, p99 = np.quantile(seconds[_WARM_UP:], (0.5, 0.99))
    return Matching(1000 * float(p50), 1000 * float(p99))


def steps(looks: int) -> int:
    """How often `measure_matches` tells of a step."""
    return _WARM_UP + looks

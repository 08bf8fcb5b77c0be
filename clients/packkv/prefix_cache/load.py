"""One load of a prefix: what it has so far, and what its caller gets in the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from packkv.client import Tier
from packkv.prefix_cache.arriving import ArrivingPrefix
from packkv.prefix_cache.flights import Flight
from packkv_kernels.format.payload import Payload

__all__ = ["Count", "FetchSpan", "Load", "LoadReport", "LoadedPrefix", "fitting"]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How a load went. `stopped_by` is why it has not all blocks asked for, as in `Counters`."""

    asked_blocks: int = 0
    matched_blocks: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0
    stopped_by: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedPrefix:
    """`num_tokens` tokens of a prompt, from where the load began: one verified payload a block.

    `arriving`, if there is one, has the blocks behind `payloads`, and counts among the tokens.
    """

    payloads: list[Payload]
    num_tokens: int
    report: LoadReport
    arriving: ArrivingPrefix | None = None


@dataclass(frozen=True, slots=True)
class FetchSpan:
    """Blocks that are fetched with one Get, and the flight that they are on."""

    flight: Flight
    chain_hashes: Sequence[bytes]
    lengths: Sequence[int]
    tiers: Sequence[Tier]
    lease_id: int


class Load:
    """One load while it runs: what it has, and how long it still may take."""

    def __init__(
        self, started_at: float, budget_s: float, first_block: int, root_hash: bytes
    ) -> None:
        self.started_at = started_at
        self.ends_at = started_at + budget_s
        self.first_block = first_block
        self.root_hash = root_hash
        self.layerwise = False
        self.payloads: list[Payload] = []
        self.arriving: ArrivingPrefix | None = None
        # its heads did not come: it was lost before anybody has seen it
        self.is_lost = False
        self.matched_blocks = 0
        self.shared_blocks = 0
        self.fetched_bytes = 0
        self.stopped_by: str | None = None
        # the span under way was not worth its time; it only measures whether the store got faster
        self.probing = False

    @property
    def blocks(self) -> int:
        """That it has or is about to have."""
        return len(self.payloads) + (0 if self.arriving is None else self.arriving.blocks)

    def count_bytes(self, received: int) -> None:
        self.fetched_bytes += received

    def left_s(self) -> float:
        return self.ends_at - time.monotonic()


class Count:
    """How many bytes have come."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, received: int) -> None:
        self.bytes += received


def fitting(lengths: Sequence[int], size: int) -> int:
    """How many lengths from the front fit into `size`; at least one."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > size and count:
            return count
    return len(lengths)

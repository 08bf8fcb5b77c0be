"""What blocks are worth to keep: the seconds of computing that each of their bytes saves."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from packkv_store.block import TAG_BYTES
from packkv_store.store.block_table import Block

# What is worth more than so many times the average, or less than that part of it, counts as that:
# nothing stays for ever because somebody says that it was dear.
MOST = 4.0
# Worths are told apart in steps of a half power of two: what one model computes is worth the same,
# whatever its blocks compress to.
STEPS = 2
# Of half-precision numbers the smallest; in units of it, their sums are exact.
UNIT_MS = 2.0**-24


class Moment(NamedTuple):
    """When a prefix is used, in seconds of the monotonic clock, and at which level of the order in
    which its tenant's blocks go for good."""

    at: float
    level: float


@dataclass(slots=True)
class Known:
    """The blocks of a tenant of which somebody has said what they took to compute."""

    units: int = 0
    size: int = 0


class Worth:
    """Compares blocks with the average of the tenant's blocks that are here.

    Blocks of which nobody has said what they took count as average.
    """

    def __init__(self) -> None:
        self._known: defaultdict[bytes, Known] = defaultdict(Known)

    def add(self, block: Block) -> None:
        if block.compute_ms:
            known = self._known[block.key[:TAG_BYTES]]
            known.units += int(block.compute_ms / UNIT_MS)
            known.size += block.length

    def remove(self, block: Block) -> None:
        if block.compute_ms:
            known = self._known[block.key[:TAG_BYTES]]
            known.units -= int(block.compute_ms / UNIT_MS)
            known.size -= block.length

    def of(self, prefix: Sequence[Block]) -> float:
        """How many times the average a byte of this prefix is worth, 1 / MOST to MOST.

        Its last block stands for it: that is the one which goes first.
        """
        last = prefix[-1] if prefix else None
        if last is None or not last.compute_ms:
            return 1.0
        known = self._known[last.key[:TAG_BYTES]]
        average = known.units * UNIT_MS / known.size if known.size else 0.0
        if not average:
            return 1.0
        return _in_steps(last.compute_ms / last.length / average)


def _in_steps(times: float) -> float:
    steps = round(math.log2(min(max(times, 1 / MOST), MOST)) * STEPS)
    return math.pow(2.0, steps / STEPS)

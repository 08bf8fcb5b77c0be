"""The contract of a tier: bytes in, bytes out, inside a capacity that is never exceeded."""

from typing import Protocol

from packkv_store.block import BlockKey, TierName
from packkv_store.tiers.extents import Extent


class Tier(Protocol):
    """Bytes in, bytes out; knows nothing of prefixes, leases or nodes.

    `reserve` and `free` belong to the event loop and never block. `write`, `read`, `erase` and
    `flush` may block and may run in any thread, on different extents at the same time.
    """

    @property
    def name(self) -> TierName: ...

    @property
    def capacity_bytes(self) -> int: ...

    @property
    def used_bytes(self) -> int: ...

    def reserve(self, length: int) -> Extent | None:
        """Room for `length` bytes, or None when no hole is that large."""

    def free(self, extent: Extent) -> None:
        """Gives back an extent that was reserved and holds no block, or no longer."""

    def write(self, key: BlockKey, extent: Extent, payload: memoryview, stored_at: float) -> None:
        """Makes `payload` the block at `extent`: all of it or, after a crash, nothing of it.

        Raises TierFailure, after which the extent holds no block.
        """

    def read(self, extent: Extent, start: int, into: memoryview) -> None:
        """Fills `into` from byte `start` of the block at `extent`, unverified. TierFailure."""

    def erase(self, extent: Extent) -> None:
        """The extent holds no block from now on, also after a restart. Raises TierFailure."""

    def flush(self) -> None:
        """Returns when every block written so far would survive a power cut. TierFailure."""

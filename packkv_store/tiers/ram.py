"""The RAM tier: one arena, mapped and faulted once, never grown, no allocation per block."""

import mmap
import os
from contextlib import suppress

from packkv_store.block import BlockKey, TierName
from packkv_store.tiers.extents import Extent, Extents


class RamTier:
    """Blocks in one shared-memory arena. `fd` can be handed to a process on the same host."""

    name = TierName.RAM

    def __init__(self, capacity: int) -> None:
        self._extents = Extents(capacity)
        self.fd, self._arena = _arena(self._extents.capacity)
        self._view = memoryview(self._arena)

    @property
    def capacity_bytes(self) -> int:
        return self._extents.capacity

    @property
    def used_bytes(self) -> int:
        return self._extents.used

    def view(self, extent: Extent, length: int) -> memoryview:
        """The bytes themselves: valid for as long as the extent is not freed."""
        return self._view[extent.offset : extent.offset + length]

    def reserve(self, length: int) -> Extent | None:
        return self._extents.take(length)

    def free(self, extent: Extent) -> None:
        self._extents.give(extent)

    def write(self, key: BlockKey, extent: Extent, payload: memoryview, stored_at: float) -> None:
        self.view(extent, len(payload))[:] = payload

    def read(self, extent: Extent, start: int, into: memoryview) -> None:
        into[:] = self.view(extent, start + len(into))[start:]

    def erase(self, extent: Extent) -> None:
        """Nothing of the arena outlives the process."""

    def flush(self) -> None:
        """Nothing of the arena outlives the process."""

    def close(self) -> None:
        """Unmaps the arena, or leaves that to the last view that is still in use."""
        with suppress(BufferError):
            self._view.release()
            self._arena.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _arena(capacity: int) -> tuple[int, mmap.mmap]:
    # faulted here, once: fresh memory is touched at a tenth of the speed of warm memory
    if not hasattr(os, "memfd_create"):
        return -1, mmap.mmap(-1, capacity)
    fd = os.memfd_create("packkv-arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, capacity)
    return fd, mmap.mmap(fd, capacity, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)

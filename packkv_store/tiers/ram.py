"""The RAM tier of a tenant: one arena, mapped and faulted once, never grown, no allocation per
block."""

import fcntl
import mmap
import os
from contextlib import suppress

from packkv_store.block import BlockKey, TierName
from packkv_store.tiers.extents import Extent, Extents

# Linux 5.1; the module fcntl knows the other seals alone.
F_SEAL_FUTURE_WRITE = 0x10


class RamTier:
    """Blocks in one shared-memory arena.

    `fd` can be handed to a process of the tenant on the same host: it can be mapped to read, and
    neither be written nor mapped writable nor change its size, whoever holds it. None where the
    system cannot promise that.
    """

    name = TierName.RAM

    def __init__(self, capacity: int) -> None:
        self._extents = Extents(capacity)
        self.fd, self._arena = _arena(self._extents.capacity)
        self._view = memoryview(self._arena or b"")

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
            if self._arena is not None:
                self._arena.close()
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def _arena(capacity: int) -> tuple[int | None, mmap.mmap | None]:
    if capacity == 0:
        return None, None
    if not hasattr(os, "memfd_create"):
        return None, mmap.mmap(-1, capacity)
    fd = os.memfd_create("packkv-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, capacity)
        # faulted here, once: fresh memory is touched at a tenth of the speed of warm memory
        arena = mmap.mmap(fd, capacity, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except BaseException:
        os.close(fd)
        raise
    if _seal(fd):
        return fd, arena
    os.close(fd)
    return None, arena


def _seal(fd: int) -> bool:
    """Leaves the one mapping that there is as the only way to write, for good."""
    # a descriptor that is merely opened to read would not do: its file can be opened again
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        return False
    return True

"""The file of payloads of a disk tier, read and written past the page cache where that is possible.

Direct transfers need whole pages in page-aligned memory, which arena extents are. The last page of
a payload goes through a scratch page. Other transfers, such as that of a head, use the page cache;
the kernel keeps both views the same.
"""

import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from packkv_store.tiers.extents import PAGE

# os.pwritev or os.preadv: descriptor, buffers, offset; answers the bytes moved
Transfer = Callable[[int, list[memoryview], int], int]


class BlockFile:
    """Bytes at offsets. Methods block and may run in any thread. They raise OSError."""

    def __init__(self, path: Path) -> None:
        self._cached = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._direct = _open_direct(path)
        self._own = threading.local()

    def write(self, offset: int, data: memoryview) -> None:
        """Writes all of `data`, and zeros to the end of its last page."""
        scratch = self._scratch()
        whole = len(data) // PAGE * PAGE
        tail = len(data) - whole
        scratch[:tail] = data[whole:]
        scratch[tail:] = bytes(PAGE - tail)
        parts = [data[:whole]] if whole else []
        self._transfer(os.pwritev, offset, data, parts + ([scratch] if tail else []))

    def read(self, offset: int, into: memoryview) -> None:
        """Fills `into`. Bytes beyond the end of the file are an error."""
        if offset % PAGE or len(into) < PAGE or not _is_aligned(into):
            _all(os.preadv, self._cached, self._cached, offset, [into])
            return
        scratch = self._scratch()
        whole = len(into) // PAGE * PAGE
        tail = len(into) - whole
        self._transfer(os.preadv, offset, into, [into[:whole]] + ([scratch] if tail else []))
        into[whole:] = scratch[:tail]

    def size(self) -> int:
        return os.fstat(self._cached).st_size

    def shorten(self, size: int) -> None:
        """Gives space beyond `size` back to the file system."""
        if self.size() > size:
            os.ftruncate(self._cached, size)

    def flush(self) -> None:
        os.fdatasync(self._cached)

    def close(self) -> None:
        os.close(self._cached)
        if self._direct is not None:
            os.close(self._direct)

    def _transfer(
        self, call: Transfer, offset: int, data: memoryview, parts: list[memoryview]
    ) -> None:
        direct = self._direct if _is_aligned(data) else None
        _all(call, self._cached if direct is None else direct, self._cached, offset, parts)

    def _scratch(self) -> memoryview:
        if not hasattr(self._own, "page"):
            self._own.page = memoryview(mmap.mmap(-1, PAGE))
        page: memoryview = self._own.page
        return page


def sync_directory(directory: Path) -> None:
    """The files of the directory are there after a power cut, not only their bytes."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _all(call: Transfer, fd: int, rest_fd: int, offset: int, parts: list[memoryview]) -> None:
    while any(parts):
        done = call(fd, parts, offset)
        if done == 0:
            raise OSError(errno.EIO, f"the file ends at {offset}")
        offset += done
        while parts and done >= len(parts[0]):
            done -= len(parts[0])
            parts = parts[1:]
        if done:
            # a disk that is filling up takes what it can, not in whole pages; the rest says why
            fd, parts = rest_fd, [parts[0][done:], *parts[1:]]


def _is_aligned(data: memoryview) -> bool:
    return len(data) > 0 and np.frombuffer(data, np.uint8).ctypes.data % PAGE == 0


def _open_direct(path: Path) -> int | None:
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None  # this file system has no direct transfers

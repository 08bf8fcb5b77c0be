"""The memory of a store that its client may read: in place, or copied in one go."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from packkv.client.paths.buffers import PAGE, Buffers
from packkv.errors import ProtocolViolation

# numpy copies these as units, whatever is in them
_PAGES: Final = np.dtype(f"V{PAGE}")


class Arena:
    """A mapping that can only be read, of a file that cannot shrink.

    Takes the descriptor. Raises ProtocolViolation when the file is not as large as the server says
    or could be cut short, which would end this process when it reads there; OSError.
    """

    def __init__(self, fd: int, size: int) -> None:
        try:
            status = os.fstat(fd)
            if size < 1 or size % PAGE or status.st_size != size:
                raise ProtocolViolation(f"an arena of {size} bytes has a file of {status.st_size}")
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise ProtocolViolation("the file of the arena may shrink while it is read")
            self._file = (status.st_dev, status.st_ino)
            mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self.size = size
        # unmapped when the last view is gone
        self._view = memoryview(mapping)
        self._pages = np.frombuffer(mapping, _PAGES)
        self._numbers = np.arange(len(self._pages), dtype=np.intp).data

    def is_of(self, fd: int) -> bool:
        """Whether the descriptor is of the same memory."""
        status = os.fstat(fd)
        return (status.st_dev, status.st_ino) == self._file

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes in place, to be read alone. The caller has checked that they are here."""
        return self._view[offset : offset + length]

    def copy(
        self, offsets: Sequence[int], lengths: Sequence[int], buffers: Buffers
    ) -> list[memoryview]:
        """A copy of each run of bytes; all offsets are those of pages. The caller has checked that
        the runs, rounded up to whole pages, are here.

        Lets go of the interpreter lock once, whatever the number of runs.
        """
        numbers = np.empty(sum(-(-length // PAGE) for length in lengths), np.intp)
        into = buffers.take(len(numbers) * PAGE)
        # numpy would let go of the lock for arithmetic with so many numbers: memory views do not
        left, copies = numbers.data, []
        at = 0
        for offset, length in zip(offsets, lengths, strict=True):
            first, count = offset // PAGE, -(-length // PAGE)
            left[at : at + count] = self._numbers[first : first + count]
            copies.append(into[at * PAGE : at * PAGE + length])
            at += count
        # not "raise", which would copy by way of a buffer of its own
        np.take(self._pages, numbers, out=np.frombuffer(into, _PAGES), mode="clip")
        return copies

    def copy_extents(
        self, offsets: Sequence[int], lengths: Sequence[int], extents: npt.NDArray[np.uint32]
    ) -> list[memoryview]:
        """As `copy` with some bytes of each run, rows of run, offset in it and length; the others
        are zeros. Keeps the interpreter lock: these are few bytes, or come in many pieces."""
        starts = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).tolist()
        # zeros come straight from the system
        into = np.zeros(starts[-1], np.uint8).data
        for run, offset, length in extents.tolist():
            at, source = starts[run] + offset, offsets[run] + offset
            into[at : at + length] = self._view[source : source + length]
        return [into[starts[i] : starts[i + 1]] for i in range(len(lengths))]

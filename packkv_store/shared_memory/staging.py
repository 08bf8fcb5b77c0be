"""Memory that a client writes and this server reads, without trusting a byte or a size of it."""

import fcntl
import os
import stat

from packkv_protos.shared_memory.frames import MAX_STAGED_BYTES, FrameError, Staged
from packkv_store.errors import LimitExceeded, RequestError


class Staging:
    """A memory file of a client.

    It is read by system calls and never mapped: a hole, a file that shrinks or memory that the
    system cannot provide ends such a call with an error, where touching a mapping would end this
    process. Seals do not help: huge pages and holes can fail at any touch. That costs 2.7 times the
    CPU of a copy from a mapping, and is what no client being able to end the store is worth. What
    is copied is verified afterwards, where the client cannot reach it.

    Takes the descriptor, also when it raises FrameError: it is no memory file, may still shrink, or
    is smaller than it is said to be.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        try:
            _check_file(fd, size)
        except BaseException:
            os.close(fd)
            raise

    def check(self, block: Staged) -> None:
        """Raises LimitExceeded unless the block lies within the file."""
        end = block.offset + block.length
        if end > self._size:
            raise LimitExceeded("end of a block in the staged memory", end, self._size)

    def copy(self, place: memoryview, offset: int) -> None:
        """Fills the place from an offset of the file. Blocks for as long as copying takes; raises
        RequestError when the file cannot be read."""
        while place:
            try:
                got = os.preadv(self._fd, [place], offset)
            except OSError as error:
                raise RequestError("staged memory", error.strerror, "a readable file") from None
            if got == 0:
                raise RequestError("staged memory", f"at its end at {offset}", "all its bytes")
            place, offset = place[got:], offset + got

    def close(self) -> None:
        os.close(self._fd)


def _check_file(fd: int, size: int) -> None:
    if not 0 < size <= MAX_STAGED_BYTES:
        raise FrameError(f"STAGE has {size} bytes; allowed: 1 to {MAX_STAGED_BYTES}")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size < size:
        raise FrameError(f"STAGE has {size} bytes, its file {status.st_size} of {status.st_mode:o}")
    try:
        # only memory files have seals: reading one never waits for a disk or a peer
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & fcntl.F_SEAL_SHRINK:
        raise FrameError("STAGE needs a memory file that is sealed against shrinking")

"""Memory that payloads arrive in, used again: fresh memory is filled at a fraction of the speed."""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque

import numpy as np

PAGE = mmap.PAGESIZE
# Sizes are rounded up to eight a doubling, so that calls of nearly one size share their memory.
_STEPS = 8


class Buffers:
    """Takes back what was handed out when the last view of it is gone. Thread-safe.

    Args:
        keep_bytes: the most that lies idle; more is given back to the system.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._idle: list[mmap.mmap] = []
        # a last view can go anywhere, even inside the lock when garbage is collected there: all
        # that then happens is one append, which needs no lock
        self._returned: deque[mmap.mmap] = deque()

    def take(self, size: int) -> memoryview:
        """`size` writable bytes that begin at a page. What is in them is of no meaning."""
        with self._lock:
            memory = self._reuse(size)
        if memory is None:
            memory = _fresh(size)
        # every view of the buffer keeps this array alive, and nothing else does
        owner = np.frombuffer(memory, np.uint8)
        weakref.finalize(owner, self._returned.append, memory).atexit = False
        return owner.data[:size]

    def close(self) -> None:
        """Keeps nothing from now on; what is in use stays valid."""
        with self._lock:
            self._keep_bytes = 0
            self._collect()

    def _reuse(self, size: int) -> mmap.mmap | None:
        self._collect()
        # memory that is far too large would be missed by the call that needs it
        fitting = [one for one in self._idle if size <= len(one) <= 2 * size + PAGE]
        if not fitting:
            return None
        best = min(fitting, key=len)
        self._idle = [one for one in self._idle if one is not best]
        return best

    def _collect(self) -> None:
        while self._returned:
            self._idle.append(self._returned.popleft())
        while sum(map(len, self._idle)) > self._keep_bytes:
            self._idle.pop(0)


def _fresh(size: int) -> mmap.mmap:
    step = max(PAGE, 1 << max(0, size.bit_length() - 1) >> (_STEPS.bit_length() - 1))
    memory = mmap.mmap(-1, max(PAGE, -(-size // step) * step))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory

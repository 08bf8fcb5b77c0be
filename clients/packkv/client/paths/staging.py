"""Memory in which a client lays down what it publishes, for the server on this host to copy."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from typing import Final

# While the server copies one half the other is filled.
HALF_BYTES: Final = 16 << 20
# The most buffers that one system call takes.
_MAX_BUFFERS: Final = 1024


class Staging:
    """A memory file of two halves that can neither grow nor shrink. Raises OSError."""

    def __init__(self, half_bytes: int) -> None:
        self.half_bytes = half_bytes
        self.size = 2 * half_bytes
        self.fd = os.memfd_create("packkv-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError:
            self.close()
            raise

    def write(self, half: int, payloads: Sequence[memoryview]) -> list[int]:
        """Lays payloads, together at most a half, one after another; where each begins."""
        begin = half * self.half_bytes
        offsets = []
        at = begin
        for payload in payloads:
            offsets.append(at)
            at += len(payload)
        left = [payload for payload in payloads if payload]
        while left:
            written = os.pwritev(self.fd, left[:_MAX_BUFFERS], begin)
            begin += written
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]
        return offsets

    def close(self) -> None:
        os.close(self.fd)

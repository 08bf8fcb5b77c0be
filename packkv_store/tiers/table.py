"""The table of a disk tier: one checksummed row a block, each in a place of its own.

0 magic "PKVR"   4 zeros   8 block key (48)   56 offset u64   64 length u64
72 stored at f64   80 sequence u64   88 zeros   112 XXH3-128 of bytes 0 … 112
"""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from packkv_store.block import BlockKey

ROW_BYTES = 128
FIELDS = struct.Struct("<4s4x48sQQdQ24x")
MAGIC = b"PKVR"
CLEAR = bytes(ROW_BYTES)


class Row(NamedTuple):
    """A block on disk. Of two rows that claim the same bytes, the higher sequence is the later."""

    key: BlockKey
    offset: int
    length: int
    stored_at: float
    sequence: int


class Table:
    """Rows in a file. Placing rows is the event loop's; reading and writing them, which raises
    OSError, is any thread's.

    A row is a quarter of a disk sector, so no write of one can touch another.
    """

    def __init__(self, path: Path, max_rows: int) -> None:
        self.max_rows = max_rows
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._free: list[int] = []
        self._next = 0
        # a byte for each row: whether its place in the file may hold something
        self._is_written = bytearray()

    def place(self) -> int | None:
        """A free row, or None when all are taken."""
        if self._free:
            return self._free.pop()
        if self._next >= self.max_rows:
            return None
        self._next += 1
        self._is_written.append(False)
        return self._next - 1

    def free(self, number: int) -> None:
        self._free.append(number)

    def take(self, numbers: set[int]) -> None:
        """At the start: these rows are in use and all others are free."""
        self._next = max(numbers, default=-1) + 1
        self._free = [number for number in range(self._next) if number not in numbers]
        del self._is_written[self._next :]

    def write(self, number: int, row: Row) -> None:
        fields = FIELDS.pack(MAGIC, *row)
        self._put(number, fields + xxhash.xxh3_128_digest(fields))

    def clear(self, number: int) -> None:
        # on a full disk there may be no place even for zeros, and where nothing is they are there
        if self._is_written[number]:
            self._put(number, CLEAR)
            self._is_written[number] = False

    def rows(self) -> Iterator[tuple[int, Row | None]]:
        """At the start: every row that is not clear; None for one that is damaged or beyond the
        last allowed."""
        raw = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        self._is_written = bytearray([True]) * (len(raw) // ROW_BYTES)
        for number in range(len(raw) // ROW_BYTES):
            row = raw[number * ROW_BYTES : (number + 1) * ROW_BYTES]
            if row == CLEAR:
                continue
            fields, checksum = row[: FIELDS.size], row[FIELDS.size :]
            sound = xxhash.xxh3_128_digest(fields) == checksum and number < self.max_rows
            magic, key, *rest = FIELDS.unpack(fields)
            yield number, Row(key, *rest) if sound and magic == MAGIC else None

    def shorten(self) -> None:
        """Gives back the file's space beyond the rows in use. Called at the start."""
        os.ftruncate(self._fd, self._next * ROW_BYTES)

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _put(self, number: int, row: bytes) -> None:
        done = os.pwrite(self._fd, row, number * ROW_BYTES)
        # a call that fails has written nothing
        self._is_written[number] = True
        if done < ROW_BYTES:
            raise OSError(errno.ENOSPC, f"{done} of {ROW_BYTES} bytes of a row are written")

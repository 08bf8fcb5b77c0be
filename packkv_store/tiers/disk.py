"""The disk tier: payloads in one file, a table of what is in it in another.

    blocks   payloads at 4 KiB-aligned extents, read and written past the page cache
    table    128 bytes a block: name, place, age, checksum (tiers/table.py)

A block exists when its row does. Its row is written after its bytes and cleared before its extent
is used again, so a process that is killed at any point leaves whole blocks or none. After a power
cut rows and bytes may have reached the disk in any order: the head of every block is verified at
the start, all of a block whenever it is read.
"""

import errno
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packkv_store.block import BlockKey, PayloadHead, TierName, chain_hash_of, head_length_in
from packkv_store.clock import Clock
from packkv_store.errors import ConfigError, PayloadError, TierFailure
from packkv_store.tiers.block_file import BlockFile, sync_directory
from packkv_store.tiers.extents import PAGE, Extent, Extents, extent_size
from packkv_store.tiers.table import ROW_BYTES, Row, Table

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
RETRY_SECONDS = 30.0
# Rows are set aside for blocks of this size on average; blocks of real models are far larger.
MEAN_BLOCK_BYTES = 16 << 10
HEAD_READ_BYTES = 16 << 10


def disk_weight(length: int) -> int:
    """Bytes of the tier that a block takes; a small one takes a row that others could have had."""
    return max(extent_size(length), MEAN_BLOCK_BYTES)


class Kept(NamedTuple):
    """A block that was found on disk at the start."""

    key: BlockKey
    extent: Extent
    stored_at: float
    head: PayloadHead


class DiskTier:
    """Blocks that outlive the process. One process at a time may have a directory open."""

    name = TierName.DISK

    def __init__(self, directory: Path, disk_bytes: int, clock: Clock) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clock = clock
        self._lock = _lock(directory)
        # rows and extents share the capacity, so that both files together stay inside it
        max_rows = disk_bytes // (MEAN_BLOCK_BYTES + ROW_BYTES)
        self._table = Table(directory / "table", max_rows)
        self._space = disk_bytes - max_rows * ROW_BYTES
        self._extents = Extents(self._space)
        self._file = BlockFile(directory / "blocks")
        sync_directory(directory)
        self._rows: dict[int, int] = {}  # offset of an extent to its row
        self._sequence = itertools.count(1)
        self._full_until = 0.0

    @property
    def capacity_bytes(self) -> int:
        return self._extents.limit

    @property
    def used_bytes(self) -> int:
        return self._extents.used

    def recover(self) -> tuple[list[Kept], int]:
        """What is here from before, and how many rows had to be removed as unusable.

        Called once, before anything else. The head of every block is verified.
        """
        rows = dict(self._table.rows())
        kept: dict[int, Kept] = {}
        for number, row in _without_overlaps(rows):
            head = self._head(row)
            if head is not None:
                extent = Extent(row.offset, extent_size(row.length))
                kept[number] = Kept(row.key, extent, row.stored_at, head)
                self._rows[row.offset] = number
        for number in rows.keys() - kept.keys():
            self._table.clear(number)
        latest = max((row.sequence for row in rows.values() if row), default=0)
        self._sequence = itertools.count(latest + 1)
        self._table.take(set(kept))
        self._table.shorten()
        self._extents = Extents(self._space, (found.extent for found in kept.values()))
        self._file.shorten(max((sum(found.extent) for found in kept.values()), default=0))
        return list(kept.values()), len(rows) - len(kept)

    def reserve(self, length: int) -> Extent | None:
        if self._clock.monotonic() >= self._full_until:
            self._extents.limit = self._extents.capacity
        extent = self._extents.take(length)
        if extent is None:
            return None
        row = self._table.place()
        if row is None:
            self._extents.give(extent)
            return None
        self._rows[extent.offset] = row
        return extent

    def free(self, extent: Extent) -> None:
        self._table.free(self._rows.pop(extent.offset))
        self._extents.give(extent)

    def write(self, key: BlockKey, extent: Extent, payload: memoryview, stored_at: float) -> None:
        try:
            self._file.write(extent.offset, payload)
            # a count steps in one go, whichever thread asks
            row = Row(key, extent.offset, len(payload), stored_at, next(self._sequence))
            self._table.write(self._rows[extent.offset], row)
        except OSError as error:
            if error.errno in DISK_FULL:
                self._stay_inside_what_is_written()
            raise TierFailure("disk tier", error) from error

    def read(self, extent: Extent, start: int, into: memoryview) -> None:
        try:
            self._file.read(extent.offset + start, into)
        except OSError as error:
            raise TierFailure("disk tier", error) from error

    def erase(self, extent: Extent) -> None:
        try:
            self._table.clear(self._rows[extent.offset])
        except OSError as error:
            raise TierFailure("disk table", error) from error

    def flush(self) -> None:
        try:
            self._file.flush()
            self._table.flush()
        except OSError as error:
            raise TierFailure("disk tier", error) from error

    def close(self) -> None:
        """Lets go of the files and of the directory."""
        self._file.close()
        self._table.close()
        os.close(self._lock)

    def _stay_inside_what_is_written(self) -> None:
        # bytes that were written before have their place on the disk and can be written again;
        # whether others have freed some is asked once in a while
        written = self._file.size() // PAGE * PAGE
        # the time first: `reserve`, which the event loop calls meanwhile, lifts a limit without one
        self._full_until = self._clock.monotonic() + RETRY_SECONDS
        self._extents.limit = min(self._extents.limit, written)

    def _head(self, row: Row) -> PayloadHead | None:
        end = row.offset + extent_size(row.length)
        if row.offset % PAGE or end > self._space or row.length > self._file.size() - row.offset:
            return None
        raw = memoryview(bytearray(min(row.length, HEAD_READ_BYTES)))
        try:
            self._file.read(row.offset, raw)
            needed = head_length_in(raw)
            if needed > len(raw):
                raw = memoryview(bytearray(min(row.length, needed)))
                self._file.read(row.offset, raw)
            head = PayloadHead.read(raw)
        except (OSError, PayloadError):
            return None
        same = (head.chain_hash, head.payload_length) == (chain_hash_of(row.key), row.length)
        return head if same else None


def _without_overlaps(rows: dict[int, Row | None]) -> Iterator[tuple[int, Row]]:
    """Sound rows by offset. After a power cut two can claim the same bytes: the later one has
    them, since an extent is only used again when its block is gone."""
    kept: list[tuple[int, Row]] = []
    sound = [(number, row) for number, row in rows.items() if row is not None]
    for number, row in sorted(sound, key=lambda pair: pair[1].offset):
        while kept and row.offset < kept[-1][1].offset + extent_size(kept[-1][1].length):
            if kept[-1][1].sequence > row.sequence:
                break
            kept.pop()
        else:
            kept.append((number, row))
    yield from kept


def _lock(directory: Path) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ConfigError(f"data_dir {directory} is in use by another server") from None
    return fd

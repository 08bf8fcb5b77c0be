"""Lifetimes of namespaces that have one of their own, through restarts.

One file: XXH3-128 of the rest, then for each namespace its root hash (32 bytes) and seconds (f64).
"""

import logging
import math
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

import xxhash

from packkv_store.block import HASH_BYTES
from packkv_store.errors import ConfigError, LimitExceeded, TierFailure

log = logging.getLogger(__name__)

NEVER = math.inf
# A tick of the clock looks at each, and the file is written whole.
MAX_LIFETIMES = 4096
CHECKSUM_BYTES = 16
ROW = struct.Struct(f"<{HASH_BYTES}sd")


class Lifetimes:
    """Kept in memory and, given a path, in a checksummed file. Thread-safe.

    Raises ConfigError when there is a file that cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seconds: dict[bytes, float] = {}
        if path is not None and path.exists():
            self._load(path)

    def all(self) -> Mapping[bytes, float]:
        """Seconds by root hash. What is returned does not change any more."""
        return self._seconds

    def put(self, root_hash: bytes, seconds: float | None) -> None:
        """Sets the lifetime of a namespace, or with None forgets it.

        Raises LimitExceeded when there would be too many, TierFailure; nothing has changed then.
        """
        with self._lock:
            changed = dict(self._seconds)
            if seconds is None:
                changed.pop(root_hash, None)
            else:
                changed[root_hash] = seconds
            if len(changed) > MAX_LIFETIMES:
                raise LimitExceeded("number of lifetimes", len(changed), MAX_LIFETIMES)
            if self._path is not None:
                _save(self._path, changed)
            self._seconds = changed

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                found = _parse(file.read(CHECKSUM_BYTES + MAX_LIFETIMES * ROW.size + 1))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        if found is None:
            # a lifetime that is guessed would remove blocks, or keep them, against someone's word
            log.error(
                "%s is damaged and left out: every namespace has the lifetime of --ttl-seconds "
                "until `packkv lifetime` sets it again",
                path,
            )
            return
        self._seconds = found


def _parse(raw: bytes) -> dict[bytes, float] | None:
    """None unless it is whole: all of it, as it was written."""
    checksum, rows = raw[:CHECKSUM_BYTES], raw[CHECKSUM_BYTES:]
    if len(rows) % ROW.size or xxhash.xxh3_128_digest(rows) != checksum:
        return None
    found = dict(ROW.iter_unpack(rows))
    return found if all(seconds > 0 for seconds in found.values()) else None


def _save(path: Path, lifetimes: Mapping[bytes, float]) -> None:
    rows = b"".join(ROW.pack(*row) for row in lifetimes.items())
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            file.write(xxhash.xxh3_128_digest(rows) + rows)
            file.flush()
            os.fsync(file.fileno())
        # a rename is all or nothing: a crash leaves the lifetimes from before
        new.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise TierFailure("lifetimes", error) from error

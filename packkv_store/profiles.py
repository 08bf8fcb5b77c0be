"""Calibration profiles: the first one stored for a model is in force for all its workers."""

import os
import threading
from pathlib import Path

import xxhash

from packkv_store.errors import LimitExceeded, TierFailure

CHECKSUM_BYTES = 16


class Profiles:
    """Kept in memory and, given a directory, in one checksummed file each. Thread-safe."""

    def __init__(self, directory: Path | None, max_total_bytes: int) -> None:
        self._directory = directory
        self._max_total_bytes = max_total_bytes
        self._lock = threading.Lock()
        self._profiles: dict[bytes, bytes] = {}
        if directory is not None:
            directory.mkdir(exist_ok=True)
            for path in sorted(directory.glob("*.profile")):
                self._load(path)

    def names(self) -> list[bytes]:
        """Of all profiles in force."""
        with self._lock:
            return list(self._profiles)

    def get(self, key: bytes) -> bytes | None:
        return self._profiles.get(key)

    def put(self, key: bytes, profile: bytes) -> bytes:
        """Stores `profile` unless there is one; answers the one in force.

        Raises LimitExceeded when all profiles together would be too large, TierFailure.
        """
        with self._lock:
            known = self._profiles.get(key)
            if known is not None:
                return known
            total = sum(map(len, self._profiles.values())) + len(profile)
            if total > self._max_total_bytes:
                raise LimitExceeded("bytes of all profiles", total, self._max_total_bytes)
            if self._directory is not None:
                self._save(self._directory / f"{key.hex()}.profile", profile)
            self._profiles[key] = profile
            return profile

    def _load(self, path: Path) -> None:
        raw = path.read_bytes()
        checksum, profile = raw[:CHECKSUM_BYTES], raw[CHECKSUM_BYTES:]
        # a damaged one is forgotten: the next worker calibrates and stores it again
        if xxhash.xxh3_128_digest(profile) == checksum:
            self._profiles[bytes.fromhex(path.stem)] = profile

    def _save(self, path: Path, profile: bytes) -> None:
        new = path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                file.write(xxhash.xxh3_128_digest(profile) + profile)
                file.flush()
                os.fsync(file.fileno())
            # a rename is all or nothing: a crash leaves no half profile
            new.replace(path)
            directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise TierFailure("profiles", error) from error

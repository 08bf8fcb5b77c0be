"""Chain hashes that need not be published: in the store, or on their way."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable


class KnownBlocks:
    """A bounded set of chain hashes; the one not named for longest goes first. Thread-safe.

    It is a memory of what was, not a promise: a hash that a match does not find is forgotten, so a
    block that was evicted or cleared is published again.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, chain_hash: bytes) -> bool:
        with self._lock:
            return chain_hash in self._hashes

    def add(self, chain_hashes: Iterable[bytes]) -> None:
        with self._lock:
            for chain_hash in chain_hashes:
                self._hashes[chain_hash] = None
                self._hashes.move_to_end(chain_hash)
            while len(self._hashes) > self._capacity:
                self._hashes.popitem(last=False)

    def forget(self, chain_hashes: Iterable[bytes]) -> None:
        with self._lock:
            for chain_hash in chain_hashes:
                self._hashes.pop(chain_hash, None)

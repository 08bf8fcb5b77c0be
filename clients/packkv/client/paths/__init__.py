"""Ways to move payloads between a store and this process. All mean the same and differ in speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from packkv.client.config import ClientConfig
from packkv.client.messages import Fetched, Put, Span
from packkv.client.paths.buffers import Buffers
from packkv.errors import PackKVError

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a Get asks for.

    Args:
        chain_hashes: the blocks, 32 bytes each.
        layers, heads: the sections of each; None, or a count of 0, wants all of them.
        lease_id: a lease of Match that covers the blocks, or 0.
        max_bytes: the most that the answers may announce together.
        on_bytes: told how many bytes have come, each time some have, also of a call that fails.
    """

    chain_hashes: tuple[bytes, ...]
    layers: Span | None
    heads: Span | None
    lease_id: int
    max_bytes: int
    on_bytes: Callable[[int], object] | None

    @property
    def whole(self) -> bool:
        """Whether whole payloads are wanted, so that a gap is an error."""
        return not any(span.count for span in (self.layers, self.heads) if span is not None)

    def count(self, received: int) -> None:
        """Tell the caller that so many bytes more have come."""
        if self.on_bytes is not None:
            self.on_bytes(received)


@dataclass(frozen=True, slots=True)
class Offer:
    """The paths that a server has beside gRPC. `nonce` is what it says first on any of them."""

    shared_memory_socket: str
    bulk_port: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Opening:
    """What opening a path needs to know; it has `timeout_s` for it."""

    target: str
    offer: Offer
    config: ClientConfig
    buffers: Buffers
    timeout_s: float


class DataPath(Protocol):
    """One open way to a store. Thread-safe.

    A call ends with its result, with a `StoreError` that another path would give as well, or with
    `PathBroken` or `NotHere`. It ends by its deadline.
    """

    @property
    def name(self) -> str:
        """One of `ClientConfig.paths`."""

    def get(self, wanted: Wanted, deadline_s: float) -> list[Fetched]:
        """One answer for each hash, in order. What is handed out has been received, all of it."""

    def put(self, blocks: Iterable[tuple[bytes, Buffer]], deadline_s: float) -> list[Put]:
        """Publish the blocks, read from the iterable once; one result for each, in order."""

    def close(self) -> None:
        """Give everything back; calls under way end with PathBroken."""


@dataclass(frozen=True, slots=True)
class Views:
    """Payloads in the memory of the store, or copies where it cannot be seen. Nothing may be kept.

    Args:
        blocks: one answer for each hash, in order. `received` is what was asked for.
        held_until: when the lease is over, in seconds of the monotonic clock.
    """

    blocks: list[Fetched]
    held_until: float

    @property
    def are_held(self) -> bool:
        """Whether what has been read so far was what the store promised. To be asked afterwards:
        once it is not so, the memory may hold something else."""
        return time.monotonic() < self.held_until


class NotHere(PackKVError):
    """This path cannot make the call, although nothing is wrong with it: the next one can."""


class PathBroken(PackKVError):
    """The path itself failed, which says nothing of the store: another path may make the call.

    Args:
        is_untouched: nothing was sent and nothing taken from the caller's iterable, so that even a
            Put may be made again.
    """

    def __init__(self, message: str, *, is_untouched: bool) -> None:
        super().__init__(message)
        self.is_untouched = is_untouched

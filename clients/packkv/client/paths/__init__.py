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
class Arrived:
    """How much of a Get has come.

    Args:
        blocks: one answer for each hash, in order, the same list throughout an attempt. `data` is
            the memory of the whole payload, `received` what will have come in the end.
        ends: of each block, how many bytes from its first have come. What is behind is undefined.
    """

    blocks: list[Fetched]
    ends: list[int]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a Get asks for.

    Args:
        chain_hashes: the blocks, 32 bytes each.
        layers, heads: the sections of each; None, or a count of 0, wants all of them.
        lease_id: a lease of Match that covers the blocks, or 0.
        max_bytes: the most that the answers may announce together.
        on_bytes: told how many bytes have come, each time some have, also of a call that fails.
        on_layers: told what of whole payloads has come, each time some has, layer after layer of
            all blocks; anew from the beginning when the call is made again.
        groups: in how many groups of layers the bytes should come, where a path has the choice.
    """

    chain_hashes: tuple[bytes, ...]
    layers: Span | None
    heads: Span | None
    lease_id: int
    max_bytes: int
    on_bytes: Callable[[int], object] | None
    on_layers: Callable[[Arrived], object] | None = None
    groups: int = 1

    @property
    def whole(self) -> bool:
        """Whether whole payloads are wanted, so that a gap is an error."""
        return not any(span.count for span in (self.layers, self.heads) if span is not None)

    def count(self, received: int) -> None:
        """Tell the caller that so many bytes more have come."""
        if self.on_bytes is not None:
            self.on_bytes(received)

    def hand_on(self, arrived: Arrived) -> None:
        """Tell the caller what has come. Raises ReceiverFailed."""
        if self.on_layers is None:
            return
        try:
            self.on_layers(arrived)
        except Exception as error:
            raise ReceiverFailed(error) from error


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


class ReceiverFailed(Exception):
    """What `Wanted.on_layers` has raised: the caller's own trouble, not the path's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class PathBroken(PackKVError):
    """The path itself failed, which says nothing of the store: another path may make the call.

    Args:
        is_untouched: nothing was sent and nothing taken from the caller's iterable, so that even a
            Put may be made again.
    """

    def __init__(self, message: str, *, is_untouched: bool) -> None:
        super().__init__(message)
        self.is_untouched = is_untouched

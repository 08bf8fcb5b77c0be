"""A stream of changes: what a store has, told as it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol, Self

import grpc

from packkv.client.messages import Changes, changes_of
from packkv.errors import ClientClosed, ProtocolViolation, store_error
from packkv_protos.v1 import block_store_pb2 as pb


class Frames(Protocol):
    """A call of Watch under way."""

    def __next__(self) -> pb.WatchFrame: ...

    def cancel(self) -> object:
        """The stream ends."""


class Watch:
    """Iterates over `Changes`; the first one has `reset`. To be closed, from any thread.

    Waiting for the next one ends with a `StoreError` when the store goes away, or when the time
    of the watch is over (`DeadlineExceeded`). It is not opened again: whoever iterates opens
    another and starts over, because nobody has told what changed between the two.
    """

    def __init__(self, open_call: Callable[[], Frames], opening_s: float, target: str) -> None:
        """Returns when the store has begun.

        Raises:
            StoreError: it did not within `opening_s`.
            grpc.RpcError: as gRPC says it.
        """
        self._target = target
        self._is_closed = False
        self._sequence = 0
        self._call = open_call()
        # the deadline of a call is that of its whole stream, which may have none
        timer = threading.Timer(opening_s, self._call.cancel)
        timer.start()
        try:
            self._first: Changes | None = self._next()
        finally:
            timer.cancel()
        if not self._first.reset:
            self._call.cancel()
            raise ProtocolViolation("Watch: it does not begin with a reset")

    def __iter__(self) -> Iterator[Changes]:
        return self

    def __next__(self) -> Changes:
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            return self._next()
        except grpc.RpcError as failure:
            if self._is_closed:
                raise ClientClosed(f"Watch: the watch of {self._target} was closed") from failure
            raise store_error(failure, "Watch", self._target) from failure

    def close(self) -> None:
        """End the stream; whoever waits for the next change gets ClientClosed."""
        self._is_closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> Changes:
        try:
            frame = next(self._call)
            self._sequence += 1
            return changes_of(frame, self._sequence)
        except StopIteration:
            raise ProtocolViolation("Watch: the stream ended without an error") from None
        except ProtocolViolation:
            self._call.cancel()
            raise

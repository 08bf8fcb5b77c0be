"""One way to make a call: a deadline, retries inside it, the breaker, and our own errors."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import grpc

from packkv.client.breaker import CircuitBreaker
from packkv.client.config import ClientConfig
from packkv.errors import (
    CircuitOpen,
    ClientClosed,
    DeadlineExceeded,
    ProtocolViolation,
    StoreError,
    StoreFailure,
    StoreUnavailable,
    store_error,
)

T = TypeVar("T")

# Any other status is an answer of a living server, which must not open the circuit.
_FAILURES = (StoreUnavailable, DeadlineExceeded, StoreFailure, ProtocolViolation)


class Caller:
    """Runs calls against one target under one configuration. Thread-safe."""

    def __init__(
        self,
        target: str,
        config: ClientConfig,
        breaker: CircuitBreaker,
    ) -> None:
        self._target = target
        self._config = config
        self._breaker = breaker
        self._closed = threading.Event()

    def close(self) -> None:
        """Every call under way or made from now on ends with ClientClosed."""
        self._closed.set()

    def run(
        self,
        name: str,
        attempt: Callable[[float], T],
        *,
        deadline_s: float,
        repeatable: bool = True,
    ) -> T:
        """The result of `attempt(timeout_s)`, repeated while nobody answers and time is left.

        Raises:
            StoreError: what became of the last try.
            ClientClosed: the client was closed before or meanwhile.
        """
        if (wait_s := self._breaker.admit()) > 0:
            raise CircuitOpen(wait_s)
        try:
            result = self._repeat(name, attempt, deadline_s, self._config.retries * repeatable)
        except _FAILURES:
            self._breaker.failed()
            raise
        except StoreError:
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return result

    def _repeat(
        self, name: str, attempt: Callable[[float], T], deadline_s: float, retries: int
    ) -> T:
        ends_at = time.monotonic() + deadline_s
        pause_s = self._config.backoff_s
        for _ in range(retries):
            try:
                return self._try(name, attempt, ends_at - time.monotonic())
            except StoreUnavailable:
                # a random pause keeps a fleet of workers from knocking in step
                sleep_s = random.uniform(0, pause_s)
                if time.monotonic() + sleep_s >= ends_at:
                    raise
                self._closed.wait(sleep_s)
                pause_s *= 2
        return self._try(name, attempt, ends_at - time.monotonic())

    def send(self, start: Callable[[], grpc.Future[T]]) -> None:
        """Start a call whose outcome does not matter; a closed client or open circuit skips it."""
        if self._closed.is_set() or not self._breaker.is_closed:
            return
        # a call without a callback is cancelled when its future is collected
        with contextlib.suppress(ValueError):
            start().add_done_callback(lambda _: None)

    def _try(self, name: str, attempt: Callable[[float], T], timeout_s: float) -> T:
        if self._closed.is_set():
            raise ClientClosed(f"{name}: the client of {self._target} is closed")
        if timeout_s <= 0:
            raise DeadlineExceeded(f"{name} at {self._target}: no time left", status="")
        try:
            return attempt(timeout_s)
        except (grpc.RpcError, ValueError) as failure:
            # a channel closed by another thread shows as CANCELLED, or as a ValueError
            if self._closed.is_set():
                raise ClientClosed(f"{name}: the client of {self._target} was closed") from failure
            if isinstance(failure, grpc.RpcError):
                raise store_error(failure, name, self._target) from failure
            raise

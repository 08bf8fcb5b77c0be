"""Which path a call takes: the best that opens, the next when it breaks, the best again later."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final, TypeAlias

from packkv.client.config import ClientConfig
from packkv.client.messages import Fetched, Put
from packkv.client.paths import (
    Buffer,
    DataPath,
    NotHere,
    Offer,
    Opening,
    PathBroken,
    Views,
    Wanted,
)
from packkv.client.paths.buffers import Buffers
from packkv.client.paths.bulk import open_bulk
from packkv.client.paths.shared_memory import SharedMemory, open_shared_memory
from packkv.errors import StoreError, StoreUnavailable, Unsupported

_log = logging.getLogger("packkv.client")

# How long a path that cannot be had is left alone: doubles while nothing opens.
RETRY_S = 2.0
MAX_RETRY_S = 60.0
# A path that takes longer than this to open is not the faster one. Bounds the call that opens it.
OPEN_S = 0.5

# An open path, or None when the server does not offer it. Raises PathBroken when it cannot be had.
Opener: TypeAlias = Callable[[Opening], DataPath | None]
OPENERS: Final[Mapping[str, Opener]] = {
    "shared-memory": open_shared_memory,
    "bulk": open_bulk,
}


class PathChoice:
    """The paths of one client, opened with the first transfer. Thread-safe.

    Args:
        target: the server, as the client was given it.
        config: `paths` names those to try, best first.
        ask: the server's offer within so many seconds; raises `StoreError`, `Unsupported` when
            it knows no paths.
        grpc: the path that is always open.
        buffers: memory for what the other paths receive.
    """

    def __init__(
        self,
        target: str,
        config: ClientConfig,
        ask: Callable[[float], Offer],
        grpc: DataPath,
        buffers: Buffers,
    ) -> None:
        self._target = target
        self._config = config
        self._ask = ask
        self._grpc = grpc
        self._buffers = buffers
        # held while paths are opened, so that calls at one time ask once; never waited for longer
        # than a call has time
        self._opening = threading.Lock()
        # guards what follows, for moments
        self._lock = threading.Lock()
        self._open: dict[str, DataPath] = {}
        self._retry_at = float("-inf")
        self._pause_s = RETRY_S
        self._is_closed = False
        self._last: str | None = None
        self._counting = threading.Lock()
        self._transfers: Counter[str] = Counter()

    @property
    def name(self) -> str | None:
        """The path of the last transfer; None before the first."""
        return self._last

    @property
    def transfers(self) -> Mapping[str, int]:
        """How many calls each path has made, those that it broke in included."""
        return dict(self._transfers)

    def get(self, wanted: Wanted, deadline_s: float) -> list[Fetched]:
        """As `DataPath.get`, on the best path that does not break."""
        ends_at = time.monotonic() + deadline_s
        for path in self._usable(ends_at):
            with self._passing_on(path):
                return path.get(wanted, ends_at - time.monotonic())
        raise self._nowhere()

    @contextmanager
    def views(self, wanted: Wanted, lease_s: float, deadline_s: float) -> Iterator[Views]:
        """In place where a path can; a copy, which nothing overwrites, where none can."""
        with ExitStack() as stack:
            yield self._viewed(stack, wanted, lease_s, time.monotonic() + deadline_s)

    def put(self, blocks: Iterable[tuple[bytes, Buffer]], deadline_s: float) -> list[Put]:
        """As `DataPath.put`; another path is tried only while nothing was sent on one."""
        ends_at = time.monotonic() + deadline_s
        for path in self._usable(ends_at):
            with self._passing_on(path, only_untouched=True):
                return path.put(blocks, ends_at - time.monotonic())
        raise self._nowhere()

    def close(self) -> None:
        """Closes every path."""
        with self._lock:
            paths, self._open = list(self._open.values()), {}
            self._is_closed = True
            # nothing is opened any more
            self._retry_at = float("inf")
        for path in paths:
            path.close()
        self._buffers.close()

    def _viewed(self, stack: ExitStack, wanted: Wanted, lease_s: float, ends_at: float) -> Views:
        for path in self._usable(ends_at):
            left_s = ends_at - time.monotonic()
            with self._passing_on(path):
                if isinstance(path, SharedMemory):
                    return stack.enter_context(path.views(wanted, lease_s, left_s))
                return Views(path.get(wanted, left_s), held_until=float("inf"))
        raise self._nowhere()

    @contextmanager
    def _passing_on(self, path: DataPath, *, only_untouched: bool = False) -> Iterator[None]:
        """Ends normally when the next path may make the call. Raises StoreUnavailable."""
        try:
            yield
        except NotHere as reason:
            _log.debug("path %s to %s: %s", path.name, self._target, reason)
        except PathBroken as broken:
            self._drop(path, broken)
            if only_untouched and not broken.is_untouched:
                raise StoreUnavailable(str(broken), status="UNAVAILABLE") from broken

    def _usable(self, ends_at: float) -> Iterator[DataPath]:
        """Open paths, best first, each as it is needed."""
        self._refresh(ends_at)
        for name in self._config.paths:
            path = self._grpc if name == self._grpc.name else self._open.get(name)
            if path is not None:
                self._last = name
                with self._counting:
                    self._transfers[name] += 1
                yield path

    def _refresh(self, ends_at: float) -> None:
        if self._is_settled():
            return
        if not self._opening.acquire(timeout=max(0.0, ends_at - time.monotonic())):
            return
        try:
            if self._is_settled():
                return
            offer = self._offer(ends_at)
            if offer is not None:
                self._open_missing(offer, ends_at)
            with self._lock:
                if not self._is_closed:
                    self._retry_at = time.monotonic() + self._pause_s
                    self._pause_s = min(2 * self._pause_s, MAX_RETRY_S)
        finally:
            self._opening.release()

    def _open_missing(self, offer: Offer, ends_at: float) -> None:
        for name in self._missing():
            left_s = min(OPEN_S, max(0.0, ends_at - time.monotonic()))
            self._try(name, Opening(self._target, offer, self._config, self._buffers, left_s))

    def _is_settled(self) -> bool:
        is_pausing = time.monotonic() < self._retry_at
        # without any path there is nothing to lose by asking at once
        has_one = bool(self._open) or self._grpc.name in self._config.paths
        return not self._missing() or (is_pausing and (has_one or self._is_closed))

    def _missing(self) -> list[str]:
        return [name for name in self._config.paths if name in OPENERS and name not in self._open]

    def _offer(self, ends_at: float) -> Offer | None:
        try:
            return self._ask(max(0.0, ends_at - time.monotonic()))
        except Unsupported:
            # an older server: gRPC alone, and asked again later in case it is replaced
            return None

    def _try(self, name: str, opening: Opening) -> None:
        try:
            path = OPENERS[name](opening)
        except PathBroken as broken:
            _log.info("path %s to %s cannot be had: %s", name, self._target, broken)
            return
        except StoreError as error:
            _log.warning("path %s to %s is refused: %s", name, self._target, error)
            return
        if path is None:
            return
        with self._lock:
            if not self._is_closed:
                self._open[name] = path
                self._pause_s = RETRY_S
                return
        path.close()

    def _drop(self, path: DataPath, broken: PathBroken) -> None:
        _log.info("path %s to %s broke: %s", path.name, self._target, broken)
        with self._lock:
            if self._open.get(path.name) is path:
                del self._open[path.name]
                # a server that was started again offers it again
                self._retry_at = min(self._retry_at, time.monotonic() + RETRY_S)
        path.close()

    def _nowhere(self) -> StoreUnavailable:
        tried = ", ".join(self._config.paths)
        return StoreUnavailable(f"no path to {self._target}; tried {tried}", status="UNAVAILABLE")

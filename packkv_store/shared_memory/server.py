"""Takes connections on a Unix socket, as many as it may have."""

import asyncio
import logging
import os
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from packkv_store.config import AUTO, OFF, StoreConfig
from packkv_store.errors import ConfigError
from packkv_store.shared_memory.session import Session
from packkv_store.shared_memory.wire import Wire
from packkv_store.store import Store
from packkv_store.tenant import Access

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
STALL_SECONDS = 10.0
# When the system has no descriptor left for a new connection, it may have one a little later.
ACCEPT_PAUSE_SECONDS = 0.1


class SharedMemory:
    """Serves the shared-memory protocol: `await start()`, then `await stop()`. All but the threads
    that copy belongs to one event loop."""

    def __init__(self, store: Store, access: Access, config: StoreConfig, nonce: bytes) -> None:
        self._store = store
        self._access = access
        self._config = config
        self._nonce = nonce
        self._threads = ThreadPoolExecutor(config.io_threads, thread_name_prefix="packkv-memory")
        self._listener: socket.socket | None = None
        self._sessions: dict[asyncio.Task[None], Session] = {}
        self.path = ""

    async def start(self) -> None:
        """Serves from here on, where the path is on and the system can do it; elsewhere `path`
        stays empty. Raises ConfigError when the socket that was asked for cannot be made."""
        setting = self._config.shared_memory
        if setting == OFF or not self._can_share():
            return
        try:
            path = _private_path() if setting == AUTO else Path(setting).absolute()
            self._listener = _listen(path)
        except OSError as error:
            if setting != AUTO:
                raise ConfigError(f"shared_memory {setting}: {error.strerror or error}") from None
            log.warning("no shared memory: %s", error)
            return
        self.path = str(path)
        self._watch(self._listener)
        log.info("shared memory at %s", path)

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more calls, lets running ones end within the grace, closes every connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            with suppress(OSError):
                os.unlink(self.path)
        for task, session in self._sessions.items():
            if not session.is_busy:
                task.cancel()
        if self._sessions:
            _, late = await asyncio.wait(self._sessions, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._threads.shutdown(wait=True)

    def _can_share(self) -> bool:
        arenas = [self._store.arena(tenant) for tenant in self._access.tenants]
        return sys.platform == "linux" and any(arena.fd is not None for arena in arenas)

    def _watch(self, listener: socket.socket) -> None:
        # by a callback: of a task that is cancelled, a connection just taken would be lost unclosed
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("a connection to the shared memory cannot be taken: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_PAUSE_SECONDS, self._watch, listener)
            return
        if len(self._sessions) >= MAX_CONNECTIONS and not self._dismiss_one():
            sock.close()
            return
        wire = Wire(sock, STALL_SECONDS)
        session = Session(
            wire, self._store, self._access, self._threads, self._config.stream_seconds
        )
        task = asyncio.ensure_future(session.serve(self._nonce))
        self._sessions[task] = session
        task.add_done_callback(lambda task: self._ended(task, wire))

    def _ended(self, task: asyncio.Task[None], wire: Wire) -> None:
        self._sessions.pop(task)
        # a task that was cancelled before it began has closed nothing
        wire.close()

    def _dismiss_one(self) -> bool:
        """Closes the connection that has been idle for the longest time."""
        idle = [
            task
            for task, session in self._sessions.items()
            if not session.is_busy and not task.cancelling()
        ]
        if not idle:
            return False
        min(idle, key=lambda task: self._sessions[task].idle_since).cancel()
        return True


def _private_path() -> Path:
    """A new socket in a directory that this user alone can enter. Raises OSError."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    directory = base / f"packkv-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    # somebody else may have made it first
    if status.st_uid != os.getuid() or status.st_mode & 0o170777 != 0o040700:
        raise OSError(f"{directory} is not a directory of this user alone")
    for left in directory.glob("*.sock"):
        _remove_if_dead(left)
    return directory / f"{os.getpid()}-{token_hex(4)}.sock"


def _listen(path: Path) -> socket.socket:
    _remove_if_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(path))
        # its directory says who may come here, and the token who they are
        path.chmod(0o666)
        listener.listen(MAX_CONNECTIONS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_if_dead(path: Path) -> None:
    """Removes the socket of a server that was killed; one that is alive, or no socket, stays."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass

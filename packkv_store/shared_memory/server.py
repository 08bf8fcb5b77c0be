"""The Unix socket of the shared-memory path: where it is, and who can find it."""

import logging
import os
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from packkv_store.acceptor import MAX_CONNECTIONS, Acceptor
from packkv_store.config import AUTO, OFF, StoreConfig
from packkv_store.errors import ConfigError
from packkv_store.shared_memory.session import Session
from packkv_store.shared_memory.wire import Wire
from packkv_store.store import Store
from packkv_store.tenant import Access

log = logging.getLogger(__name__)

STALL_SECONDS = 10.0


class SharedMemory:
    """Serves the shared-memory protocol: `await start()`, then `await stop()`. All but the threads
    that copy belongs to one event loop."""

    def __init__(self, store: Store, access: Access, config: StoreConfig, nonce: bytes) -> None:
        self._store = store
        self._access = access
        self._config = config
        self._nonce = nonce
        self._threads = ThreadPoolExecutor(config.io_threads, thread_name_prefix="packkv-memory")
        self._acceptor = Acceptor("shared memory", self._open_session)
        self.path = ""

    async def start(self) -> None:
        """Serves from here on, where the path is on and the system can do it; elsewhere `path`
        stays empty. Raises ConfigError when the socket that was asked for cannot be made."""
        setting = self._config.shared_memory
        if setting == OFF or not self._can_share():
            return
        try:
            path = _private_path() if setting == AUTO else Path(setting).absolute()
            listener = _listen(path)
        except OSError as error:
            if setting != AUTO:
                raise ConfigError(f"shared_memory {setting}: {error.strerror or error}") from None
            log.warning("no shared memory: %s", error)
            return
        self.path = str(path)
        self._acceptor.start(listener)
        log.info("shared memory at %s", path)

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more calls, lets running ones end within the grace, closes every connection."""
        if self.path:
            with suppress(OSError):
                os.unlink(self.path)
        await self._acceptor.stop(grace_seconds)
        self._threads.shutdown(wait=True)

    def _can_share(self) -> bool:
        arenas = [self._store.arena(tenant) for tenant in self._access.tenants]
        return sys.platform == "linux" and any(arena.fd is not None for arena in arenas)

    def _open_session(self, sock: socket.socket) -> Session:
        return Session(
            Wire(sock, STALL_SECONDS),
            self._store,
            self._access,
            self._threads,
            self._nonce,
            self._config.stream_seconds,
        )


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

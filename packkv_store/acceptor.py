"""Takes connections, as many as it may have, and lets the one go that is missed the least."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
# When the system has no descriptor left for a new connection, it may have one a little later.
ACCEPT_PAUSE_SECONDS = 0.1


class Idle(NamedTuple):
    """A connection on which no call runs. Of two the lesser is missed less: a stranger first, then
    who has said nothing for longer."""

    is_known: bool
    since: float


class Session(Protocol):
    """One connection, from its first word to its end."""

    @property
    def idle(self) -> Idle | None:
        """None while a call runs."""

    async def serve(self) -> None:
        """Returns when the connection has ended, and has closed it, cancelled or not."""

    def leave(self) -> None:
        """No more calls: `serve` returns after the one that runs."""

    def close(self) -> None:
        """Closes the connection. May be called again, and before `serve`."""


class Acceptor:
    """Serves all connections of one listener. Belongs to one event loop.

    Args:
        name: of what the connections are for, in logs.
        open_session: raises OSError when the peer is gone already.
    """

    def __init__(self, name: str, open_session: Callable[[socket.socket], Session]) -> None:
        self._name = name
        self._open_session = open_session
        self._listener: socket.socket | None = None
        self._sessions: dict[Session, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def start(self, listener: socket.socket) -> None:
        """Takes connections from here on. The listener must not block; it is closed at the end."""
        self._listener = listener
        self._watch(listener)

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more calls, lets running ones end within the grace, closes every connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        running = set(self._sessions.values())
        for session, task in self._sessions.items():
            session.leave()
            if session.idle:
                task.cancel()
        if running:
            _, late = await asyncio.wait(running, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.wait(running)

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
            log.warning("a connection of the %s cannot be taken: %s", self._name, error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_PAUSE_SECONDS, self._watch, listener)
            return
        if len(self._sessions) >= MAX_CONNECTIONS and not self._dismiss_one():
            sock.close()
            return
        try:
            session = self._open_session(sock)
        except OSError:
            # the peer was gone before its connection has been looked at
            sock.close()
            return
        task = asyncio.ensure_future(session.serve())
        self._sessions[session] = task
        task.add_done_callback(lambda _: self._ended(session))

    def _ended(self, session: Session) -> None:
        self._sessions.pop(session)
        # a task that was cancelled before it began has closed nothing
        session.close()

    def _dismiss_one(self) -> bool:
        idle = [
            (session.idle, task)
            for session, task in self._sessions.items()
            if session.idle and not task.cancelling()
        ]
        if not idle:
            return False
        min(idle, key=lambda pair: pair[0])[1].cancel()
        return True

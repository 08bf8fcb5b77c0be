"""Asking: one request under way, between the engine's thread and the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.requests import Request

from packkv.worker.engine import Engine, Event, Failed, Piece, Task


class Asking:
    """The events of one task, and a client that may go away before the last of them.

    Call `close` at the end; it is harmless when repeated.
    """

    def __init__(self, engine: Engine, task: Task, request: Request) -> None:
        """
        Raises:
            ApiError: the engine takes no task now.
        """
        self._loop = asyncio.get_running_loop()
        # as many events as the answer has tokens, at most
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._engine = engine
        self._generation = engine.submit(task, self._emit)
        self._watch = self._loop.create_task(self._cancel_when_gone(request))

    async def next(self) -> Event:
        """The next event.

        Raises:
            ApiError: the answer ends here and is not complete.
        """
        event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        return event

    async def events(self) -> AsyncIterator[Event]:
        """All events; the last is `Ended`.

        Raises:
            ApiError: as `next`.
        """
        while True:
            event = await self.next()
            yield event
            if not isinstance(event, Piece):
                return

    def close(self) -> None:
        """Let go: what is still being computed is cancelled."""
        self._watch.cancel()
        self._engine.cancel(self._generation)

    def _emit(self, event: Event) -> None:
        # a loop that is closed has nobody left who could want it
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _cancel_when_gone(self, request: Request) -> None:
        # the body has been read: the next message is that the client has gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._engine.cancel(self._generation)

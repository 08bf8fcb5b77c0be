"""Where work runs that must not stop the event loop, or must end once it has begun."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Run(Protocol):
    """Calls a function that may block and waits for its result."""

    def __call__(self, call: Callable[..., Result], *args: object) -> Awaitable[Result]: ...


class Threads:
    """A pool of `count` threads. Work that has started is never abandoned."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="packkv-io")

    def __call__(self, call: Callable[..., Result], *args: object) -> Awaitable[Result]:
        return asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


async def inline(call: Callable[..., Result], *args: object) -> Result:
    """For tiers that never block."""
    return call(*args)


class Tasks:
    """Work that goes on to its end although the call that began it may be cancelled."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def settle(self) -> None:
        """Returns when nothing is running any more."""
        while self._running:
            await asyncio.wait(self._running)

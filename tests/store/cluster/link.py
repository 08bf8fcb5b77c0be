"""A network between two nodes that does what a test wants: passes so many bytes, waits, breaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from packkv_store.config import split_address
from tests.store.redis_servers import free_port


class Link:
    """Forwards connections to `target`. What comes back from there is let through as `allow` says;
    at first, all of it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.target = ""
        self.passed = 0
        self._allowed: float = float("inf")
        self._changed = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def allow(self, more: float) -> None:
        """Lets so many more bytes through."""
        async with self._changed:
            self._allowed = self.passed + more
            self._changed.notify_all()

    async def exhausted(self) -> None:
        """Returns when all that was allowed has passed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.passed >= self._allowed)

    def cut(self) -> None:
        """Ends every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ConnectionError):
            there, back = await asyncio.open_connection(*split_address(self.target))
            self._writers |= {writer, back}
            await asyncio.gather(self._pump(reader, back), self._meter(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _meter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 14):
            async with self._changed:
                await self._changed.wait_for(lambda: self.passed < self._allowed)
                self.passed += len(data)
                self._changed.notify_all()
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def linking() -> AsyncIterator[Link]:
    link = Link()
    server = await asyncio.start_server(link._serve, "127.0.0.1", link.port)
    try:
        yield link
    finally:
        link.cut()
        server.close()

"""A peer of the bulk path that says exactly what a test wants, on asyncio's own streams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Frame, Get, Kind
from packkv_store.app import App

WAIT_S = 60.0
GREETING_BYTES = frames.PREFIX.size + frames.MAX_BODY[Kind.GREETING]


@dataclass
class Peer:
    """One end of a connection to the bulk port of a server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readexactly(size)

    async def frame(self) -> Frame:
        kind, code, length = frames.read_prefix(await self.read(frames.PREFIX.size))
        return Frame(kind, code, memoryview(await self.read(length)))

    async def mark(self) -> int:
        (size,) = frames.MARK.unpack(await self.read(frames.MARK.size))
        return int(size)

    async def hello(self, token: str | None = None) -> Frame:
        """What the server says to the token."""
        await self.frame()
        await self.send(frames.pack_hello(token))
        return await self.frame()

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        try:
            async with asyncio.timeout(WAIT_S):
                return await self.reader.read()
        except ConnectionError:
            return b""

    async def get(self, hashes: list[bytes], groups: int = 1) -> tuple[frames.Found, bytes]:
        """The announcement of whole payloads, and all bytes that follow it."""
        await self.send(frames.pack_get(Get((0, 0), (0, 0), 1 << 40, groups, hashes)))
        reply = await self.frame()
        assert reply.kind is Kind.FOUND
        data = b""
        while (size := await self.mark()) != frames.RUNS_END:
            assert size != frames.RUNS_FAIL
            data += await self.read(size)
        return frames.read_found(reply.body), data


@asynccontextmanager
async def peer_of(app: App, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    port = app.bulk_port
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls, server_hostname=name, limit=1 << 16
    )
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()

"""Payloads of other nodes over their bulk port: straight into their places, a thread a transfer."""

import asyncio
import logging
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, TypeVar

from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import FrameError, Kind
from packkv_protos.bulk.wire import Wire
from packkv_store.block import ChainHash
from packkv_store.cluster import Landed, PeerFailure
from packkv_store.cluster.puller import MAX_STREAMS
from packkv_store.config import StoreConfig, split_address
from packkv_store.peers.bulk_landing import Landing

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# A port that cannot be had within this is not the faster way, and is left alone for a while.
CONNECT_SECONDS = 1.0
WITHOUT_SECONDS = 30.0
MAX_IDLE = 32
# All blocks' layers in so many groups: the finer, the earlier the first ones can be passed on.
GROUPS = 16


class Offer(NamedTuple):
    """Where a node serves the bulk path, 0: nowhere; and what it says there first."""

    port: int
    nonce: bytes


class BulkPull:
    """Connections to other nodes, each for the callers of one token; those that are idle are used
    again. A token goes only to who says the nonce that the node has told over gRPC, and that is
    spoken to only where `Channels` allows it."""

    def __init__(self, config: StoreConfig) -> None:
        self._tls = _tls_context(config)
        self._threads = ThreadPoolExecutor(MAX_STREAMS, thread_name_prefix="packkv-pull")
        self._idle: OrderedDict[tuple[str, str | None, int], Wire] = OrderedDict()
        self._number = 0
        self._without: dict[str, float] = {}

    async def fetch(
        self,
        address: str,
        token: str | None,
        ask: Callable[[], Awaitable[Offer]],
        hashes: Sequence[ChainHash],
        places: Sequence[memoryview],
        on_bytes: Landed,
    ) -> bool:
        """As `Peers.fetch`; False when there is no such way to the node, and nothing was asked."""
        landing = Landing(places, on_bytes, asyncio.get_running_loop())
        request = frames.pack_get(
            frames.Get((0, 0), (0, 0), sum(map(len, places)), GROUPS, list(hashes)), own=True
        )
        idle = self._take_idle(address, token)
        if idle is not None:
            with suppress(ConnectionError):
                # one that was closed meanwhile is replaced, unless it has answered
                await self._transfer(idle, address, token, landing, request)
                return True
            if landing.has_begun:
                raise PeerFailure(f"{address}: the bulk connection broke")
        wire = await self._connected(address, token, ask)
        if wire is None:
            return False
        try:
            await self._transfer(wire, address, token, landing, request)
        except ConnectionError as error:
            raise PeerFailure(f"{address}: {error}") from None
        return True

    def close(self) -> None:
        """Nothing is under way any more."""
        for wire in self._idle.values():
            wire.close()
        self._idle.clear()
        self._threads.shutdown(wait=True)

    async def _transfer(
        self, wire: Wire, address: str, token: str | None, landing: Landing, request: bytes
    ) -> None:
        """Raises ConnectionError, PeerFailure."""
        try:
            await self._in_thread(wire, landing.receive, wire, request)
        except BaseException as error:
            wire.close()
            if isinstance(error, FrameError | OSError) and not isinstance(error, ConnectionError):
                raise PeerFailure(f"{address}: {error}") from None
            raise
        self._keep(address, token, wire)

    async def _connected(
        self, address: str, token: str | None, ask: Callable[[], Awaitable[Offer]]
    ) -> Wire | None:
        if time.monotonic() < self._without.get(address, 0.0):
            return None
        offer = await ask()
        if offer.port:
            try:
                return await self._in_thread(None, self._connect, address, offer, token)
            except (OSError, FrameError) as error:
                log.info("no bulk path to %s, gRPC instead: %s", address, error)
        now = time.monotonic()
        self._without = {one: until for one, until in self._without.items() if until > now}
        self._without[address] = now + WITHOUT_SECONDS
        return None

    def _connect(self, address: str, offer: Offer, token: str | None) -> Wire:
        host, _ = split_address(address)
        ends_at = time.monotonic() + CONNECT_SECONDS
        wire = Wire(socket.create_connection((host, offer.port), CONNECT_SECONDS))
        try:
            if self._tls is not None:
                wire.encrypt(self._tls, host, ends_at)
            greeting = wire.receive_frame(ends_at)
            if greeting.kind is not Kind.GREETING:
                raise FrameError(f"{greeting.kind.name} came, GREETING is due")
            if frames.read_greeting(greeting.body) != offer.nonce:
                raise FrameError("another server answers")
            wire.send([frames.pack_hello(token)], ends_at)
            welcome = wire.receive_frame(ends_at)
            if welcome.kind is not Kind.WELCOME:
                raise FrameError(f"{welcome.kind.name} came, WELCOME is due")
            frames.read_welcome(welcome.body)
        except BaseException:
            wire.close()
            raise
        return wire

    def _take_idle(self, address: str, token: str | None) -> Wire | None:
        for key in [key for key in self._idle if key[:2] == (address, token)]:
            wire = self._idle.pop(key)
            # between calls a server says nothing: this is the end of the connection
            if not wire.has_input():
                return wire
            wire.close()
        return None

    def _keep(self, address: str, token: str | None, wire: Wire) -> None:
        self._number += 1
        self._idle[address, token, self._number] = wire
        while len(self._idle) > MAX_IDLE:
            self._idle.popitem(last=False)[1].close()

    async def _in_thread(
        self, wire: Wire | None, call: Callable[..., Result], *args: object
    ) -> Result:
        """As `call(*args)`. When this ends the thread has ended too, cancelled or not: the places
        that it fills are another block's soon after."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, call, *args)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if wire is not None:
                wire.abort()
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            if not running.exception() and wire is None:
                result = running.result()
                if isinstance(result, Wire):
                    result.close()
            raise


def _tls_context(config: StoreConfig) -> ssl.SSLContext | None:
    """The same certificates and authority as over gRPC."""
    if config.tls_cert is None:
        return None
    authority = config.peer_ca or config.tls_client_ca
    context = ssl.create_default_context(cafile=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.tls_cert, config.tls_key)
    return context

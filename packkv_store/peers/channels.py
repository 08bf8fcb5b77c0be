"""Connections to other nodes, and which of them are left alone for now."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from packkv_store.cluster import PeerFailure
from packkv_store.config import StoreConfig, is_loopback, split_address

MAX_CHANNELS = 256
REST_SECONDS = 1.0
# The largest message is a profile.
MAX_MESSAGE_BYTES = 17 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # a node that comes back is found again at once; gRPC's own bound is two minutes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
]


class Channels:
    """One channel a node, opened when it is first needed; the least used is closed beyond 256.

    A token goes only where the settings of this node let its own callers send theirs: over TLS with
    a certificate that the peers' authority signed, or to this machine, or with `insecure`.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._credentials = _credentials(config)
        self._insecure = config.insecure
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._resting: dict[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self, address: str) -> grpc.aio.Channel:
        """Raises PeerFailure for a node that has just failed, or may not be spoken to."""
        if time.monotonic() < self._resting.get(address, 0.0):
            raise PeerFailure(f"{address} failed a moment ago")
        known = self._channels.get(address)
        if known is None:
            known = self._channels[address] = self._open(address)
        self._channels.move_to_end(address)
        while len(self._channels) > MAX_CHANNELS:
            self._begin(self._channels.popitem(last=False)[1].close())
        return known

    def failed(self, address: str) -> None:
        """Leaves the node alone for a second, so that a dead one costs one deadline a second."""
        now = time.monotonic()
        self._resting = {one: until for one, until in self._resting.items() if until > now}
        self._resting[address] = now + REST_SECONDS

    async def close(self) -> None:
        for channel in self._channels.values():
            self._begin(channel.close())
        self._channels.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    def _open(self, address: str) -> grpc.aio.Channel:
        if self._credentials is not None:
            return grpc.aio.secure_channel(address, self._credentials, options=OPTIONS)
        if not self._insecure and not is_loopback(split_address(address)[0]):
            raise PeerFailure(f"{address} is on another machine, and there is no TLS to reach it")
        return grpc.aio.insecure_channel(address, options=OPTIONS)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        async def close() -> None:
            with suppress(Exception):
                await work

        task = asyncio.ensure_future(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _credentials(config: StoreConfig) -> grpc.ChannelCredentials | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    authority = config.peer_ca or config.tls_client_ca
    return grpc.ssl_channel_credentials(
        root_certificates=authority.read_bytes() if authority else None,
        private_key=config.tls_key.read_bytes(),
        certificate_chain=config.tls_cert.read_bytes(),
    )

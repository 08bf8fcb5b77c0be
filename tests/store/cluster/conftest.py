"""Nodes in one process, with a real Redis and real connections between them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from packkv_store.app import App
from packkv_store.index.redis import redis_index
from packkv_store.peers import bulk_landing, bulk_pull, grpc_peers
from tests.store.conftest import Client, Payload, connected, serving, small_config
from tests.store.redis_servers import Deployment, deployment, make_certificate

TOKENS = """
[tenants.red]
token_sha256 = "{red}"

[tenants.blue]
token_sha256 = "{blue}"
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes wait for each other, and for Redis, longer than a busy machine takes."""
    monkeypatch.setattr(redis_index, "Pace", partial(redis_index.Pace, deadline=1.0, live=30.0))
    monkeypatch.setattr(grpc_peers, "FRAME_SECONDS", 60.0)
    monkeypatch.setattr(bulk_landing, "PIECE_SECONDS", 60.0)
    monkeypatch.setattr(bulk_landing, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(bulk_pull, "CONNECT_SECONDS", 60.0)


@pytest.fixture(scope="module")
def one_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment("server", tmp_path_factory.mktemp("redis")) as made:
        yield made


@pytest.fixture
def redis(one_redis: Deployment) -> Deployment:
    one_redis.empty()
    return one_redis


@pytest.fixture
def guarded(tmp_path: Path) -> dict[str, Any]:
    """Settings of a node that asks for tokens and certificates."""
    names = ("red", "blue")
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS.format(**digests))
    cert, key = make_certificate(tmp_path)
    return {"tls_cert": cert, "tls_key": key, "tls_client_ca": cert, "tokens_file": tokens}


def hashes_of(prefix: Sequence[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in prefix]


@asynccontextmanager
async def apps(redis: Deployment, count: int, **settings: Any) -> AsyncIterator[list[App]]:
    async with AsyncExitStack() as stack:
        config = small_config(index=redis.url, **settings)
        yield [await stack.enter_async_context(serving(config)) for _ in range(count)]


@asynccontextmanager
async def clients(nodes: Sequence[App]) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(node.address)) for node in nodes]


@asynccontextmanager
async def calling(node: App, config: dict[str, Any], token: str) -> AsyncIterator[Client]:
    cert, key = (config[name].read_bytes() for name in ("tls_cert", "tls_key"))
    credentials = grpc.ssl_channel_credentials(cert, key, cert)
    async with grpc.aio.secure_channel(node.address, credentials) as channel:
        yield Client(channel, [("authorization", f"Bearer {token}")])


async def matches(client: Client, prefix: Sequence[Payload], blocks: int) -> None:
    async with asyncio.timeout(60):
        while (await client.match(hashes_of(prefix))).blocks != blocks:
            await asyncio.sleep(0.02)

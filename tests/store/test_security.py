"""Tenants see their own blocks alone; TLS and tokens hold."""

import hashlib
import json
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from packkv_protos.v1 import admin_pb2
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.config import StoreConfig
from packkv_store.errors import ConfigError
from packkv_store.tenant import Access
from tests.store.conftest import Client, build_prefix, connected, serving, small_config


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


TOKENS = f"""
[tenants.red]
token_sha256 = "{sha256("red secret")}"

[tenants.blue]
token_sha256 = ["{sha256("blue old")}", "{sha256("blue new")}"]
admin = true
"""


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS)
    return path


@pytest.fixture(params=["ram", "disk"])
def config(request: pytest.FixtureRequest, tokens_file: Path, tmp_path: Path) -> StoreConfig:
    folder = tmp_path / "data" if request.param == "disk" else None
    return small_config(tokens_file=tokens_file, data_dir=folder)


async def test_two_tenants_share_nothing(config: StoreConfig) -> None:
    prefix = build_prefix("a", 3)
    hashes = [payload.chain_hash for payload in prefix]
    async with serving(config) as app, connected(app.address) as channel:
        red = Client(channel.channel, bearer("red secret"))
        blue = Client(channel.channel, bearer("blue old"))
        await red.put(prefix)
        lease_id = (await red.match(hashes, lease_ms=5000)).lease_id
        assert (await blue.match(hashes)).blocks == 0
        assert len((await blue.get(hashes, lease_id=lease_id)).misses) == 3
        # the same chain hash is another block for another tenant
        others = build_prefix("a", 3, seed=1)
        results = await blue.put(others)
        assert {result.status for result in results} == {pb.PUT_STATUS_STORED}
        assert (await red.get(hashes)).payloads[0] == prefix[0].data
        assert (await blue.get(hashes)).payloads[0] == others[0].data
        renewal = pb.RenewRequest(lease_id=lease_id, lease_ms=1000)
        reply = await blue.blocks.Renew(renewal, metadata=blue.metadata)
        assert reply.remaining_ms == 0
        put = pb.PutProfileRequest(model_digest=b"m" * 32, profile=b"red")
        await red.blocks.PutProfile(put, metadata=red.metadata)
        ask = pb.GetProfileRequest(model_digest=b"m" * 32)
        assert (await blue.blocks.GetProfile(ask, metadata=blue.metadata)).profile == b""


async def test_a_tenant_may_have_two_tokens_while_it_changes_them(config: StoreConfig) -> None:
    prefix = build_prefix("a", 1)
    async with serving(config) as app, connected(app.address) as channel:
        await Client(channel.channel, bearer("blue old")).put(prefix)
        new = Client(channel.channel, bearer("blue new"))
        assert (await new.match([prefix[0].chain_hash])).blocks == 1


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ([], grpc.StatusCode.UNAUTHENTICATED),
        (bearer("wrong"), grpc.StatusCode.UNAUTHENTICATED),
        ([("authorization", "Basic cmVk")], grpc.StatusCode.UNAUTHENTICATED),
        (bearer(sha256("red secret")), grpc.StatusCode.UNAUTHENTICATED),
        (bearer("red secret"), grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_without_the_right_token_nothing_is_told(
    config: StoreConfig, metadata: list[tuple[str, str]], status: grpc.StatusCode
) -> None:
    async with serving(config) as app, connected(app.address) as channel:
        caller = Client(channel.channel, metadata)
        calls: list[Any] = [caller.stats(), caller.clear()]
        calls += [
            caller.admin.SetLifetime(
                admin_pb2.SetLifetimeRequest(root_hash=bytes(32)), metadata=metadata
            ),
            caller.admin.Lifetimes(admin_pb2.LifetimesRequest(), metadata=metadata),
        ]
        if status is grpc.StatusCode.UNAUTHENTICATED:
            calls += [caller.match([bytes(32)]), caller.get([bytes(32)])]
            calls += [caller.put(build_prefix("a", 1))]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is status


async def test_an_admin_sees_and_clears_all(config: StoreConfig) -> None:
    async with serving(config) as app, connected(app.address) as channel:
        await Client(channel.channel, bearer("red secret")).put(build_prefix("a", 2))
        admin = Client(channel.channel, bearer("blue new"))
        assert (await admin.stats()).blocks == 2
        assert (await admin.clear()).blocks == 2


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ({}, "names no tenant"),
        ({"a": {"token_sha256": "secret"}}, "sha256sum"),
        ({"a": {}}, "token_sha256 of a"),
        ({"a": {"token_sha256": sha256("x"), "admin": "yes"}}, "write true or false"),
        ({"a": {"token_sha256": sha256("x")}, "b": {"token_sha256": sha256("x")}}, "shares"),
    ],
)
def test_a_wrong_tokens_file_is_refused(tokens: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Access.from_tokens(tokens)


def test_tokens_may_be_json(tmp_path: Path) -> None:
    from packkv_store.app import load_access

    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"tenants": {"red": {"token_sha256": sha256("t")}}}))
    assert load_access(path).tenant("t").name == "red"


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return cert, key


@asynccontextmanager
async def secure_client(address: str, ca: Path, own: tuple[Path, Path] | None = None) -> Any:
    cert, key = (path.read_bytes() for path in own) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, cert)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        yield Client(channel, bearer("red secret"))


async def test_tls_carries_blocks_and_refuses_plain_text(tmp_path: Path, tokens_file: Path) -> None:
    cert, key = make_certificate(tmp_path, "server")
    config = small_config(listen="0.0.0.0:0", tls_cert=cert, tls_key=key, tokens_file=tokens_file)
    prefix = build_prefix("a", 2)
    async with serving(config) as app:
        address = f"127.0.0.1:{app.port}"
        async with secure_client(address, cert) as client:
            await client.put(prefix)
            assert (await client.get([prefix[0].chain_hash])).payloads[0] == prefix[0].data
        async with connected(address) as plain:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await plain.match([bytes(32)])
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_with_a_client_authority_a_client_needs_a_certificate(
    tmp_path: Path, tokens_file: Path
) -> None:
    cert, key = make_certificate(tmp_path, "server")
    own = make_certificate(tmp_path, "client")
    config = small_config(tls_cert=cert, tls_key=key, tls_client_ca=own[0], tokens_file=tokens_file)
    async with serving(config) as app:
        address = f"127.0.0.1:{app.port}"
        async with secure_client(address, cert, own) as client:
            assert (await client.match([bytes(32)])).blocks == 0
        async with secure_client(address, cert) as stranger:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stranger.match([bytes(32)])
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

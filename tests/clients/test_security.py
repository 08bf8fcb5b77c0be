"""TLS, client certificates and bearer tokens, against a real server that asks for them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from packkv.client import Client, ClientConfig
from packkv.client.config import PATHS
from packkv.errors import AccessDenied, ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from tests.clients.conftest import StoreProcess, Worker

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes keys with openssl")

TOKENS = list(range(64))


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
    )
    return certificate, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "stranger"):
        make_certificate(folder, name)
    return folder


@pytest.fixture(scope="module")
def guarded(
    certificates: Path, shared_store: StoreProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoreProcess]:
    """A server with TLS, client certificates and two tenants, one of them an admin."""
    folder = tmp_path_factory.mktemp("guarded")
    tenants = {
        name: {"token_sha256": hashlib.sha256(f"token of {name}".encode()).hexdigest()}
        | ({"admin": True} if name == "ann" else {})
        for name in ("ann", "bob")
    }
    (folder / "tokens.json").write_text(json.dumps({"tenants": tenants}))
    store = type(shared_store)(
        folder / "data",
        (
            *("--tls-cert", str(certificates / "server.pem")),
            *("--tls-key", str(certificates / "server.key")),
            *("--tls-client-ca", str(certificates / "client.pem")),
            *("--tokens-file", str(folder / "tokens.json")),
        ),
    ).start()
    yield store
    store.kill()


def config(
    certificates: Path,
    token: str | None,
    *,
    ca: str = "server",
    who: str | None = "client",
    paths: tuple[str, ...] = PATHS,
) -> ClientConfig:
    return ClientConfig(
        deadline_s=5,
        retries=0,
        paths=paths,
        tls_ca=certificates / f"{ca}.pem",
        tls_cert=certificates / f"{who}.pem" if who else None,
        tls_key=certificates / f"{who}.key" if who else None,
        token=token,
    )


def test_tenants_never_see_each_others_blocks(
    guarded: StoreProcess, certificates: Path, worker: Worker
) -> None:
    ann = Client(guarded.target, config=config(certificates, "token of ann"))
    bob = Client(guarded.target, config=config(certificates, "token of bob"))
    with ann, bob, worker.prefixes(ann) as annes, worker.prefixes(bob) as bobs:
        annes.publish(TOKENS, worker.blocks(TOKENS))
        assert annes.flush(60)
        # the same namespace, without a salt: the credential alone keeps them apart
        assert annes.load([*TOKENS, 1]).num_tokens == 64
        assert bobs.load([*TOKENS, 1]).num_tokens == 0
        assert bob.get(worker.hashes(TOKENS))[0].data is None
        assert ann.stats().node
        with pytest.raises(AccessDenied):
            bob.clear()


@pytest.mark.parametrize("token", [None, "guessed"])
def test_without_the_right_token_nothing_is_answered(
    guarded: StoreProcess, certificates: Path, token: str | None
) -> None:
    with Client(guarded.target, config=config(certificates, token)) as client:
        with pytest.raises(AccessDenied):
            client.match([bytes(32)])
        assert client.breaker.is_closed


@pytest.mark.parametrize(
    ("ca", "who"),
    [("stranger", "client"), ("server", "stranger"), ("server", None)],
    ids=["a server we do not trust", "a client it does not trust", "no client certificate"],
)
def test_without_trust_there_is_no_connection(
    guarded: StoreProcess, certificates: Path, ca: str, who: str | None
) -> None:
    settings = config(certificates, "token of ann", ca=ca, who=who)
    with Client(guarded.target, config=settings) as client, pytest.raises(StoreUnavailable):
        client.match([bytes(32)])


def test_plaintext_does_not_reach_an_encrypted_store(guarded: StoreProcess) -> None:
    plain = ClientConfig(retries=0, token="token of ann")
    with Client(guarded.target, config=plain) as client, pytest.raises(StoreUnavailable):
        client.match([bytes(32)])


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Client("127.0.0.1:1", config=ClientConfig(tls_ca=tmp_path / "nowhere.pem"))

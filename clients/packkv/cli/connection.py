"""How a command reaches the store: where, with which credentials, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from packkv.client import Client, ClientConfig

DEFAULT_TARGET = "127.0.0.1:7437"

Target = Annotated[
    str,
    typer.Option("--target", "-t", envvar="PACKKV_TARGET", help="The store, as HOST:PORT."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@dataclass(frozen=True, slots=True)
class Credentials:
    """The options that stand before the command's name."""

    tls: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    token: str | None = field(repr=False)
    insecure: bool
    timeout_s: float

    def connect(self, target: str) -> Client:
        """A client for one command: it waits `timeout_s` in all and leaves nothing behind."""
        from packkv.client import Client

        config = replace(
            self.client_config(), deadline_s=self.timeout_s, transfer_deadline_s=self.timeout_s
        )
        return Client(target, config=config)

    def client_config(self) -> ClientConfig:
        """For a process that stays: the credentials, and the usual deadlines."""
        from packkv.client import ClientConfig

        return ClientConfig(
            tls=self.tls,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            token=self.token,
            insecure=self.insecure,
        )


def credentials_of(ctx: typer.Context) -> Credentials:
    """What the command was told before its name."""
    credentials = ctx.obj
    assert isinstance(credentials, Credentials)
    return credentials

"""Where a server listens and who may ask it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packkv.client.config import is_loopback
from packkv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings that every HTTP server has. Bytes.

    Args:
        listen: HOST:PORT of the API; port 0 takes a free one.
        max_body_bytes: of a request.
        api_keys_file: one key a line; who asks must show one.
        tls_cert, tls_key: PEM files of the API.
        insecure: listen beyond loopback without keys and TLS.
    """

    listen: str = "127.0.0.1:8000"
    max_body_bytes: int = 4 << 20
    api_keys_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.max_body_bytes < 1024:
            raise ConfigError(f"max_body_bytes is {self.max_body_bytes}; the least is 1024")
        self.address()
        self.api_keys()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together; one of them is missing")
        for file in (self.tls_cert, self.tls_key):
            if file is not None and not file.is_file():
                raise ConfigError(f"cannot read {file}: there is no such file")
        guarded = self.tls_cert is not None and self.api_keys_file is not None
        if not self.insecure and not guarded and not is_loopback(self.listen):
            raise ConfigError(
                f"listen {self.listen} can be reached from other machines: give --api-key-file, "
                "--tls-cert and --tls-key, or listen on 127.0.0.1, or write --insecure if "
                "everything that can reach this port may use the model"
            )

    @property
    def scheme(self) -> str:
        return "http" if self.tls_cert is None else "https"

    def api_keys(self) -> frozenset[str]:
        """The keys of the file, without empty lines and comments; empty without a file.

        Raises:
            ConfigError: the file cannot be read, or has no key.
        """
        if self.api_keys_file is None:
            return frozenset()
        try:
            lines = self.api_keys_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as reason:
            raise ConfigError(f"cannot read {self.api_keys_file}: {reason}") from reason
        keys = frozenset(line.strip() for line in lines) - {""}
        keys = frozenset(key for key in keys if not key.startswith("#"))
        if not keys:
            raise ConfigError(f"{self.api_keys_file} has no key: write one a line")
        return keys

    def address(self) -> tuple[str, int]:
        """Host and port of `listen`.

        Raises:
            ConfigError: it is no HOST:PORT.
        """
        host, colon, port = self.listen.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"{self.listen!r} is not HOST:PORT, for example 127.0.0.1:8000")
        return host.strip("[]"), int(port)

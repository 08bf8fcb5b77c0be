"""How a client reaches its store, how long it waits, and what it accepts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from packkv.errors import ConfigError

# Every way to move payloads: memory shared with a store on this host, a TCP connection of its own,
# the streams of the gRPC service.
PATHS: Final = ("shared-memory", "bulk", "grpc")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Settings of a `Client`. Seconds and bytes.

    Args:
        deadline_s: of a call that moves no payloads, all its retries included.
        transfer_deadline_s: of Get and Put, unless the call names its own.
        retries: further tries of a call that is safe to repeat, when nobody answered.
        backoff_s: bound of the first random pause between tries; it doubles from try to try.
        breaker_failures: calls that must fail in a row before the store is left alone.
        breaker_pause_s: how long it is left alone first; doubles up to `breaker_max_pause_s`.
        max_get_bytes: the most that one Get may announce; more is refused before it is allocated.
        keep_bytes: memory of past Gets that lies ready for the next; views in use do not count.
        paths: ways to move payloads, best first; those that the server does not offer are skipped.
        tls: encrypt, and check the server against the system's authorities.
        tls_ca: PEM file of the authority to check against instead; implies `tls`.
        tls_cert, tls_key: PEM files with which the client identifies itself; imply `tls`.
        token: bearer token, sent with every call.
        insecure: send the token even over plaintext to another host.
    """

    deadline_s: float = 5.0
    transfer_deadline_s: float = 30.0
    retries: int = 3
    backoff_s: float = 0.05
    breaker_failures: int = 3
    breaker_pause_s: float = 1.0
    breaker_max_pause_s: float = 30.0
    max_get_bytes: int = 8 << 30
    keep_bytes: int = 256 << 20
    paths: tuple[str, ...] = PATHS
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token: str | None = field(default=None, repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        for name in ("deadline_s", "transfer_deadline_s", "backoff_s", "breaker_pause_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.breaker_max_pause_s < self.breaker_pause_s:
            raise ConfigError(
                f"breaker_max_pause_s ({self.breaker_max_pause_s}) must be at least "
                f"breaker_pause_s ({self.breaker_pause_s})"
            )
        for name, least in (
            ("retries", 0),
            ("breaker_failures", 1),
            ("max_get_bytes", 1),
            ("keep_bytes", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.paths or not set(self.paths) <= set(PATHS):
            raise ConfigError(f"paths must be some of {', '.join(PATHS)}, not {self.paths}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together")

    @property
    def encrypted(self) -> bool:
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    def check_target(self, target: str) -> None:
        """Refuse to hand a token to the network in plaintext.

        Raises:
            ConfigError: there is a token and no TLS, `target` is no loopback address, and
                `insecure` is not set.
        """
        if self.token and not self.encrypted and not self.insecure and not is_loopback(target):
            raise ConfigError(
                f"a bearer token would go to {target} in plaintext: give tls_ca (or tls=True), "
                "or insecure=True if the network is yours alone"
            )


def is_loopback(target: str) -> bool:
    """Whether a gRPC target stays on this host: a Unix socket, localhost or a loopback address."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    # "dns:///host:port" and "dns:host:port" name the host last; a DNS authority is not the host
    address = rest.rsplit("/", 1)[-1] if scheme in ("dns", "ipv4", "ipv6") else target
    hosts = [_host(part) for part in address.split(",")]
    return all(host == "localhost" or _is_loopback_address(host) for host in hosts)


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Everything that can be set, each default once. Flags, the TOML file and docs all follow this."""

import ipaddress
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from packkv_store.errors import ConfigError

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]iB|B|)")
MIB = 1 << 20
# A setting of a data path that nobody has to choose, and the word that turns the path off.
AUTO = "auto"
OFF = "off"


def parse_size(text: object) -> int:
    """Bytes in '512MiB', '8GiB' or a plain number."""
    found = SIZE.fullmatch(str(text).strip())
    if found is None:
        raise ConfigError(f"{text!r} is not a size; write bytes, or KiB, MiB, GiB, TiB: 8GiB")
    return int(float(found[1]) * UNITS[found[2]])


def split_address(address: str) -> tuple[str, int]:
    """Host and port of 'HOST:PORT' or '[IPv6]:PORT'."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not HOST:PORT, for example 127.0.0.1:7437")
    return host.strip("[]"), int(port)


def parse_switch(value: object) -> bool:
    """True or false; the words of other languages are refused rather than guessed."""
    if not isinstance(value, bool):
        raise ConfigError("write true or false")
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. Names other than localhost count as outside."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether `host` means every address of this machine and none in particular."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _flag(parse: Callable[[Any], Any], shown: str, text: str) -> dict[str, Any]:
    return {"parse": parse, "shown": shown, "help": text}


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """The settings of one server, made once at its start and passed in."""

    listen: str = field(
        default="127.0.0.1:7437",
        metadata=_flag(str, "HOST:PORT", "where to serve gRPC; port 0 takes a free one"),
    )
    metrics_listen: str | None = field(
        default=None,
        metadata=_flag(str, "HOST:PORT", "where to serve Prometheus metrics over HTTP"),
    )
    bulk_listen: str = field(
        default=AUTO,
        metadata=_flag(
            str,
            "HOST:PORT",
            "where to serve the bulk path; auto: the host of listen, a free port; off: nowhere",
        ),
    )
    shared_memory: str = field(
        default=AUTO,
        metadata=_flag(
            str,
            "SOCKET",
            "Unix socket of the shared-memory path; auto: one in a private directory; off: none",
        ),
    )
    index: str = field(
        default="embedded",
        repr=False,
        metadata=_flag(
            str,
            "URL",
            "embedded: this node is alone; or the Redis where nodes find each other: redis://…, "
            "rediss://…, unix://…, redis+sentinel://…/SERVICE, redis+cluster://…",
        ),
    )
    advertise: str | None = field(
        default=None,
        metadata=_flag(
            str, "HOST:PORT", "where other nodes reach this one, if not at listen; port 0: its port"
        ),
    )
    peer_ca: Path | None = field(
        default=None,
        metadata=_flag(
            Path, "FILE", "PEM authorities of other nodes' certificates, if not tls_client_ca"
        ),
    )
    ram_bytes: int = field(
        default=1 << 30, metadata=_flag(parse_size, "SIZE", "RAM tier; taken whole at the start")
    )
    data_dir: Path | None = field(
        default=None,
        metadata=_flag(
            Path, "DIR", "where the disk tier and profiles live; without it nothing is on disk"
        ),
    )
    disk_bytes: int = field(
        default=16 << 30, metadata=_flag(parse_size, "SIZE", "disk tier, all its files together")
    )
    sync: bool = field(
        default=True,
        metadata=_flag(
            parse_switch, "BOOL", "fdatasync before a Put is answered: survives power cuts"
        ),
    )
    ttl_seconds: float = field(
        default=0.0, metadata=_flag(float, "SECONDS", "age at which a block expires; 0: never")
    )
    lease_seconds: float = field(
        default=60.0, metadata=_flag(float, "SECONDS", "longest lease that is granted")
    )
    max_leases: int = field(
        default=4096, metadata=_flag(int, "N", "leases at one time; more are not granted")
    )
    max_block_bytes: int = field(
        default=64 * MIB, metadata=_flag(parse_size, "SIZE", "largest payload of one block")
    )
    stream_seconds: float = field(
        default=300.0, metadata=_flag(float, "SECONDS", "longest Put or Get stream")
    )
    grace_seconds: float = field(
        default=5.0, metadata=_flag(float, "SECONDS", "time for running calls at the end")
    )
    drain_seconds: float = field(
        default=10.0,
        metadata=_flag(
            float,
            "SECONDS",
            "time at the end to hand over to other nodes what is not on disk; 0: none",
        ),
    )
    replicas: int = field(
        default=1,
        metadata=_flag(int, "N", "nodes that are to have each block that is put, this one counted"),
    )
    io_threads: int = field(default=4, metadata=_flag(int, "N", "threads for disk and checksums"))
    tls_cert: Path | None = field(
        default=None, metadata=_flag(Path, "FILE", "PEM certificate chain of this server")
    )
    tls_key: Path | None = field(
        default=None, metadata=_flag(Path, "FILE", "PEM private key of this server")
    )
    tls_client_ca: Path | None = field(
        default=None,
        metadata=_flag(Path, "FILE", "PEM authorities; clients must show a certificate of theirs"),
    )
    tokens_file: Path | None = field(
        default=None,
        metadata=_flag(
            Path, "FILE", "TOML or JSON: tenants, SHA-256 of their bearer tokens, shares, rates"
        ),
    )
    insecure: bool = field(
        default=False,
        metadata=_flag(
            parse_switch, "BOOL", "allow listening beyond loopback without TLS or tokens"
        ),
    )
    log_level: str = field(
        default="info", metadata=_flag(str, "LEVEL", "debug, info, warning or error")
    )
    log_json: bool = field(
        default=False,
        metadata=_flag(parse_switch, "BOOL", "one JSON object a line instead of text"),
    )

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_files()
        self._check_cluster()
        self._check_exposure()

    @property
    def is_alone(self) -> bool:
        """Whether there are no other nodes to be found."""
        return self.index == "embedded"

    def advertised(self, port: int) -> str:
        """Where others reach this node, which listens on `port`."""
        host, _, wanted = (self.advertise or self.listen).rpartition(":")
        is_chosen = self.advertise is not None and int(wanted) > 0
        return f"{host}:{wanted if is_chosen else port}"

    @property
    def bulk_address(self) -> str | None:
        """Where the bulk path listens; port 0 takes a free one. None: the path is off."""
        if self.bulk_listen == OFF:
            return None
        if self.bulk_listen == AUTO:
            return f"{self.listen.rpartition(':')[0]}:0"
        return self.bulk_listen

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """From flags or a TOML table. Raises ConfigError for a name or a value that is wrong."""
        known = {setting.name: setting for setting in fields(cls)}
        parsed = {}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"no setting is called {name!r}; there are: {', '.join(known)}")
            try:
                parsed[name] = known[name].metadata["parse"](value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{name} = {value!r}: {error}") from None
        return cls(**parsed)

    def _check_ranges(self) -> None:
        split_address(self.listen)
        if self.metrics_listen is not None:
            split_address(self.metrics_listen)
        if self.bulk_address is not None:
            split_address(self.bulk_address)
        least = {
            "ram_bytes": MIB,
            "disk_bytes": MIB,
            "max_block_bytes": 4096,
            "max_leases": 1,
            "io_threads": 1,
            "ttl_seconds": 0,
            "lease_seconds": 0,
            "stream_seconds": 1,
            "grace_seconds": 0,
            "drain_seconds": 0,
            "replicas": 1,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; the least is {low}")
        if self.log_level.upper() not in logging.getLevelNamesMapping():
            raise ConfigError(f"log_level is {self.log_level!r}; write debug, info, warning, error")

    def _check_files(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together; one of them is missing")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_client_ca needs tls_cert and tls_key")

    def _check_cluster(self) -> None:
        if self.advertise is not None:
            split_address(self.advertise)
        host = split_address(self.advertise or self.listen)[0]
        if not self.is_alone and is_wildcard(host):
            raise ConfigError(
                f"other nodes cannot reach {host}: write --advertise HOST:PORT, a name or an "
                "address of this machine that they know"
            )
        if self.peer_ca is not None and self.tls_cert is None:
            raise ConfigError("peer_ca needs tls_cert and tls_key")

    def _check_exposure(self) -> None:
        if self.insecure:
            return
        is_guarded = self.tls_cert is not None and self.tokens_file is not None
        # what is advertised beyond this machine must be reached by TLS there
        reached = (
            ("listen", self.listen),
            ("advertise", None if self.is_alone else self.advertise),
            ("bulk_listen", self.bulk_address),
        )
        for name, address in reached:
            if address is None or is_guarded or is_loopback(split_address(address)[0]):
                continue
            raise ConfigError(
                f"{name} {address} can be reached from other machines: give tls_cert, "
                "tls_key and tokens_file, or listen on 127.0.0.1, or write --insecure if "
                "everything that can reach this port may read and write every block"
            )
        metrics = self.metrics_listen
        if metrics and self.tls_cert is None and not is_loopback(split_address(metrics)[0]):
            raise ConfigError(
                f"metrics_listen {metrics} can be reached from other machines: "
                "give tls_cert and tls_key, or listen on 127.0.0.1, or write --insecure"
            )

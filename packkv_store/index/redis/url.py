"""Where Redis is: one URL says server, Sentinel or Cluster, encryption and credentials."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from packkv_store.config import split_address
from packkv_store.errors import ConfigError

Address = tuple[str, int]
PORTS = {"server": 6379, "cluster": 6379, "sentinel": 26379}
OPTIONS = ("ca", "cert", "key", "sentinel_user", "sentinel_password")
# No message repeats a part of the URL: a password that is not escaped may be in any of them.
ESCAPES = "in a password, write / as %2F, ? as %3F, # as %23, @ as %40, : as %3A and % as %25"
FORMS = (
    "redis[s]://[USER:PASSWORD@]HOST[:PORT][/DB], unix://[USER:PASSWORD@]/PATH[?db=N], "
    "redis[s]+sentinel://[USER:PASSWORD@]HOST[:PORT],…/SERVICE[/DB] or "
    "redis[s]+cluster://[USER:PASSWORD@]HOST[:PORT],…"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUrl:
    """A parsed URL. Its text never shows a credential."""

    kind: str  # server, sentinel or cluster
    tls: bool = False
    addresses: tuple[Address, ...] = ()
    socket: str | None = None
    service: str = ""
    db: int = 0
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_user: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __str__(self) -> str:
        if self.socket is not None:
            return f"unix://{self.socket}"
        scheme = "rediss" if self.tls else "redis"
        kind = "" if self.kind == "server" else f"+{self.kind}"
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses
        )
        return f"{scheme}{kind}://{hosts}" + (f"/{self.service}" if self.service else "")

    @classmethod
    def parse(cls, text: str) -> "RedisUrl":
        """Raises ConfigError, which says what is wrong and repeats no credential."""
        try:
            return _parse(text)
        except ConfigError as error:
            raise ConfigError(f"index: {error}") from None
        except ValueError:
            raise ConfigError(f"index: this is no URL; write embedded, {FORMS}") from None


def _parse(text: str) -> RedisUrl:
    parts = urlsplit(text)
    scheme, _, kind = parts.scheme.partition("+")
    kind = kind or "server"
    if scheme not in ("redis", "rediss", "unix") or kind not in PORTS:
        raise ConfigError(f"this is no URL of Redis; write embedded, {FORMS}")
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    options = _options(parts.query, is_socket=scheme == "unix")
    if parts.fragment:
        raise ConfigError(f"it has a '#'; {ESCAPES}")
    common: dict[str, Any] = {
        "user": unquote(user) or None,
        "password": unquote(password) or None,
        "sentinel_user": options.get("sentinel_user"),
        "sentinel_password": options.get("sentinel_password"),
        **{name: Path(options[name]) for name in ("ca", "cert", "key") if name in options},
    }
    if scheme == "unix":
        if kind != "server" or hosts or not parts.path:
            raise ConfigError("write unix:///PATH")
        socket = unquote(parts.path)
        return RedisUrl(kind=kind, socket=socket, db=_number(options.get("db", "0")), **common)
    path = parts.path.strip("/").split("/")
    service = path.pop(0) if kind == "sentinel" else ""
    if kind == "sentinel" and not service:
        raise ConfigError("Sentinel needs the name of its service: redis+sentinel://HOST/SERVICE")
    db = path.pop(0) if path else ""
    if path or (db and kind == "cluster"):
        raise ConfigError(f"its path has too many parts; {ESCAPES}")
    return RedisUrl(
        kind=kind,
        tls=scheme == "rediss",
        addresses=_addresses(hosts, kind),
        service=unquote(service),
        db=_number(db or "0"),
        **common,
    )


def _addresses(hosts: str, kind: str) -> tuple[Address, ...]:
    addresses = []
    for host in hosts.split(","):
        has_port = ":" in host.rpartition("]")[2]
        try:
            addresses.append(split_address(host if has_port else f"{host}:{PORTS[kind]}"))
        except ConfigError:
            raise ConfigError(f"what should be HOST:PORT is not; {ESCAPES}") from None
    if kind == "server" and len(addresses) != 1:
        raise ConfigError("one server has one HOST:PORT; for more write +sentinel or +cluster")
    return tuple(addresses)


def _options(query: str, is_socket: bool) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    allowed = (*OPTIONS, "db") if is_socket else OPTIONS
    for name in options:
        if name not in allowed:
            raise ConfigError(f"an unknown option; there are: {', '.join(allowed)}; {ESCAPES}")
    return options


def _number(text: str) -> int:
    if not text.isdigit() or int(text) > 65_535:
        raise ConfigError("the database is a number up to 65535")
    return int(text)

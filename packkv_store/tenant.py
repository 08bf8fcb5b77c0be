"""Who calls: the tenant comes from the bearer token, never from the request."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from packkv_store.block import TAG_BYTES
from packkv_store.config import parse_size
from packkv_store.errors import ConfigError, NotPermitted, Unauthenticated

SHA256_HEX = re.compile(r"[0-9a-f]{64}")
SETTINGS = ("token_sha256", "admin", "ram", "disk", "put_rate", "get_rate", "burst")
# Of a rate, in bytes a second, and of a burst, in bytes.
LEAST_RATE = 64 << 10
MOST_RATE = 1 << 40


@dataclass(frozen=True, slots=True)
class Tenant:
    """A caller. `tag` scopes the names of its blocks, so no tenant can see another's."""

    name: str
    admin: bool = False
    # its parts of the RAM tier and of the disk tier, relative to those of the others
    ram: float = 1.0
    disk: float = 1.0
    # payload bytes a second that it may put and get on this node; 0: without a limit
    put_rate: int = 0
    get_rate: int = 0
    # bytes that it may move at once after a rest, of each; 0: those of one second
    burst: int = 0
    # the bearer token it came with, for calls to other nodes in its name
    credential: str | None = field(default=None, repr=False, compare=False)
    tag: bytes = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.name.encode()).digest()
        object.__setattr__(self, "tag", digest[:TAG_BYTES])


class Access:
    """Answers who a bearer token stands for. With no tokens everyone is one tenant and admin."""

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._tenants = dict(tenants)
        self._everyone = Tenant("", admin=True)

    @classmethod
    def from_tokens(cls, tokens: Mapping[str, object]) -> Self:
        """From the tokens file: tenant name to {token_sha256: hex or list of hex, admin: bool,
        ram: number, disk: number, put_rate: size, get_rate: size, burst: size}."""
        tenants: dict[str, Tenant] = {}
        for name, entry in tokens.items():
            tenant = _tenant(name, entry if isinstance(entry, Mapping) else {})
            for digest in _digests(name, entry):
                if digest in tenants:
                    raise ConfigError(f"tokens file: {name} shares a token with another tenant")
                tenants[digest] = tenant
        if not tenants:
            raise ConfigError("tokens file: it names no tenant; write [tenants.NAME] tables")
        return cls(tenants)

    @property
    def needs_token(self) -> bool:
        """Whether there are callers that this server does not know."""
        return bool(self._tenants)

    @property
    def tenants(self) -> list[Tenant]:
        """Everyone who may call."""
        return list(dict.fromkeys(self._tenants.values())) or [self._everyone]

    def tenant(self, token: str | None) -> Tenant:
        """Raises Unauthenticated unless the token is known (or none is needed)."""
        if not self._tenants:
            return self._everyone
        if token is None:
            raise Unauthenticated("send metadata 'authorization: Bearer TOKEN'")
        # looked up by digest: the time taken tells nothing of the token itself
        tenant = self._tenants.get(hashlib.sha256(token.encode()).hexdigest())
        if tenant is None:
            raise Unauthenticated("this bearer token is not in the server's tokens file")
        return replace(tenant, credential=token)

    def admin(self, token: str | None) -> Tenant:
        """As `tenant`; raises NotPermitted as well when the token is not an admin's."""
        tenant = self.tenant(token)
        if not tenant.admin:
            raise NotPermitted(f"tenant {tenant.name} has no admin flag in the tokens file")
        return tenant


def _tenant(name: str, entry: Mapping[str, object]) -> Tenant:
    for setting in entry:
        if setting not in SETTINGS:
            raise ConfigError(
                f"tokens file: {name} has {setting!r}; a tenant may have: {', '.join(SETTINGS)}"
            )
    admin = entry.get("admin", False)
    if not isinstance(admin, bool):
        raise ConfigError(f"tokens file: admin of {name} is {admin!r}; write true or false")
    tenant = Tenant(
        name,
        admin=admin,
        ram=_share("ram", name, entry),
        disk=_share("disk", name, entry),
        put_rate=_rate("put_rate", name, entry),
        get_rate=_rate("get_rate", name, entry),
        burst=_rate("burst", name, entry),
    )
    if tenant.burst and not tenant.put_rate and not tenant.get_rate:
        raise ConfigError(
            f"tokens file: burst of {name} is {tenant.burst} and it has no rate; "
            "write put_rate or get_rate as well"
        )
    return tenant


def _share(tier: str, name: str, entry: Mapping[str, object]) -> float:
    share = entry.get(tier, 1.0)
    number = share if isinstance(share, int | float) and not isinstance(share, bool) else -1.0
    if not 0 <= number < float("inf"):
        raise ConfigError(
            f"tokens file: {tier} of {name} is {share!r}; write a number of 0 or more: a tenant "
            f"with 2 has twice the {tier} of one with 1"
        )
    return float(number)


def _rate(setting: str, name: str, entry: Mapping[str, object]) -> int:
    value = entry.get(setting, 0)
    is_size = isinstance(value, int | str) and not isinstance(value, bool)
    try:
        rate = parse_size(value) if is_size else -1
    except ConfigError:
        rate = -1
    if rate != 0 and not LEAST_RATE <= rate <= MOST_RATE:
        unit = "bytes" if setting == "burst" else "bytes a second"
        raise ConfigError(
            f"tokens file: {setting} of {name} is {value!r}; write {unit}, from {LEAST_RATE} to "
            f"{MOST_RATE}, as a number or as 100MiB; 0 is as if it were not there"
        )
    return rate


def _digests(name: str, entry: object) -> Iterable[str]:
    value = entry.get("token_sha256") if isinstance(entry, Mapping) else entry
    for digest in value if isinstance(value, list) else [value]:
        if not isinstance(digest, str) or not SHA256_HEX.fullmatch(digest):
            raise ConfigError(
                f"tokens file: token_sha256 of {name} is not 64 lowercase hex digits; "
                'make one with: printf %s "$TOKEN" | sha256sum'
            )
        yield digest

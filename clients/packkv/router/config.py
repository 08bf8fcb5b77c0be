"""Every setting of a router, made once at its start and passed in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from packkv.client import ClientConfig
from packkv.errors import ConfigError
from packkv.serving.config import ServerConfig

_URL = re.compile(r"https?://[^/?#@\s]+")


class Policy(StrEnum):
    """How a worker is chosen."""

    PREFIX = "prefix"
    ROUND_ROBIN = "round-robin"


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker's API is, and the store that it publishes to, if its blocks are followed."""

    url: str
    store: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From URL or URL=STORE.

        Raises:
            ConfigError: it is neither.
        """
        url, equals, store = text.partition("=")
        if _URL.fullmatch(url.rstrip("/")) is None or (equals and not store):
            raise ConfigError(
                f"{text!r} is no worker; write its URL, or URL=STORE: http://gpu-1:8000=gpu-1:7437"
            )
        return cls(url.rstrip("/"), store or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig(ServerConfig):
    """Settings of one router, beside those of any server. Seconds.

    Args:
        workers: of one model, at least one.
        policy: how one of them is chosen.
        client: how their stores are reached; with the token of the tenant that the workers have.
        workers_ca: PEM file of the authority of the workers' certificates; None: the system's.
        ask_s: the longest time that naming the blocks of a request may take.
        look_s: between two looks at whether the workers are ready.
        request_s: until an answer has begun, and between the pieces of one that has.
        grace_s: at the end, for answers that are under way.
    """

    workers: tuple[WorkerAddress, ...]
    policy: Policy = Policy.PREFIX
    client: ClientConfig = field(default_factory=ClientConfig)
    workers_ca: Path | None = None
    ask_s: float = 1.0
    look_s: float = 1.0
    request_s: float = 600.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)
        if not self.workers:
            raise ConfigError("no worker: give --worker URL=STORE at least once")
        urls = [worker.url for worker in self.workers]
        if len(set(urls)) < len(urls):
            raise ConfigError(f"a worker is named twice: {', '.join(urls)}")
        for name in ("ask_s", "look_s", "request_s", "grace_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        for store in self.stores:
            self.client.check_target(store)
        if self.workers_ca is not None and not self.workers_ca.is_file():
            raise ConfigError(f"cannot read {self.workers_ca}: there is no such file")

    @property
    def stores(self) -> list[str]:
        """Those that are followed, each once."""
        stores = [worker.store for worker in self.workers if worker.store is not None]
        return list(dict.fromkeys(stores))

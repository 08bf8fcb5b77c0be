"""How long a prefix cache waits for its store, and how much it may hold for it."""

from __future__ import annotations

from dataclasses import dataclass

from packkv.cold import Cold, as_cold
from packkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PrefixCacheConfig:
    """Settings of a `PrefixCache`. Seconds and bytes.

    Args:
        deadline_s: a load ends by then, whatever the store does. Once the prefill rate is known, a
            load also ends when the time has passed that it could have saved.
        min_deadline_s: a load of few tokens may take this long all the same.
        span_bytes: payloads are fetched in spans of about this size; what has arrived counts, and
            after each span it is decided anew whether the next one pays.
        layered_bytes: a load that may come layer by layer does so when what is left of it has at
            most so many bytes: none of them counts before all have come.
        group_bytes: so many bytes of all blocks' layers are handed on together.
        probe_after_s: when fetching does not pay, one small span is fetched this often, to notice
            when it does again.
        probe_bytes: the size of that span, and of the very first one; at least one block.
        publish_queue_bytes: payloads that wait to be sent or are being sent; more is dropped.
        publish_batch_bytes: payloads of one Put.
        publish_deadline_s: of one Put.
        cold: publish blocks in cold form "always", "never", or where that makes loading faster by
            what this process measures ("auto", see `Forms`).
        known_blocks: chain hashes remembered as present in the store, 32 bytes each.
        log_interval_s: at most one log line of a kind in this time.
    """

    deadline_s: float = 2.0
    min_deadline_s: float = 0.05
    span_bytes: int = 32 << 20
    layered_bytes: int = 256 << 20
    group_bytes: int = 1 << 20
    probe_after_s: float = 10.0
    probe_bytes: int = 4 << 20
    publish_queue_bytes: int = 256 << 20
    publish_batch_bytes: int = 32 << 20
    publish_deadline_s: float = 10.0
    cold: Cold = "auto"
    known_blocks: int = 1 << 17
    log_interval_s: float = 60.0

    def __post_init__(self) -> None:
        as_cold(self.cold)
        for name in ("deadline_s", "min_deadline_s", "publish_deadline_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in (
            "span_bytes",
            "group_bytes",
            "probe_bytes",
            "publish_batch_bytes",
            "known_blocks",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("layered_bytes", "publish_queue_bytes", "probe_after_s", "log_interval_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, not {getattr(self, name)}")

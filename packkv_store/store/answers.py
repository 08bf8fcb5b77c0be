"""What the store answers, in its own types: no protobuf in here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from packkv_store.block import ChainHash, TierName
from packkv_store.store.layout import Extents


class MissReason(Enum):
    """Why a block was not served."""

    ABSENT = "absent"
    CORRUPT = "corrupt"
    HEADS = "heads"


class PutStatus(Enum):
    """What became of one block of a Put."""

    STORED = auto()
    ALREADY_PRESENT = auto()
    REJECTED = auto()


@dataclass(frozen=True, slots=True)
class Match:
    """The longest run of present blocks, and why it ended (None: everything matched).

    `owners` are the addresses of the nodes that have each of them, "" for this one; none: this one
    has all.
    """

    lengths: list[int]
    tiers: list[TierName]
    lease_id: int
    lease_seconds: float
    miss: MissReason | None
    owners: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PutResult:
    """`reason` is for people and empty unless the block was rejected."""

    chain_hash: ChainHash
    status: PutStatus
    length: int
    reason: str = ""


class BlockAnswer(NamedTuple):
    """What a Get found of one block: its payload length, or why it is a miss."""

    length: int
    miss: MissReason | None


class Place(NamedTuple):
    """Where a block is in its tenant's arena. Without an offset it has to be fetched another way,
    or, with a reason, is a miss."""

    offset: int | None
    length: int
    miss: MissReason | None


@dataclass(frozen=True, slots=True)
class Located:
    """A place for every block asked for, which stays as it is for as long as the lease is in force.

    `extents` are the bytes wanted, as rows of block, offset in the payload, length; None: all.
    """

    lease_id: int
    lease_seconds: float
    places: list[Place]
    extents: Extents | None


class Listed(NamedTuple):
    """A block of this node, as its operator sees it."""

    chain_hash: ChainHash
    root_hash: bytes
    length: int
    first_token: int
    tokens: int
    tiers: list[TierName]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a watcher is told next; no block is in both lists.

    With `reset` nothing that was told before counts any more. With `current` all that led to the
    present state has been told.
    """

    stored: Sequence[ChainHash] = ()
    removed: Sequence[ChainHash] = ()
    reset: bool = False
    current: bool = False


@dataclass(frozen=True, slots=True)
class LifetimesInForce:
    """Seconds after which the blocks of a namespace expire, by root hash, and those of all others.
    Infinity: never."""

    own: Mapping[bytes, float]
    others: float


@dataclass(frozen=True, slots=True)
class TierStats:
    """How full a tier is, and how much of that is blocks in cold form."""

    name: TierName
    blocks: int
    used_bytes: int
    capacity_bytes: int
    cold_blocks: int
    cold_bytes: int


@dataclass(slots=True)
class Tally:
    """What happened inside the store since its start; calls are counted by metrics.py."""

    evicted: dict[TierName, int] = field(default_factory=lambda: dict.fromkeys(TierName, 0))
    corrupt: dict[TierName, int] = field(default_factory=lambda: dict.fromkeys(TierName, 0))
    failures: dict[TierName, int] = field(default_factory=lambda: dict.fromkeys(TierName, 0))
    promoted: int = 0
    expired: int = 0
    recovered: int = 0
    pulled: int = 0
    pull_failures: int = 0
    replicas: int = 0
    replicas_dropped: int = 0
    watch_resets: int = 0


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The state of a node, for operators."""

    node: str
    version: str
    uptime_seconds: float
    tiers: list[TierStats]
    leases: int
    blocks: int
    tally: Tally
    watchers: int
    # whether the index that this node shares with others answers; one of its own always does
    index_up: bool = True
    # filled by the metrics layer: counters since the start, by their Prometheus name
    counters: dict[str, int] = field(default_factory=dict)

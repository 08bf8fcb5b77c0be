"""Answers of the store as plain values: nothing above this package sees a protobuf type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import repeat
from typing import Final

from packkv.errors import ProtocolViolation
from packkv.hashing import HASH_BYTES
from packkv_protos.v1 import admin_pb2
from packkv_protos.v1 import block_store_pb2 as pb


class Miss(StrEnum):
    """Why a block is not there."""

    ABSENT = "absent"
    CORRUPT = "corrupt"
    HEADS = "heads"


class Tier(StrEnum):
    """Where in the store a block is."""

    RAM = "ram"
    DISK = "disk"
    UNKNOWN = "unknown"


class PutStatus(StrEnum):
    """What became of a published block."""

    STORED = "stored"
    ALREADY_PRESENT = "already_present"
    REJECTED = "rejected"


# the payload format has 32-bit lengths
MAX_PAYLOAD_BYTES: Final = (1 << 32) - 1

_MISSES: Final[Mapping[int, Miss]] = {
    pb.MISS_REASON_CORRUPT: Miss.CORRUPT,
    pb.MISS_REASON_HEADS: Miss.HEADS,
}
_TIERS: Final[Mapping[int, Tier]] = {pb.TIER_RAM: Tier.RAM, pb.TIER_DISK: Tier.DISK}
_PUT_STATUSES: Final[Mapping[int, PutStatus]] = {
    pb.PUT_STATUS_STORED: PutStatus.STORED,
    pb.PUT_STATUS_ALREADY_PRESENT: PutStatus.ALREADY_PRESENT,
    pb.PUT_STATUS_REJECTED: PutStatus.REJECTED,
}


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range [first, first + count) of layers or of KV heads."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Match:
    """The longest run of present blocks; `lengths` and `tiers` have one value for each.

    So has `owners`, if it was asked for: HOST:PORT of the node that has the block, "" for the one
    that was asked.
    """

    blocks: int
    lengths: tuple[int, ...]
    tiers: tuple[Tier, ...]
    miss: Miss | None
    lease_id: int
    lease_ms: int
    owners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """The answer for one block: its payload, or why there is none.

    `data` has the length of the whole payload. `received` are the ranges of it that came, as
    (offset, length), ascending; the rest is zeros. Without `layers` and `heads` it is all of it.
    """

    data: memoryview | None
    miss: Miss | None
    received: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Put:
    """The result of one published block; `reason` is empty unless it was rejected."""

    chain_hash: bytes
    status: PutStatus
    reason: str


@dataclass(frozen=True, slots=True)
class TierStats:
    """How full one tier is, and how much of that is blocks in cold form."""

    tier: str
    blocks: int
    used_bytes: int
    capacity_bytes: int
    cold_blocks: int = 0
    cold_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """What a store says of itself; `counters` are named as its Prometheus metrics are."""

    node: str
    version: str
    uptime_s: float
    blocks: int
    leases: int
    tiers: tuple[TierStats, ...]
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Listed:
    """A block that a store holds; `tiers` are named as in `TierStats`, fastest first."""

    chain_hash: bytes
    root_hash: bytes
    length: int
    first_token: int
    tokens: int
    tiers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a store has taken in and let go. No block is in both sets.

    With `reset` nothing that was told before counts any more: it is the first of a watch, and
    comes again when the watcher was too slow. With `current` all that there is has been told.
    """

    sequence: int
    stored: frozenset[bytes]
    removed: frozenset[bytes]
    reset: bool
    current: bool


@dataclass(frozen=True, slots=True)
class Cleared:
    """What Clear removed; leased blocks follow when their lease ends."""

    blocks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds after which the blocks of a namespace expire, by root hash, and those of all others.
    Infinity: never."""

    own: Mapping[bytes, float]
    others: float


@dataclass(frozen=True, slots=True)
class Drained:
    """What a node has handed over to others, and the blocks that it alone still has."""

    handed_over: int
    left: int


def range_of(span: Span | None) -> pb.Range | None:
    """The range of the wire; absent means all."""
    return None if span is None else pb.Range(first=span.first, count=span.count)


def miss_of(reason: int) -> Miss | None:
    """The reason of the wire; None when there is none."""
    if reason == pb.MISS_REASON_UNSPECIFIED:
        return None
    # a reason that this version does not know is still a miss, never an error
    return _MISSES.get(reason, Miss.ABSENT)


def match_of(reply: pb.MatchReply, asked: int) -> Match:
    """The answer to `asked` hashes, or ProtocolViolation."""
    lengths = tuple(reply.lengths)
    if not len(lengths) == reply.blocks <= asked:
        raise ProtocolViolation(
            f"Match: {reply.blocks} blocks with {len(lengths)} lengths for {asked} hashes"
        )
    if max(lengths, default=0) > MAX_PAYLOAD_BYTES:
        raise ProtocolViolation(f"Match: a block of {max(lengths)} bytes; no payload has that")
    return Match(
        blocks=reply.blocks,
        lengths=lengths,
        # thousands of them: the loop is C's
        tiers=tuple(map(_TIERS.get, reply.tiers, repeat(Tier.UNKNOWN))),
        miss=miss_of(reply.miss),
        lease_id=reply.lease_id,
        lease_ms=reply.lease_ms,
        owners=_owners_of(reply),
    )


def _owners_of(reply: pb.MatchReply) -> tuple[str, ...]:
    if not reply.owner:
        return ()
    names = ("", *reply.owners)
    if len(reply.owner) != reply.blocks or max(reply.owner) >= len(names):
        raise ProtocolViolation(
            f"Match: {len(reply.owner)} owners, the last of them number {max(reply.owner)}, for "
            f"{reply.blocks} blocks and {len(reply.owners)} nodes"
        )
    return tuple(map(names.__getitem__, reply.owner))


def puts_of(reply: pb.PutReply, sent: Sequence[bytes]) -> list[Put]:
    """One result for each block that was sent, in order, or ProtocolViolation."""
    if [result.chain_hash for result in reply.results] != list(sent):
        raise ProtocolViolation(
            f"Put: {len(reply.results)} results do not answer the {len(sent)} blocks"
        )
    return [put_of(result.chain_hash, result.status, result.reason) for result in reply.results]


def put_of(chain_hash: bytes, status: int, reason: str) -> Put:
    """A result with the status of the wire, or ProtocolViolation."""
    known = _PUT_STATUSES.get(status)
    if known is None:
        raise ProtocolViolation(f"Put: a result has the status {status}")
    return Put(chain_hash, known, reason)


def page_of(reply: admin_pb2.ListReply, after: bytes) -> list[Listed]:
    """The answer of Admin.List to a page that begins behind `after`, or ProtocolViolation."""
    for block in reply.blocks:
        if {len(block.chain_hash), len(block.root_hash)} != {HASH_BYTES}:
            raise ProtocolViolation("List: a hash does not have 32 bytes")
        if not 0 < block.length <= MAX_PAYLOAD_BYTES:
            raise ProtocolViolation(f"List: a block of {block.length} bytes; no payload has that")
        # a walk that does not go on would never end
        if block.chain_hash <= after:
            raise ProtocolViolation(f"List: {block.chain_hash.hex()} is not behind {after.hex()}")
        after = block.chain_hash
    return [
        Listed(
            block.chain_hash,
            block.root_hash,
            block.length,
            block.first_token,
            block.tokens,
            tuple(block.tiers),
        )
        for block in reply.blocks
    ]


def lifetimes_of(reply: admin_pb2.LifetimesReply) -> Lifetimes:
    """The answer of Admin.Lifetimes, or ProtocolViolation."""
    own = {lifetime.root_hash: lifetime.seconds for lifetime in reply.lifetimes}
    if not {len(root_hash) for root_hash in own} <= {HASH_BYTES}:
        raise ProtocolViolation("Lifetimes: a root hash does not have 32 bytes")
    for seconds in (reply.default_seconds, *own.values()):
        if not seconds > 0:
            raise ProtocolViolation(f"Lifetimes: blocks that expire after {seconds} s")
    return Lifetimes(own, reply.default_seconds)


def changes_of(frame: pb.WatchFrame, sequence: int) -> Changes:
    """The frame of Watch that comes `sequence`-th, or ProtocolViolation."""
    if frame.sequence != sequence:
        raise ProtocolViolation(f"Watch: frame {frame.sequence} where {sequence} comes next")
    stored, removed = frozenset(frame.stored), frozenset(frame.removed)
    if not {len(name) for name in stored | removed} <= {HASH_BYTES}:
        raise ProtocolViolation("Watch: a hash does not have 32 bytes")
    if stored & removed:
        raise ProtocolViolation("Watch: a block is stored and removed at one time")
    return Changes(sequence, stored, removed, frame.reset, frame.current)


def stats_of(reply: admin_pb2.StatsReply) -> Stats:
    """The answer of Admin.Stats."""
    return Stats(
        node=reply.node,
        version=reply.version,
        uptime_s=reply.uptime_s,
        blocks=reply.blocks,
        leases=reply.leases,
        tiers=tuple(
            TierStats(
                tier.tier,
                tier.blocks,
                tier.used_bytes,
                tier.capacity_bytes,
                tier.cold_blocks,
                tier.cold_bytes,
            )
            for tier in reply.tiers
        ),
        counters=dict(reply.counters),
    )

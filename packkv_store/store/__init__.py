"""The domain: blocks that can be found, published, fetched, leased and cleared. No gRPC in here."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from packkv_store.block import ChainHash, Span
from packkv_store.store.answers import (
    BlockAnswer,
    Changes,
    LifetimesInForce,
    Listed,
    Located,
    Match,
    PutResult,
    StoreStats,
)
from packkv_store.store.layout import Layout
from packkv_store.store.verdict import Verdict
from packkv_store.tenant import Tenant
from packkv_store.tiers.ram import RamTier


class Uploading(Protocol):
    """The taking end of one Put stream."""

    async def start(self, chain_hash: ChainHash, length: int) -> None:
        """The next block begins. Raises RequestError, LimitExceeded."""

    async def data(self, piece: memoryview) -> None:
        """The next bytes of the block. Raises RequestError when there are too many."""

    async def reserve(self, blocks: Sequence[tuple[ChainHash, int]]) -> list[memoryview | None]:
        """Room for the next blocks, named with their lengths: where the bytes of each go, or None
        where none are wanted.

        Answers for the first block at least, and for fewer than all when they take more room than
        a stream may have at one time: ask for the rest when these are filled. Raises RequestError.
        """

    def filled(self, count: int, verdicts: Sequence[Verdict | None] = ()) -> None:
        """The first `count` reserved places that have not been filled yet hold their bytes now.

        `verdicts` has one for each of them from whoever judged the bytes where they are, with
        nobody left who could write there; without, they are read once more.
        """

    async def finish(self) -> list[PutResult]:
        """One result for each start, when all that is stored is as safe as it gets."""


class Downloading(Protocol):
    """The giving end of one Get stream."""

    @property
    def answers(self) -> Sequence[BlockAnswer]:
        """One for each block asked for."""

    async def layout(self, groups: int) -> Layout:
        """In which order `runs` gives the bytes: with one group, payload after payload; with more,
        all heads, then all blocks' layers in at most `groups` groups."""

    def runs(self, layout: Layout) -> AsyncIterator[list[memoryview]]:
        """The bytes of the layout, in order and without gaps. Raises CorruptBlock."""


class Giving(Protocol):
    """The half of a store that finds and gives."""

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        """The longest run of present blocks from the front, leased."""

    def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AbstractAsyncContextManager[Downloading]:
        """Gives blocks, which stay where they are until the context is left."""

    async def get_profile(self, tenant: Tenant, digest: bytes) -> bytes | None:
        """The profile in force, or None."""


class Store(Giving, Protocol):
    """What the RPC layer speaks to: the block store itself, or a layer around it."""

    def put(self, tenant: Tenant) -> AbstractAsyncContextManager[Uploading]:
        """Takes blocks. Leaving the context before `finish` drops the unfinished block alone."""

    async def locate(
        self,
        tenant: Tenant,
        hashes: Sequence[ChainHash],
        layers: Span,
        heads: Span,
        lease_seconds: float,
    ) -> Located:
        """Where the blocks are in the tenant's arena, leased, for who can read there himself."""

    def arena(self, tenant: Tenant) -> RamTier:
        """The memory in which `locate` and `put` have the tenant's blocks."""

    async def renew(self, tenant: Tenant, lease_id: int, seconds: float) -> float:
        """Seconds that remain; 0 when the lease is unknown or over."""

    async def release(self, tenant: Tenant, lease_id: int) -> None:
        """Ends a lease; an unknown one is over already."""

    async def put_profile(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        """Stores a profile unless there is one; answers the one in force."""

    async def clear(self, root_hash: bytes | None) -> tuple[int, int]:
        """Removes one namespace's blocks, or all; answers blocks and payload bytes."""

    async def set_lifetime(self, root_hash: bytes, seconds: float | None) -> None:
        """How long the blocks of a namespace stay on this node, those that are there as well,
        counted from their Put; infinity: for ever, None: as long as all others.

        Raises LimitExceeded, TierFailure.
        """

    async def lifetimes(self) -> LifetimesInForce:
        """Of every namespace that has one of its own, and of the others."""

    async def page(self, tenant: Tenant, after: bytes, limit: int) -> list[Listed]:
        """At most `limit` of the tenant's blocks on this node, ascending by chain hash, those
        after `after` (empty: from the first). An empty page is behind the last one."""

    def watch(self, tenant: Tenant, snapshot: bool) -> AsyncGenerator[Changes, None]:
        """What the tenant has on this node, if `snapshot`, and how that changes, without an end.

        Begins with `reset`, and begins again whenever the caller has fallen too far behind. Raises
        LimitExceeded, and Leaving when the node stops.
        """

    async def stats(self) -> StoreStats:
        """The state of the node."""

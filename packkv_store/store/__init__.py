"""The domain: blocks that can be found, published, fetched, leased and cleared. No gRPC in here."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from packkv_store.block import ChainHash, Span
from packkv_store.store.answers import BlockAnswer, Match, Piece, PutResult, StoreStats
from packkv_store.tenant import Tenant


class Uploading(Protocol):
    """The taking end of one Put stream."""

    async def start(self, chain_hash: ChainHash, length: int) -> None:
        """The next block begins. Raises RequestError, LimitExceeded."""

    async def data(self, piece: memoryview) -> None:
        """The next bytes of the block. Raises RequestError when there are too many."""

    async def finish(self) -> list[PutResult]:
        """One result for each start, when all that is stored is as safe as it gets."""


class Downloading(Protocol):
    """The giving end of one Get stream."""

    @property
    def answers(self) -> Sequence[BlockAnswer]:
        """One for each block asked for."""

    def pieces(self) -> AsyncIterator[Piece]:
        """Heads of all blocks, then layer after layer of all blocks. Raises CorruptBlock."""


class Store(Protocol):
    """What the RPC layer speaks to: the block store itself, or a layer around it."""

    async def match(
        self, tenant: Tenant, hashes: Sequence[ChainHash], heads: Span, lease_seconds: float
    ) -> Match:
        """The longest run of present blocks from the front, leased."""

    def put(self, tenant: Tenant) -> AbstractAsyncContextManager[Uploading]:
        """Takes blocks. Leaving the context before `finish` drops the unfinished block alone."""

    def get(
        self, tenant: Tenant, hashes: Sequence[ChainHash], layers: Span, heads: Span
    ) -> AbstractAsyncContextManager[Downloading]:
        """Gives blocks, which stay where they are until the context is left."""

    async def renew(self, tenant: Tenant, lease_id: int, seconds: float) -> float:
        """Seconds that remain; 0 when the lease is unknown or over."""

    async def release(self, tenant: Tenant, lease_id: int) -> None:
        """Ends a lease; an unknown one is over already."""

    async def put_profile(self, tenant: Tenant, digest: bytes, profile: bytes) -> bytes:
        """Stores a profile unless there is one; answers the one in force."""

    async def get_profile(self, tenant: Tenant, digest: bytes) -> bytes | None:
        """The profile in force, or None."""

    async def clear(self, root_hash: bytes | None) -> tuple[int, int]:
        """Removes one namespace's blocks, or all; answers blocks and payload bytes."""

    async def stats(self) -> StoreStats:
        """The state of the node."""

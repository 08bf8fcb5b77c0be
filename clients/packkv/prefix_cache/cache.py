"""PrefixCache: the one class that an engine integration talks to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

from packkv.client import Store
from packkv.client.paths import Buffer
from packkv.hashing import TokenIds, chain_hashes
from packkv.identity import Namespace
from packkv.prefix_cache.config import PrefixCacheConfig
from packkv.prefix_cache.counters import Counters, Tally
from packkv.prefix_cache.forms import Forms
from packkv.prefix_cache.identity import Identity
from packkv.prefix_cache.known import KnownBlocks
from packkv.prefix_cache.load import LoadedPrefix, LoadReport
from packkv.prefix_cache.loader import Loader
from packkv.prefix_cache.publisher import Publisher
from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.entropy import ColdHead, DecodeSections
from packkv_kernels.errors import PayloadError
from packkv_kernels.format.header import MAX_COMPUTE_MS

# The API's limit of hashes in one Match: a million tokens.
_MAX_BLOCKS = 16_384


class PrefixCache:
    """Loads and publishes prefixes of one namespace. Thread-safe.

    No method but the constructor raises: any trouble with the store, the network or a payload is
    fewer blocks, a count in `counters` and one log line.

    Args:
        client: of the store; stays the caller's to close, after this.
        namespace: what the blocks are; its `codec` is `codec_identity(codec)`.
        codec: the codec of the payloads.
        shape: layers, KV heads and head_dim that this worker holds.
        first_head: the first KV head that it holds.
        config: deadlines and bounds.
        decode: who decodes the sections of cold payloads, see `section_decoder`.

    Raises:
        ConfigError: namespace and codec contradict each other.
    """

    def __init__(
        self,
        client: Store,
        namespace: Namespace,
        codec: CodecConfig,
        shape: CacheShape,
        *,
        first_head: int = 0,
        config: PrefixCacheConfig | None = None,
        decode: DecodeSections = ColdHead.decode,
    ) -> None:
        self.namespace = namespace
        self.config = config or PrefixCacheConfig()
        self._tally = Tally(self.config.log_interval_s)
        self._known = KnownBlocks(self.config.known_blocks)
        identity = Identity(namespace, codec, shape, first_head)
        forms = Forms(self.config.cold, self._tally, decode=decode)
        self._loader = Loader(client, identity, self.config, self._tally, self._known, forms)
        self._publisher = Publisher(client, self.config, self._tally, self._known, forms)

    def load(
        self,
        token_ids: TokenIds,
        max_tokens: int | None = None,
        *,
        held_blocks: int = 0,
        root_hash: bytes | None = None,
        layerwise: bool = False,
    ) -> LoadedPrefix:
        """The longest prefix that is worth fetching, verified, within the deadline.

        Args:
            token_ids: the whole prompt; at least one token is always left to compute.
            max_tokens: the end of what is wanted; None is the end of the prompt.
            held_blocks: blocks at its front that the worker has already; the load begins after.
            root_hash: of a namespace that differs in its tenant salt alone; None: the cache's own.
            layerwise: the last blocks may still be arriving, layer after layer, when this returns:
                see `LoadedPrefix.arriving`. Its `take` raises PrefixLost when they do not.
        """
        try:
            usable = len(token_ids) - 1
            if max_tokens is not None:
                usable = min(usable, max_tokens)
            hashes = self._hashes(token_ids, usable // self.namespace.block_size, root_hash)
            if len(hashes) <= held_blocks:
                return LoadedPrefix([], 0, LoadReport())
            return self._loader.load(
                hashes[held_blocks:], held_blocks, root_hash, layerwise=layerwise
            )
        # the boundary to the engine: a cache that fails is a cache that is empty
        except Exception as error:
            reason = self._tally.trouble("load", error)
            self._tally.add(loads=1)
            self._tally.miss(reason)
            return LoadedPrefix([], 0, LoadReport(stopped_by=reason))

    def unpublished(self, token_ids: TokenIds, root_hash: bytes | None = None) -> list[int]:
        """The full blocks of `token_ids` that the store is not known to have, by index.

        Only these are worth compressing: `publish` leaves the others out.
        """
        try:
            hashes = self._hashes(token_ids, _MAX_BLOCKS, root_hash)
            return [i for i, chain_hash in enumerate(hashes) if chain_hash not in self._known]
        except Exception as error:
            self._tally.trouble("publish", error)
            return []

    def publish(
        self,
        token_ids: TokenIds,
        blocks: Sequence[tuple[int, Buffer]],
        root_hash: bytes | None = None,
    ) -> int:
        """Queue (block index, payload) pairs for the store; how many were queued. Never waits.

        The payloads are not copied: they must not change afterwards.
        """
        try:
            hashes = self._hashes(token_ids, _MAX_BLOCKS, root_hash)
            return self._publisher.offer([(hashes[i], payload) for i, payload in blocks])
        except Exception as error:
            self._tally.dropped(self._tally.trouble("publish", error), len(blocks))
            return 0

    def count_refused(self, error: PayloadError) -> None:
        """Counts a loaded payload whose sections the worker found unsound: a miss like others."""
        self._tally.miss(error.reason)
        self._tally.warn(f"payload/{error.reason}", f"load: {error}; the rest is computed")

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """Tell how long computing took; loads are compared with it.

        Less than a block is left out: a short prefill measures its fixed cost, not its rate.
        """
        if tokens >= self.namespace.block_size:
            self._loader.prefill.observe(tokens, seconds)

    @property
    def block_compute_ms(self) -> float:
        """Milliseconds that a block takes to compute, as payloads say it; 0 until it is known."""
        tokens_per_s = self._loader.prefill.per_s()
        if not tokens_per_s:
            return 0.0
        return min(1000 * self.namespace.block_size / tokens_per_s, MAX_COMPUTE_MS)

    @property
    def counters(self) -> Counters:
        """A snapshot of what happened so far."""
        return self._tally.snapshot()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything published was answered or dropped; False when time ran out."""
        return self._publisher.flush(timeout_s)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Publish what is queued for at most `timeout_s`, drop the rest; True if all went.

        What is still arriving ends within that time or by its own deadline.
        """
        ends_at = time.monotonic() + timeout_s
        all_went = self._publisher.close(timeout_s)
        self._loader.close(ends_at - time.monotonic())
        return all_went

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hashes(self, token_ids: TokenIds, blocks: int, root_hash: bytes | None) -> list[bytes]:
        size = self.namespace.block_size
        tokens = token_ids[: max(0, min(blocks, _MAX_BLOCKS)) * size]
        return chain_hashes(root_hash or self._loader.root_hash, tokens, size)

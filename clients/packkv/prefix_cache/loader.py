"""Fetches a prefix: match, decide, fetch, verify, span by span, until time or blocks run out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from packkv.client import Client, Fetched, Match, Span
from packkv.errors import StoreError
from packkv.prefix_cache.config import PrefixCacheConfig
from packkv.prefix_cache.counters import Tally
from packkv.prefix_cache.estimate import Rate, blocks_worth_loading
from packkv.prefix_cache.identity import Identity
from packkv.prefix_cache.known import KnownBlocks
from packkv_kernels.errors import PayloadError
from packkv_kernels.format.payload import Payload, read_payload

# Of the time that is left, the share that a span may be expected to take.
_SAFE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How a load went. `stopped_by` is why it has not all blocks asked for, as in `Counters`."""

    asked_blocks: int = 0
    matched_blocks: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0
    stopped_by: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedPrefix:
    """`num_tokens` tokens of a prompt, from where the load began: one verified payload a block."""

    payloads: list[Payload]
    num_tokens: int
    report: LoadReport


class Loader:
    """Loads prefixes of one identity through one client, and learns how fast that is."""

    def __init__(
        self,
        client: Client,
        identity: Identity,
        config: PrefixCacheConfig,
        tally: Tally,
        known: KnownBlocks,
    ) -> None:
        self._client = client
        self._identity = identity
        self._config = config
        self._tally = tally
        self._known = known
        self.root_hash = identity.namespace.root_hash()
        self.prefill = Rate()
        self.fetching = Rate()
        self.calling = Rate()
        self._measured_at = time.monotonic()

    def load(
        self, chain_hashes: Sequence[bytes], first_block: int = 0, root_hash: bytes | None = None
    ) -> LoadedPrefix:
        """What the store has of these blocks and is worth fetching; an outage is an empty answer.

        Whatever the store does, this returns within the deadline.

        Args:
            chain_hashes: names of the blocks, in order.
            first_block: place of the first of them in the sequence.
            root_hash: that they begin with; None: the identity's.
        """
        budget_s = self._budget_s(len(chain_hashes))
        load = _Load(time.monotonic(), budget_s, first_block, root_hash or self.root_hash)
        try:
            self._fill(load, chain_hashes)
        except StoreError as error:
            load.stopped_by = self._tally.trouble("load", error)
        return self._finish(load, len(chain_hashes))

    def _budget_s(self, blocks: int) -> float:
        """The deadline, or the time that the load could save when that is shorter."""
        rate = self.prefill.per_s()
        if rate is None:
            return self._config.deadline_s
        saves_s = blocks * self._identity.namespace.block_size / rate
        return min(self._config.deadline_s, max(saves_s, self._config.min_deadline_s))

    def _fill(self, load: _Load, chain_hashes: Sequence[bytes]) -> None:
        match = self._match(load, chain_hashes)
        load.matched_blocks = match.blocks
        self._known.add(chain_hashes[: match.blocks])
        self._known.forget(chain_hashes[match.blocks :])
        try:
            while len(load.payloads) < match.blocks and load.stopped_by is None:
                self._fetch_span(load, chain_hashes, match)
        finally:
            if match.lease_id:
                self._client.release(match.lease_id, wait=False)
        if load.stopped_by is None and match.blocks < len(chain_hashes):
            load.stopped_by = match.miss or "absent"

    def _match(self, load: _Load, chain_hashes: Sequence[bytes]) -> Match:
        started = time.monotonic()
        shape = self._identity.shape
        match = self._client.match(
            chain_hashes,
            heads=Span(self._identity.first_head, shape.heads),
            lease_ms=int(1000 * (load.left_s() + 1)),
            deadline_s=load.left_s(),
        )
        self.calling.observe(1, time.monotonic() - started)
        return match

    def _fetch_span(self, load: _Load, chain_hashes: Sequence[bytes], match: Match) -> None:
        """Fetch and verify the next blocks, or set `stopped_by`."""
        first = len(load.payloads)
        count = self._worthwhile(load, match.lengths[first:])
        if count == 0:
            load.stopped_by = "late" if load.left_s() <= 0 else "slower"
            return
        lengths = match.lengths[first : first + count]
        if max(lengths) > self._identity.payload_limit:
            load.stopped_by = "protocol"
            return
        before, started = load.fetched_bytes, time.monotonic()
        try:
            fetched = self._client.get(
                chain_hashes[first : first + count],
                lease_id=match.lease_id,
                max_bytes=sum(lengths),
                on_bytes=load.count_bytes,
                deadline_s=load.left_s(),
            )
            self._take(load, fetched, chain_hashes)
        finally:
            # a fetch that fails has measured the store as well
            self._measured(load, load.fetched_bytes - before, time.monotonic() - started)

    def _take(self, load: _Load, fetched: Sequence[Fetched], chain_hashes: Sequence[bytes]) -> None:
        """Verified payloads into the load, up to the first that is missing or refused."""
        for block in fetched:
            index = len(load.payloads)
            if block.data is None:
                load.stopped_by = block.miss or "absent"
                self._known.forget([chain_hashes[index]])
                return
            if not self._verify(load, block.data, chain_hashes[index], index):
                return

    def _worthwhile(self, load: _Load, lengths: Sequence[int]) -> int:
        """How many of the next blocks make the next span; 0 when recomputing is faster."""
        bytes_per_s = self.fetching.per_s()
        worth = blocks_worth_loading(
            lengths,
            block_tokens=self._identity.namespace.block_size,
            tokens_per_s=self.prefill.per_s(),
            bytes_per_s=bytes_per_s,
            overhead_s=self._overhead_s(),
            # a span that just misses the deadline is lost whole
            budget_s=_SAFE_SHARE * load.left_s(),
        )
        due = time.monotonic() - self._measured_at >= self._config.probe_after_s
        load.probing = worth == 0 and due and not load.payloads and load.left_s() > 0
        if load.probing:
            return _fitting(lengths, self._config.probe_bytes)
        if worth and bytes_per_s is None:
            return _fitting(lengths[:worth], self._config.probe_bytes)
        return _fitting(lengths[:worth], self._config.span_bytes)

    def _overhead_s(self) -> float:
        """Seconds that a call takes before its first byte: those of a Match."""
        calls_per_s = self.calling.per_s()
        return 1 / calls_per_s if calls_per_s else 0.0

    def _measured(self, load: _Load, received: int, seconds: float) -> None:
        # the overhead is counted apart, but it varies: never believe that it was everything
        streaming_s = max(seconds - self._overhead_s(), seconds / 10)
        learn = self.fetching.replace if load.probing else self.fetching.observe
        learn(received, streaming_s)
        self._measured_at = time.monotonic()

    def _verify(self, load: _Load, data: memoryview, chain_hash: bytes, index: int) -> bool:
        place = load.first_block + index
        expectation = self._identity.expect(load.root_hash, chain_hash, place)
        try:
            load.payloads.append(read_payload(data, expectation))
        except PayloadError as error:
            load.stopped_by = error.reason
            self._known.forget([chain_hash])
            self._tally.warn(
                f"payload/{error.reason}",
                f"load: block {place} ({chain_hash.hex()[:16]}) is refused: {error}",
            )
            return False
        return True

    def _finish(self, load: _Load, asked: int) -> LoadedPrefix:
        tokens = len(load.payloads) * self._identity.namespace.block_size
        if load.stopped_by is not None:
            self._tally.miss(load.stopped_by)
        self._tally.add(
            loads=1,
            asked_blocks=asked,
            hit_blocks=len(load.payloads),
            hit_tokens=tokens,
            fetched_bytes=load.fetched_bytes,
        )
        report = LoadReport(
            asked_blocks=asked,
            matched_blocks=load.matched_blocks,
            fetched_bytes=load.fetched_bytes,
            seconds=time.monotonic() - load.started_at,
            stopped_by=load.stopped_by,
        )
        return LoadedPrefix(load.payloads, tokens, report)


class _Load:
    """One load while it runs: what it has, and how long it still may take."""

    def __init__(
        self, started_at: float, budget_s: float, first_block: int, root_hash: bytes
    ) -> None:
        self.started_at = started_at
        self.first_block = first_block
        self.root_hash = root_hash
        self._ends_at = started_at + budget_s
        self.payloads: list[Payload] = []
        self.matched_blocks = 0
        self.fetched_bytes = 0
        self.stopped_by: str | None = None
        # the span under way was not worth its time; it only measures whether the store got faster
        self.probing = False

    def count_bytes(self, received: int) -> None:
        self.fetched_bytes += received

    def left_s(self) -> float:
        return self._ends_at - time.monotonic()


def _fitting(lengths: Sequence[int], size: int) -> int:
    """How many lengths from the front fit into `size`; at least one."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > size and count:
            return count
    return len(lengths)

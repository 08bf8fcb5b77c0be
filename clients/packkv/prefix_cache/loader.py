"""Fetches a prefix: match, decide, fetch, verify, span by span, until time or blocks run out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from packkv.client import Fetched, Match, Span, Store
from packkv.errors import LimitExceeded, StoreError
from packkv.prefix_cache.arriving import Abandoned, ArrivingPrefix, Unusable
from packkv.prefix_cache.config import PrefixCacheConfig
from packkv.prefix_cache.counters import Tally
from packkv.prefix_cache.estimate import Rate, blocks_worth_loading
from packkv.prefix_cache.flights import Flight, Flights
from packkv.prefix_cache.forms import Forms, OutOfTime
from packkv.prefix_cache.identity import Identity
from packkv.prefix_cache.known import KnownBlocks
from packkv.prefix_cache.load import Count, FetchSpan, Load, LoadedPrefix, LoadReport, fitting
from packkv_kernels.errors import PayloadError
from packkv_kernels.format.payload import Payload, read_payload

# Of the time that is left, the share that a span may be expected to take.
_SAFE_SHARE = 0.8
# Loads that come layer by layer at one time; one more comes whole.
_MAX_ARRIVING = 4


class Loader:
    """Loads prefixes of one identity through one client, and learns how fast that is.

    Loads at one time fetch a block once: whoever wants it meanwhile waits for it, within its own
    deadline.
    """

    def __init__(
        self,
        client: Store,
        identity: Identity,
        config: PrefixCacheConfig,
        tally: Tally,
        known: KnownBlocks,
        forms: Forms,
    ) -> None:
        self._client = client
        self._identity = identity
        self._config = config
        self._tally = tally
        self._known = known
        self._forms = forms
        self.root_hash = identity.namespace.root_hash()
        self.prefill = Rate()
        self.fetching = Rate()
        self.calling = Rate()
        self._measured_at = time.monotonic()
        self._flights = Flights()
        self._arriving = threading.BoundedSemaphore(_MAX_ARRIVING)

    def load(
        self,
        chain_hashes: Sequence[bytes],
        first_block: int = 0,
        root_hash: bytes | None = None,
        *,
        layerwise: bool = False,
    ) -> LoadedPrefix:
        """What the store has of these blocks and is worth fetching; an outage is an empty answer.

        Whatever the store does, this returns within the deadline.

        Args:
            chain_hashes: names of the blocks, in order.
            first_block: place of the first of them in the sequence.
            root_hash: that they begin with; None: the identity's.
            layerwise: the caller can take the last blocks layer by layer, and bear their loss.
        """
        budget_s = self._budget_s(len(chain_hashes))
        load = Load(time.monotonic(), budget_s, first_block, root_hash or self.root_hash)
        load.layerwise = layerwise
        try:
            self._fill(load, chain_hashes)
        except StoreError as error:
            load.stopped_by = self._tally.trouble("load", error)
        return self._finish(load, len(chain_hashes))

    def close(self, timeout_s: float) -> None:
        """Waits for what is still arriving; nothing comes layer by layer any more."""
        ends_at = time.monotonic() + timeout_s
        for _ in range(_MAX_ARRIVING):
            self._arriving.acquire(timeout=max(0.0, ends_at - time.monotonic()))

    def _budget_s(self, blocks: int) -> float:
        """The deadline, or the time that the load could save when that is shorter."""
        rate = self.prefill.per_s()
        if rate is None:
            return self._config.deadline_s
        saves_s = blocks * self._identity.namespace.block_size / rate
        return min(self._config.deadline_s, max(saves_s, self._config.min_deadline_s))

    def _fill(self, load: Load, chain_hashes: Sequence[bytes]) -> None:
        match = self._match(load, chain_hashes)
        load.matched_blocks = match.blocks
        self._known.add(chain_hashes[: match.blocks])
        self._known.forget(chain_hashes[match.blocks :])
        try:
            while load.blocks < match.blocks and load.stopped_by is None:
                self._fetch_span(load, chain_hashes, match)
        finally:
            # what arrives in the background lets go of it itself
            if match.lease_id and load.arriving is None:
                self._client.release(match.lease_id, wait=False)
        if load.stopped_by is None and match.blocks < len(chain_hashes):
            load.stopped_by = match.miss or "absent"

    def _match(self, load: Load, chain_hashes: Sequence[bytes]) -> Match:
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

    def _fetch_span(self, load: Load, chain_hashes: Sequence[bytes], match: Match) -> None:
        """Fetch and verify the next blocks, or set `stopped_by`."""
        first = load.blocks
        if load.arriving is not None:
            # at its start nothing more was worth it
            load.stopped_by = "slower"
            return
        worth = self._worthwhile(load, match.lengths[first:])
        if worth == 0:
            load.stopped_by = "late" if load.left_s() <= 0 else "slower"
            return
        lengths = match.lengths[first : first + worth]
        if max(lengths) > self._identity.payload_limit:
            load.stopped_by = "protocol"
            return
        groups = self._groups(load, lengths)
        layered = groups > 1 and self._arriving.acquire(blocking=False)
        count = worth if layered else self._whole_span(load, lengths)
        flight, mine = self._flights.board(chain_hashes[first : first + count])
        if layered and mine < worth:
            # others fetch some of it: nothing may follow what comes layer by layer
            self._arriving.release()
            layered = False
        if mine == 0:
            self._join(load, flight, chain_hashes[first : first + count])
            return
        span = FetchSpan(
            flight,
            chain_hashes[first : first + mine],
            lengths[:mine],
            match.tiers[first : first + mine],
            match.lease_id,
        )
        if layered:
            self._begin(load, span, groups)
        else:
            self._lead(load, span)

    def _join(self, load: Load, flight: Flight, chain_hashes: Sequence[bytes]) -> None:
        """Takes what another load fetches; nothing when that fails, so that it is tried again."""
        if not flight.wait(load.left_s()):
            load.stopped_by = "late"
            return
        for chain_hash in chain_hashes:
            payload = flight.payloads.get(chain_hash)
            if payload is None:
                load.stopped_by = flight.refused.get(chain_hash)
                return
            load.payloads.append(payload)
            load.shared_blocks += 1

    def _lead(self, load: Load, span: FetchSpan) -> None:
        """Fetches a span, for this load and those that wait for it."""
        before = len(load.payloads)
        received = load.fetched_bytes
        started, given_s = time.monotonic(), load.left_s()
        try:
            try:
                fetched = self._client.get(
                    span.chain_hashes,
                    lease_id=span.lease_id,
                    max_bytes=sum(span.lengths),
                    on_bytes=load.count_bytes,
                    deadline_s=given_s,
                )
            except LimitExceeded:
                self._measured_refusal(load, given_s)
                raise
            finally:
                seconds, come = time.monotonic() - started, load.fetched_bytes - received
                self._forms.fetched(self._client.path, span.tiers, come, self._streaming(seconds))
            self._take(load, fetched, span.chain_hashes)
        finally:
            # a fetch that fails has measured the store as well, and verifying and decoding are
            # part of what fetching takes
            self._measured(load, load.fetched_bytes - received, time.monotonic() - started)
            payloads = load.payloads[before:]
            # another's deadline may be another
            verdict = None if load.stopped_by == "late" else load.stopped_by
            self._flights.land(span.flight, span.chain_hashes, payloads, verdict)

    def _take(self, load: Load, fetched: Sequence[Fetched], chain_hashes: Sequence[bytes]) -> None:
        """Verified payloads into the load, up to the first that is missing or refused."""
        for block, chain_hash in zip(fetched, chain_hashes, strict=True):
            if block.data is None:
                load.stopped_by = block.miss or "absent"
                self._known.forget([chain_hash])
                return
            place = load.first_block + len(load.payloads)
            expectation = self._identity.expect(load.root_hash, chain_hash, place)
            try:
                payload = read_payload(block.data, expectation)
                load.payloads.append(self._forms.resident(payload, load.left_s()))
            except PayloadError as error:
                load.stopped_by = self._refused(error, place, chain_hash)
                return
            except OutOfTime:
                load.stopped_by = "late"
                return

    def _refused(self, error: PayloadError, place: int, chain_hash: bytes) -> str:
        self._known.forget([chain_hash])
        self._tally.warn(
            f"payload/{error.reason}",
            f"load: block {place} ({chain_hash.hex()[:16]}) is refused: {error}",
        )
        return error.reason

    def _begin(self, load: Load, span: FetchSpan, groups: int) -> None:
        """Has a span fetched in the background, layer by layer; returns when its heads are here."""
        place = load.first_block + len(load.payloads)
        try:
            expectations = [
                self._identity.expect(load.root_hash, chain_hash, place + number)
                for number, chain_hash in enumerate(span.chain_hashes)
            ]
            limit, decode = self._identity.payload_limit, self._forms.coder.decode_sections
            arriving = ArrivingPrefix(expectations, limit, load.ends_at, decode)
            threading.Thread(
                target=self._receive,
                args=(load, span, arriving, groups),
                name="packkv-arriving",
                daemon=True,
            ).start()
        except BaseException:
            # no thread is to be had: nobody may wait for this flight
            self._flights.land(span.flight, span.chain_hashes, [], None)
            self._arriving.release()
            raise
        load.arriving = arriving
        if not arriving.is_open():
            load.stopped_by = arriving.failure
            load.is_lost = True

    def _receive(self, load: Load, span: FetchSpan, arriving: ArrivingPrefix, groups: int) -> None:
        """Fetches a span layer by layer, on a thread of its own."""
        received = Count()
        payloads: list[Payload] = []
        started, given_s = time.monotonic(), load.left_s()
        try:
            self._client.get(
                span.chain_hashes,
                lease_id=span.lease_id,
                max_bytes=sum(span.lengths),
                on_bytes=received.add,
                on_layers=arriving.receive,
                groups=groups,
                deadline_s=given_s,
            )
            payloads = arriving.payloads()
        except Abandoned:
            arriving.fail("abandoned")
        except Unusable as block:
            chain_hash = span.chain_hashes[block.block]
            self._known.forget([chain_hash])
            if block.error is not None:
                place = load.first_block + len(load.payloads) + block.block
                self._refused(block.error, place, chain_hash)
            arriving.fail(block.reason)
        # the boundary to a thread that nobody waits for
        except Exception as error:
            if isinstance(error, LimitExceeded):
                self._measured_refusal(load, given_s)
            arriving.fail(self._tally.trouble("load", error))
        finally:
            seconds = time.monotonic() - started
            self._measured(load, received.bytes, seconds)
            self._forms.fetched(
                self._client.path,
                span.tiers,
                received.bytes,
                self._streaming(seconds - arriving.proving_s),
                overlaps=True,
            )
            # all or nothing: who waits for it fetches what is sound for itself
            self._flights.land(span.flight, span.chain_hashes, payloads, None)
            if span.lease_id:
                self._client.release(span.lease_id, wait=False)
            self._count_arrived(load, arriving, received.bytes)
            # last: `close` waits for it
            self._arriving.release()

    def _count_arrived(self, load: Load, arriving: ArrivingPrefix, received: int) -> None:
        self._tally.add(fetched_bytes=received)
        if arriving.failure is None:
            tokens = arriving.blocks * self._identity.namespace.block_size
            self._tally.add(hit_blocks=arriving.blocks, hit_tokens=tokens)
            self._tally.add(loaded_cold=arriving.cold_blocks)
        elif arriving.failure != "abandoned":
            self._tally.miss(arriving.failure)
            self._tally.warn(
                f"layers/{arriving.failure}",
                f"load: the layers of {arriving.blocks} blocks did not all come: "
                f"{arriving.failure}; they are computed",
            )

    def _worthwhile(self, load: Load, lengths: Sequence[int]) -> int:
        """How many of the next blocks are worth fetching; 0 when recomputing is faster."""
        worth = blocks_worth_loading(
            lengths,
            block_tokens=self._identity.namespace.block_size,
            tokens_per_s=self.prefill.per_s(),
            bytes_per_s=self.fetching.per_s(),
            overhead_s=self._overhead_s(),
            # a span that just misses the deadline is lost whole
            budget_s=_SAFE_SHARE * load.left_s(),
        )
        due = time.monotonic() - self._measured_at >= self._config.probe_after_s
        load.probing = worth == 0 and due and not load.payloads and load.left_s() > 0
        return fitting(lengths, self._config.probe_bytes) if load.probing else worth

    def _whole_span(self, load: Load, lengths: Sequence[int]) -> int:
        """How many of the blocks worth fetching make the next span."""
        is_known = self.fetching.per_s() is not None
        return fitting(lengths, self._config.span_bytes if is_known else self._config.probe_bytes)

    def _groups(self, load: Load, lengths: Sequence[int]) -> int:
        """In how many groups of layers the blocks worth fetching should come; 1: whole."""
        size = sum(lengths)
        is_measured = self.fetching.per_s() is not None and not load.probing
        # on the same host all of it is there at once
        is_remote = self._client.path != "shared-memory"
        if not (load.layerwise and is_measured and is_remote):
            return 1
        if size > self._config.layered_bytes:
            return 1
        return min(self._identity.shape.layers, size // self._config.group_bytes)

    def _overhead_s(self) -> float:
        """Seconds that a call takes before its first byte: those of a Match."""
        calls_per_s = self.calling.per_s()
        return 1 / calls_per_s if calls_per_s else 0.0

    def _measured(self, load: Load, received: int, seconds: float) -> None:
        learn = self.fetching.replace if load.probing else self.fetching.observe
        learn(received, self._streaming(seconds))
        self._measured_at = time.monotonic()

    def _measured_refusal(self, load: Load, given_s: float) -> None:
        """The store holds this tenant to a rate by which a fetch would not end in time: that is
        known at once, and counts as if all of the time had passed and next to nothing come."""
        self._measured(load, 1, given_s)

    def _streaming(self, seconds: float) -> float:
        """Of the seconds of a fetch, those since its first byte."""
        # the overhead is counted apart, but it varies: never believe that it was everything
        return max(seconds - self._overhead_s(), seconds / 10)

    def _finish(self, load: Load, asked: int) -> LoadedPrefix:
        block_tokens = self._identity.namespace.block_size
        # a loss is counted by whoever received
        if load.stopped_by is not None and not load.is_lost:
            self._tally.miss(load.stopped_by)
        self._tally.add(
            loads=1,
            asked_blocks=asked,
            hit_blocks=len(load.payloads),
            hit_tokens=len(load.payloads) * block_tokens,
            shared_blocks=load.shared_blocks,
            fetched_bytes=load.fetched_bytes,
        )
        report = LoadReport(
            asked_blocks=asked,
            matched_blocks=load.matched_blocks,
            fetched_bytes=load.fetched_bytes,
            seconds=time.monotonic() - load.started_at,
            stopped_by=load.stopped_by,
        )
        arriving = None if load.is_lost else load.arriving
        blocks = len(load.payloads) + (0 if arriving is None else arriving.blocks)
        return LoadedPrefix(load.payloads, blocks * block_tokens, report, arriving)

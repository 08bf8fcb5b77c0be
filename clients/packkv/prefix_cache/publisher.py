"""Sends payloads to the store from a thread of its own; nobody ever waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from packkv.client import Put, PutStatus, Store
from packkv.client.paths import Buffer
from packkv.errors import DeadlineExceeded, LimitExceeded
from packkv.prefix_cache.batch_size import BatchSize
from packkv.prefix_cache.config import PrefixCacheConfig
from packkv.prefix_cache.counters import Tally
from packkv.prefix_cache.forms import Forms
from packkv.prefix_cache.known import KnownBlocks

Block = tuple[bytes, Buffer]


class Publisher:
    """A queue bounded in bytes, and one thread that empties it with Put.

    What does not fit is dropped and counted: the engine is never slowed down. Bytes count until
    the store has answered for them, so the bound is the memory that publishing can hold.
    """

    def __init__(
        self,
        client: Store,
        config: PrefixCacheConfig,
        tally: Tally,
        known: KnownBlocks,
        forms: Forms,
    ) -> None:
        self._client = client
        self._config = config
        self._tally = tally
        self._known = known
        self._forms = forms
        self._batch_size = BatchSize(config.publish_batch_bytes, config.publish_deadline_s)
        # guards everything below; notified whenever the queue or the state changes
        self._changed = threading.Condition()
        self._queue: deque[Block] = deque()
        self._held_bytes = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def offer(self, blocks: Sequence[Block]) -> int:
        """Queue blocks that fit and are not known; how many were queued. Returns at once."""
        queued = 0
        dropped = 0
        with self._changed:
            for chain_hash, payload in blocks:
                if chain_hash in self._known:
                    continue
                size = memoryview(payload).nbytes
                if self._closing or self._held_bytes + size > self._config.publish_queue_bytes:
                    dropped += 1
                    continue
                self._known.add([chain_hash])
                self._queue.append((chain_hash, payload))
                self._held_bytes += size
                queued += 1
            if queued:
                self._start()
                self._changed.notify_all()
            reason = "closed" if self._closing else "queue"
        if dropped:
            self._tally.dropped(reason, dropped)
        return queued

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued was answered or dropped; False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._held_bytes == 0, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Send what is queued for at most `timeout_s`, drop the rest, and stop; True if all went.

        A Put that is under way then ends by its own deadline, in a thread that nobody waits for.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        ends_at = time.monotonic() + timeout_s
        finished = self.flush(timeout_s)
        with self._changed:
            left = len(self._queue)
            self._held_bytes -= sum(memoryview(payload).nbytes for _, payload in self._queue)
            self._queue.clear()
            self._changed.notify_all()
        if left:
            self._tally.dropped("closed", left)
        if self._thread is not None:
            self._thread.join(max(0.0, ends_at - time.monotonic()))
        return finished

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="packkv-publish", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._send(batch)
            # the boundary to the engine: whatever happens, the thread lives and the count is right
            except Exception as error:
                self._known.forget(chain_hash for chain_hash, _ in batch)
                self._tally.dropped(self._tally.trouble("publish", error), len(batch))
            finally:
                with self._changed:
                    self._held_bytes -= sum(memoryview(payload).nbytes for _, payload in batch)
                    self._changed.notify_all()

    def _next_batch(self) -> list[Block]:
        """The blocks of the next Put; none when the publisher is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            batch: list[Block] = []
            size = 0
            while self._queue:
                size += memoryview(self._queue[0][1]).nbytes
                if batch and size > self._batch_size.bytes:
                    break
                batch.append(self._queue.popleft())
            return batch

    def _is_hurried(self) -> bool:
        """Whether the queue fills faster than it empties, so that blocks may soon be dropped."""
        with self._changed:
            return 2 * self._held_bytes > self._config.publish_queue_bytes

    def _send(self, batch: list[Block]) -> None:
        sent = [
            (chain_hash, self._forms.published(payload, hurried=self._is_hurried()))
            for chain_hash, payload in batch
        ]
        results = self._put(sent)
        for (chain_hash, payload), (_, form), result in zip(batch, sent, results, strict=True):
            if result.status is PutStatus.STORED:
                size, is_cold = memoryview(form).nbytes, int(form is not payload)
                self._tally.add(published_blocks=1, published_bytes=size, published_cold=is_cold)
            elif result.status is PutStatus.ALREADY_PRESENT:
                self._tally.add(already_present=1)
            else:
                self._known.forget([chain_hash])
                self._tally.dropped("rejected", 1)
                self._tally.warn("rejected", f"publish: the store rejects a block: {result.reason}")

    def _put(self, batch: Sequence[Block]) -> list[Put]:
        size = sum(memoryview(payload).nbytes for _, payload in batch)
        began_at = time.monotonic()
        try:
            results = self._client.put(batch, deadline_s=self._config.publish_deadline_s)
        except (DeadlineExceeded, LimitExceeded):
            self._batch_size.was_late(size)
            raise
        self._batch_size.took(size, time.monotonic() - began_at)
        return results

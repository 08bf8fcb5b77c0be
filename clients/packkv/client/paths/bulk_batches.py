"""The blocks of a Put, taken from the caller a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from packkv.client.paths import Buffer
from packkv_protos.bulk.frames import MAX_BLOCKS

# Blocks that the caller makes one by one are held until their batch has been sent.
BATCH_BYTES = 128 << 20


class Batches:
    """Reads the caller's iterable once. What it raises is kept in `failure`, and ends the blocks:
    those before it have been offered and are stored all the same."""

    def __init__(self, blocks: Iterable[tuple[bytes, Buffer]]) -> None:
        self._blocks = self._views(blocks)
        self.failure: Exception | None = None

    def next(self) -> list[tuple[bytes, memoryview]]:
        """The next blocks: at least one, or none when there are no more."""
        batch: list[tuple[bytes, memoryview]] = []
        size = 0
        for name, data in self._blocks:
            batch.append((name, data))
            size += len(data)
            if size >= BATCH_BYTES or len(batch) == MAX_BLOCKS:
                break
        return batch

    def _views(self, blocks: Iterable[tuple[bytes, Buffer]]) -> Iterator[tuple[bytes, memoryview]]:
        try:
            for name, payload in blocks:
                yield name, memoryview(payload).cast("B")
        except Exception as failure:
            self.failure = failure

"""A prefix whose layers are still on their way: proven as they come, taken as they are wanted.

One thread receives, and is told nothing but what has come; another runs the model and takes the
layers in order. What goes wrong after the model has begun is `PrefixLost`, never a wrong byte.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from packkv.client import Arrived, Fetched
from packkv.errors import PackKVError, PrefixLost
from packkv_kernels.entropy import ColdHead, DecodeSections
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import (
    Expectation,
    Form,
    Payload,
    PayloadHeader,
    ResidentSections,
    open_payload,
    resident_sections,
    resident_words,
    verify_layers,
)
from packkv_kernels.format.header import HEADER_BYTES, unpack_header

__all__ = ["Abandoned", "ArrivingPrefix", "Part", "Unusable"]


class Unusable(PackKVError):
    """A block is not there any more, or is not what it must be.

    Args:
        block: which of the prefix.
        reason: as the store says it, or as the payload's error does.
        error: of the payload, if there is one.
    """

    def __init__(self, block: int, reason: str, error: PayloadError | None = None) -> None:
        super().__init__(f"block {block}: {error or reason}")
        self.block = block
        self.reason = reason
        self.error = error


class Abandoned(PackKVError):
    """Nobody takes the rest of this prefix."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some layers of every block of a prefix, proven: what a cache keeps of them."""

    layers: range
    blocks: list[ResidentSections]


class ArrivingPrefix:
    """One verified payload a block, layer after layer.

    Args:
        expectations: what each block must be, in order.
        payload_limit: no resident payload is longer.
        ends_at: on the monotonic clock; no layer is waited for any longer.
        decode: who decodes sections of what comes cold.

    Attributes:
        proving_s: seconds for which the receiving thread has proven and decoded.
        failure: why it will not come whole, as in the misses of `Counters`; None while it may.
    """

    def __init__(
        self,
        expectations: Sequence[Expectation],
        payload_limit: int,
        ends_at: float,
        decode: DecodeSections = ColdHead.decode,
    ) -> None:
        self._expectations = expectations
        self._limit = payload_limit
        self._ends_at = ends_at
        self._decode = decode
        # of the receiving thread alone
        self._source: list[Fetched] | None = None
        self._blocks: list[_Block] = []
        self._proven = 0
        self.proving_s = 0.0
        # guards what follows; notified when any of it changes
        self._changed = threading.Condition()
        self._sizes: list[tuple[PayloadHeader, int]] = []
        self._parts: list[Part] = []
        self._published = 0
        self._is_abandoned = False
        self.failure: str | None = None

    # the thread that runs the model

    def is_open(self) -> bool:
        """Waits for the heads of all blocks; False when they did not come, see `failure`."""
        with self._changed:
            self._changed.wait_for(lambda: self._sizes or self.failure, self._left_s())
            if not self._sizes:
                self._give_up("late")
            return bool(self._sizes) and self.failure is None

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self._expectations)

    @property
    def sizes(self) -> list[tuple[PayloadHeader, int]]:
        """Of each block, once it is open, the resident header and the words that a cache keeps."""
        return self._sizes

    def take(self, layer: int) -> list[Part]:
        """Waits for a layer; all parts that have come and were not taken before.

        Raises:
            PrefixLost: the prefix will not come whole, or not in time. From then on always.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._published > layer or self.failure, self._left_s())
            if self._published <= layer:
                self._give_up("late")
            if self.failure is not None:
                raise PrefixLost(self.failure)
            parts, self._parts = self._parts, []
            return parts

    def abandon(self) -> None:
        """The rest is not wanted: ends the fetch, if it is still running."""
        with self._changed:
            self._give_up("abandoned")

    # the thread that receives

    def receive(self, arrived: Arrived) -> None:
        """Proves what has come, as `on_layers` of a Get.

        Raises:
            Unusable: a block is not there, or is not what it must be.
            Abandoned: nobody wants the rest.
        """
        started = time.monotonic()
        try:
            self._receive(arrived)
        finally:
            self.proving_s += time.monotonic() - started

    def _receive(self, arrived: Arrived) -> None:
        with self._changed:
            if self._is_abandoned:
                raise Abandoned("the rest of the prefix is not wanted any more")
        if arrived.blocks is not self._source and not self._open(arrived):
            return
        ends = zip(self._blocks, arrived.ends, strict=True)
        layers = min(block.layers_within(end) for block, end in ends)
        # a call that is made again brings once more what has been handed on
        self._prove(range(self._proven, min(layers, self._published)))
        self._prove(range(self._proven, layers))

    def payloads(self) -> list[Payload]:
        """The whole payloads, resident; none when they are not whole."""
        if not self._blocks or self._proven < self._blocks[0].header.layers:
            return []
        return [block.payload for block in self._blocks]

    @property
    def cold_blocks(self) -> int:
        """How many of them have come in cold form."""
        return sum(block.is_cold for block in self._blocks)

    def fail(self, reason: str) -> None:
        """It will not come whole, unless it has."""
        with self._changed:
            self._give_up(reason)

    def _open(self, arrived: Arrived) -> bool:
        """Whether the heads of all blocks have come; they are proven then."""
        blocks: list[_Block] = []
        for number, (block, end) in enumerate(zip(arrived.blocks, arrived.ends, strict=True)):
            if block.data is None:
                raise Unusable(number, block.miss or "absent")
            with _of(number):
                if not _has_head(block.data, end):
                    return False
                expected = self._expectations[number]
                blocks.append(_Block(block.data, expected, self._limit, self._decode))
                # layers that were handed on must be layers of this very payload
                if self._blocks and self._blocks[number].head != blocks[number].head:
                    raise PayloadError("identity", "another payload comes by the same name")
        self._blocks, self._source, self._proven = blocks, arrived.blocks, 0
        with self._changed:
            self._sizes = [(block.header, block.words) for block in blocks]
            self._changed.notify_all()
        return True

    def _prove(self, layers: range) -> None:
        """The next layers, handed on unless they have been."""
        if not layers:
            return
        sections = []
        for number, block in enumerate(self._blocks):
            with _of(number):
                sections.append(block.prove(layers))
        self._proven = layers.stop
        if layers.stop <= self._published:
            return
        with self._changed:
            self._parts.append(Part(layers, sections))
            self._published = layers.stop
            self._changed.notify_all()

    def _give_up(self, reason: str) -> None:
        """Under the lock: from here on it is lost, unless all of it is there already."""
        if self.failure is None and not self._is_whole():
            self.failure = reason
            self._is_abandoned = True
            self._changed.notify_all()

    def _is_whole(self) -> bool:
        return bool(self._sizes) and self._published == self._sizes[0][0].layers

    def _left_s(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())


class _Block:
    """One payload on its way, in either form.

    Raises:
        PayloadError: its head is not what it must be.
    """

    def __init__(
        self, data: memoryview, expectation: Expectation, limit: int, decode: DecodeSections
    ) -> None:
        self._decode = decode
        self._wire = open_payload(data, expectation)
        self.head = bytes(data[: self._wire.header.head_length])
        heads = self._wire.header.heads
        self._layer_ends = self._wire.sections.sum(1)[heads - 1 :: heads]
        self._cold: ColdHead | None = None
        self.payload = self._wire
        if self._wire.header.form is Form.COLD:
            self._cold = ColdHead.of(self._wire)
            if self._cold.payload_length > limit:
                raise PayloadError("layout", f"{self._cold.payload_length} bytes; limit {limit}")
            self._words = np.zeros(self._cold.payload_length // 4, np.uint32)
            memory = self._words.data.cast("B").toreadonly()
            self.payload = Payload(self._cold.header, memory, self._cold.sections)

    @property
    def header(self) -> PayloadHeader:
        """Of the resident payload."""
        return self.payload.header

    @property
    def is_cold(self) -> bool:
        """Whether it is decoded as it comes."""
        return self._cold is not None

    @property
    def words(self) -> int:
        """That a cache keeps of it."""
        return resident_words(self.header, len(self.payload.data))

    def layers_within(self, end: int) -> int:
        """How many layers have come when all bytes before `end` have."""
        return int(np.searchsorted(self._layer_ends, end, "right"))

    def prove(self, layers: range) -> ResidentSections:
        """Verifies some layers; the last ones prove the payload as a whole."""
        verify_layers(self._wire, layers)
        if self._cold is not None:
            self._decode(self._cold, self._wire.data, self._words, layers)
            if layers.stop == self.header.layers:
                self.payload = self._cold.finish(self._words)
        return resident_sections(self.payload, layers)


@contextmanager
def _of(block: int) -> Iterator[None]:
    """Says which block is meant. Raises Unusable."""
    try:
        yield
    except PayloadError as error:
        raise Unusable(block, error.reason, error) from error


def _has_head(data: memoryview, end: int) -> bool:
    if end < HEADER_BYTES:
        return False
    return end >= unpack_header(data)[0].head_length

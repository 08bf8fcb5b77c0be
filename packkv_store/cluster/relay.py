"""Sends on what is still on its way here."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from packkv_store.block import PayloadHead, Span
from packkv_store.cluster.coming import Coming
from packkv_store.errors import Interrupted, PayloadError
from packkv_store.store.answers import BlockAnswer, MissReason
from packkv_store.store.download import COPIED_BYTES, Download
from packkv_store.store.layout import Extents, Group, Layout, Part, lay_out

Row = tuple[int, int, int]


class Passing(NamedTuple):
    """A block that is on its way here, its verified head, and the bytes of that."""

    coming: Coming
    head: PayloadHead
    raw: memoryview


@dataclass(frozen=True, slots=True)
class Relay:
    """A Download of blocks that are here and of blocks, by their number in the request, that are
    coming. What is coming is verified before it is passed on, section by section."""

    inner: Download
    passing: Mapping[int, Passing]

    @property
    def answers(self) -> Sequence[BlockAnswer]:
        answers = list(self.inner.answers)
        for number, (_, head, _) in self.passing.items():
            if head.covers_heads(self.inner.heads):
                answers[number] = BlockAnswer(head.payload_length, None)
            else:
                answers[number] = BlockAnswer(0, MissReason.HEADS)
        return answers

    async def layout(self, groups: int) -> Layout:
        """As of a Download."""
        parts = [Part(one.number, one.head, one.payload is not None) for one in self.inner.sources]
        parts += [
            Part(number, head, True)
            for number, (_, head, _) in self.passing.items()
            if head.covers_heads(self.inner.heads)
        ]
        parts.sort(key=lambda part: part.number)
        return await self.inner.run(lay_out, parts, self.inner.layers, self.inner.heads, groups)

    async def runs(self, layout: Layout) -> AsyncIterator[list[memoryview]]:
        """As of a Download. Raises Interrupted as well, when a block does not come whole."""
        for group in layout:
            for rows, are_passing in self._stretches(group.extents):
                if are_passing:
                    stretch = self._passed(rows)
                else:
                    here = Group(group.layers, np.array(rows, np.uint32))
                    stretch = self.inner.runs([here])
                async for run in stretch:
                    yield run

    def _stretches(self, extents: Extents) -> list[tuple[list[Row], bool]]:
        """Neighbouring rows of blocks that are all here, or all coming."""
        stretches: list[tuple[list[Row], bool]] = []
        for number, offset, length in extents.tolist():
            is_passing = number in self.passing
            if not stretches or stretches[-1][1] is not is_passing:
                stretches.append(([], is_passing))
            stretches[-1][0].append((number, offset, length))
        return stretches

    async def _passed(self, rows: Sequence[Row]) -> AsyncIterator[list[memoryview]]:
        batch: list[Row] = []
        size = 0
        for row in rows:
            number, offset, length = row
            coming = self.passing[number].coming
            if batch and (size >= COPIED_BYTES or not coming.has(offset + length)):
                yield await self.inner.run(self._copied, batch)
                batch, size = [], 0
            await coming.landed(offset + length)
            batch.append(row)
            size += length
        if batch:
            yield await self.inner.run(self._copied, batch)

    def _copied(self, rows: Sequence[Row]) -> list[memoryview]:
        """Raises Interrupted when the bytes are not, or no longer, those of the block."""
        run = []
        for number, offset, length in rows:
            coming, head, raw = self.passing[number]
            # copied first: by the time that they are sent the place may be another block's
            data = memoryview(bytes(coming.place[offset : offset + length]))
            try:
                _verify(data, offset, head, raw, self.inner.heads)
            except PayloadError:
                raise Interrupted(coming.chain_hash.hex()) from None
            run.append(data)
        return run


def _verify(data: memoryview, offset: int, head: PayloadHead, raw: memoryview, heads: Span) -> None:
    """That `data` is what a payload has from `offset` on: its head, whole layers, or both."""
    at, end = offset, offset + len(data)
    if at == 0:
        at = head.head_length
        if data[:at] != raw:
            raise PayloadError("head", "another one", "the one that was verified")
    while at < end:
        layer = head.layer_at(at)
        start, stop = head.layer_run(layer, heads)
        if start != at:
            raise PayloadError("start of a layer", at, start)
        head.verify_layer_run(raw, layer, heads, data[start - offset : stop - offset])
        at = stop

"""One Get stream: the bytes of many blocks, straight out of the arena."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from packkv_store.block import PayloadHead, Span, TierName, chain_hash_of
from packkv_store.errors import CorruptBlock, PayloadError, TierFailure
from packkv_store.store.answers import BlockAnswer
from packkv_store.store.block_table import Block
from packkv_store.store.layout import Layout, Part, lay_out
from packkv_store.store.residents import Residents
from packkv_store.store.threads import Run

# Of blocks that are read from disk on the way, so much is in memory at one time.
COPIED_BYTES = 4 << 20


@dataclass(slots=True)
class Source:
    """A block to send. `payload` is in the arena; None: RAM has no room, it is read from disk."""

    number: int
    block: Block
    head: PayloadHead
    head_bytes: memoryview
    payload: memoryview | None


@dataclass(slots=True)
class Download:
    """Answers for every block asked for, then the bytes of those that are there."""

    answers: list[BlockAnswer]
    sources: list[Source]
    layers: Span
    heads: Span
    residents: Residents
    run: Run

    async def layout(self, groups: int) -> Layout:
        """In which order `runs` gives the bytes: with one group, payload after payload; with more,
        all heads, then all blocks' layers in at most `groups` groups."""
        parts = [
            Part(source.number, source.head, source.payload is not None) for source in self.sources
        ]
        # a large prefix with few of its heads has a million extents: not on the event loop
        return await self.run(lay_out, parts, self.layers, self.heads, groups)

    async def runs(self, layout: Layout) -> AsyncIterator[list[memoryview]]:
        """The bytes of the layout, in order and without gaps; they stay in the arena.

        Raises CorruptBlock when a block that is read from disk on the way turns out corrupt.
        """
        by_number = {source.number: source for source in self.sources}
        for group in layout:
            run: list[memoryview] = []
            copied = 0
            for number, offset, length in group.extents.tolist():
                source = by_number[number]
                if source.payload is not None:
                    run.append(source.payload[offset : offset + length])
                    continue
                if offset == 0:
                    run.append(source.head_bytes)
                    continue
                layer = source.head.layer_at(offset)
                run.append(await self._from_disk(source, layer, offset, offset + length))
                copied += length
                if copied >= COPIED_BYTES:
                    yield run
                    run, copied = [], 0
            if run:
                yield run

    async def _from_disk(self, source: Source, layer: int, start: int, end: int) -> memoryview:
        run = memoryview(bytearray(end - start))
        try:
            await self.run(self.residents.read_disk, source.block, start, run)
            source.head.verify_layer_run(source.head_bytes, layer, self.heads, run)
        except (PayloadError, TierFailure) as error:
            await self.residents.quarantine(source.block, TierName.DISK, error)
            raise CorruptBlock(chain_hash_of(source.block.key).hex()) from error
        return run


async def open_sources(
    blocks: Sequence[Block | None], residents: Residents, run: Run
) -> list[Source]:
    """A source for every block that can be sent; corrupt ones are quarantined and left out."""
    sources = []
    for number, block in enumerate(blocks):
        if block is None or block.corrupt:
            continue
        if residents.in_ram(block) and block.head is not None:
            shelf = residents.ram_of(block.key)
            payload = shelf.tier.view(shelf.extent(block), block.length)
            head_bytes = payload[: block.head.head_length]
            sources.append(Source(number, block, block.head, head_bytes, payload))
            continue
        try:
            head, head_bytes = await run(_read_head, residents, block)
        except (PayloadError, TierFailure) as error:
            await residents.quarantine(block, TierName.DISK, error)
            continue
        sources.append(Source(number, block, head, head_bytes, None))
    return sources


def _read_head(residents: Residents, block: Block) -> tuple[PayloadHead, memoryview]:
    raw = memoryview(bytearray(block.head_length))
    residents.read_disk(block, 0, raw)
    return PayloadHead.read(raw), raw

"""One Get stream: the pieces of many blocks, layer-major, straight out of the arena."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from packkv_store.block import PayloadHead, Span, TierName, chain_hash_of
from packkv_store.errors import CorruptBlock, PayloadError, TierFailure
from packkv_store.store.answers import BlockAnswer, Piece
from packkv_store.store.block_table import Block
from packkv_store.store.residents import Residents
from packkv_store.store.threads import Run
from packkv_store.tiers.ram import RamTier


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

    async def pieces(self) -> AsyncIterator[Piece]:
        """Heads of all blocks, then layer after layer of all blocks.

        Raises CorruptBlock when a block that is read from disk on the way turns out corrupt.
        """
        for source in self.sources:
            yield Piece(source.number, 0, source.head_bytes)
        depth = max((source.head.layers for source in self.sources), default=0)
        for layer in self.layers.within(0, depth):
            for source in self.sources:
                if layer < source.head.layers:
                    start, end = source.head.layer_run(layer, self.heads)
                    payload = source.payload
                    if payload is None:
                        data = await self._from_disk(source, layer, start, end)
                    else:
                        data = payload[start:end]
                    yield Piece(source.number, start, data)

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
    blocks: Sequence[Block | None], residents: Residents, ram: RamTier, run: Run
) -> list[Source]:
    """A source for every block that can be sent; corrupt ones are quarantined and left out."""
    sources = []
    for number, block in enumerate(blocks):
        if block is None or block.corrupt:
            continue
        if block in residents.ram and block.head is not None:
            payload = ram.view(residents.ram.extent(block), block.length)
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

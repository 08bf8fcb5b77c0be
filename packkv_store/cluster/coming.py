"""A block on its way here from another node: its bytes can be read as they land."""

import asyncio

from packkv_store.block import HEADER, ChainHash, PayloadHead, head_length_in
from packkv_store.errors import Interrupted, PayloadError


class Coming:
    """`place` is where the bytes go, in order; who fills it tells by `advance` and `end`.

    Nothing but the head is verified here. And the place may hold another block soon after the end:
    what is read from it is good if it proves to be.
    """

    def __init__(self, chain_hash: ChainHash, place: memoryview) -> None:
        self.chain_hash = chain_hash
        self.place = place
        self._filled = 0
        self._has_ended = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def advance(self, filled: int) -> None:
        """So many bytes from the front have landed."""
        self._filled = filled
        self._wake()

    def end(self) -> None:
        """No more bytes will land. Not all of them need to have."""
        self._has_ended = True
        self._wake()

    def has(self, end: int) -> bool:
        """Whether the bytes before `end` have landed."""
        return end <= self._filled

    async def landed(self, end: int) -> None:
        """Returns when the bytes before `end` are here. Raises Interrupted if they never will."""
        if not self.has(end) and not self._has_ended:
            landed = asyncio.get_running_loop().create_future()
            self._waiting.append((end, landed))
            await landed
        if not self.has(end):
            raise Interrupted(self.chain_hash.hex())

    async def head(self) -> tuple[PayloadHead, memoryview]:
        """The head, proved to be this block's, and its bytes. Raises Interrupted, PayloadError."""
        await self.landed(min(HEADER.size, len(self.place)))
        length = head_length_in(self.place)
        await self.landed(min(length, len(self.place)))
        raw = memoryview(bytes(self.place[:length]))
        head = PayloadHead.read(raw)
        if head.chain_hash != self.chain_hash:
            raise PayloadError("chain hash", head.chain_hash.hex(), self.chain_hash.hex())
        if head.payload_length != len(self.place):
            raise PayloadError("payload length", head.payload_length, len(self.place))
        return head, raw

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for end, landed in waiting:
            if landed.done():
                continue
            if self._has_ended or self.has(end):
                landed.set_result(None)
            else:
                self._waiting.append((end, landed))

"""Where the bytes of a bulk Get go, worked out from what the server announces and never believed.

The server may be broken or hostile: everything it announces is checked against what was asked, all
blocks at once, before a byte is taken.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from packkv.client.messages import Fetched, miss_of
from packkv.client.paths import Arrived, Wanted
from packkv.client.paths.buffers import Buffers
from packkv.errors import ProtocolViolation
from packkv_protos.bulk.frames import Found
from packkv_protos.v1 import block_store_pb2 as pb

Numbers = npt.NDArray[np.int64]


class Landing:
    """The blocks of one Get, in one buffer, and the places in it in the order of the stream.

    Raises:
        ProtocolViolation: the announcement contradicts the request or itself.
    """

    def __init__(self, found: Found, wanted: Wanted, buffers: Buffers) -> None:
        self._misses = found.misses.tolist()
        self._lengths = found.lengths.astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
        self._check_answers(found, wanted)
        self._blocks, self._offsets, self._sizes = found.extents.T.astype(np.int64)
        self._check_extents(found)
        self._ranges = self._received(wanted)
        # begin of each extent in the stream, and of the one after the last
        self._stream = np.concatenate([[0], np.cumsum(self._sizes)])
        self._at = 0
        size = int(self._starts[-1])
        # memory used before has old bytes in it, which must not show where none are sent
        self._buffer = buffers.take(size) if wanted.whole else np.zeros(size, np.uint8).data
        self._places: list[Fetched] | None = None

    def next(self, size: int) -> list[memoryview]:
        """Where the next `size` bytes of the stream go."""
        total = int(self._stream[-1])
        if size > total - self._at:
            raise _violation(f"a run of {size} bytes after {self._at} of {total}")
        first = int(np.searchsorted(self._stream, self._at, "right")) - 1
        last = int(np.searchsorted(self._stream, self._at + size, "left"))
        begins = self._starts[self._blocks[first:last]] + self._offsets[first:last]
        ends = begins + self._sizes[first:last]
        begins[0] += self._at - self._stream[first]
        ends[-1] -= self._stream[last] - self._at - size
        self._at += size
        # neighbours in the buffer are one part: a prefix of whole payloads is one part altogether
        apart = np.flatnonzero(begins[1:] != ends[:-1])
        parts = zip(
            begins[np.concatenate([[0], apart + 1])].tolist(),
            ends[np.concatenate([apart, [-1]])].tolist(),
            strict=True,
        )
        return [self._buffer[begin:end] for begin, end in parts]

    def blocks(self) -> list[Fetched]:
        """Every block, once the stream has ended. Raises ProtocolViolation if bytes are missing."""
        if self._at != self._stream[-1]:
            raise _violation(f"the answer ended after {self._at} of {self._stream[-1]} bytes")
        return self._blocks_in_place()

    def arrived(self) -> Arrived:
        """What is there of whole payloads, once what `next` has named has been received."""
        if self._places is None:
            self._places = self._blocks_in_place()
        # a payload's bytes come in order, so all that has come of it is at its front
        come = np.clip(self._at - self._stream[:-1], 0, self._sizes)
        ends = np.bincount(self._blocks, come, len(self._lengths)).astype(np.int64)
        return Arrived(self._places, ends.tolist())

    def _blocks_in_place(self) -> list[Fetched]:
        starts = self._starts.tolist()
        return [
            Fetched(self._buffer[starts[i] : starts[i + 1]], None, self._ranges.get(i, ()))
            if starts[i] < starts[i + 1]
            else Fetched(None, miss_of(miss or pb.MISS_REASON_ABSENT))
            for i, miss in enumerate(self._misses)
        ]

    def _check_answers(self, found: Found, wanted: Wanted) -> None:
        asked = len(wanted.chain_hashes)
        if len(found.lengths) != asked:
            raise _violation(f"{len(found.lengths)} answers for {asked} blocks")
        both = np.flatnonzero((found.misses != 0) & (self._lengths != 0))
        if len(both):
            block = int(both[0])
            raise _violation(f"block {block} is a miss and has {self._lengths[block]} bytes")
        if self._starts[-1] > wanted.max_bytes:
            limit = wanted.max_bytes
            raise _violation(f"{self._starts[-1]} bytes announced, the limit is {limit}")

    def _check_extents(self, found: Found) -> None:
        blocks, ends = self._blocks, self._offsets + self._sizes
        if int(found.groups[:, 2].sum(dtype=np.int64)) != len(blocks):
            raise _violation(f"the groups have not the {len(blocks)} extents that there are")
        strange = np.flatnonzero(blocks >= len(self._lengths))
        if len(strange):
            raise _violation(f"bytes of block {blocks[strange[0]]} of {len(self._lengths)}")
        wrong = np.flatnonzero((self._sizes == 0) | (ends > self._lengths[blocks]))
        if len(wrong):
            at, block = int(wrong[0]), int(blocks[wrong[0]])
            raise _violation(
                f"bytes {self._offsets[at]} to {ends[at]} of block {block}, "
                f"which has {self._lengths[block]}"
            )

    def _received(self, wanted: Wanted) -> dict[int, tuple[tuple[int, int], ...]]:
        """The ranges of each block that will have come, joined where they touch."""
        order = np.argsort(self._blocks, kind="stable")
        blocks, offsets = self._blocks[order], self._offsets[order]
        ends = offsets + self._sizes[order]
        same = blocks[1:] == blocks[:-1]
        if np.any(same & (offsets[1:] < ends[:-1])):
            raise _violation("bytes of a block come twice, or out of order")
        fresh = np.concatenate([[True], ~same | (offsets[1:] != ends[:-1])])[: len(blocks)]
        firsts = np.flatnonzero(fresh)
        lasts = np.concatenate([firsts[1:] - 1, [len(blocks) - 1]])[: len(firsts)]
        begins, sizes = offsets[firsts], ends[lasts] - offsets[firsts]
        owners = blocks[firsts]
        if wanted.whole:
            present = np.flatnonzero(self._lengths)
            if not (
                np.array_equal(owners, present) and np.array_equal(sizes, self._lengths[present])
            ):
                raise _violation("whole payloads were asked for, and not announced")
        ranges: dict[int, tuple[tuple[int, int], ...]] = {}
        for owner, *one in zip(owners.tolist(), begins.tolist(), sizes.tolist(), strict=True):
            ranges[owner] = (*ranges.get(owner, ()), (one[0], one[1]))
        return ranges


def _violation(what: str) -> ProtocolViolation:
    return ProtocolViolation(f"Get: {what}")

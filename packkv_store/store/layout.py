"""In which order the bytes of a Get travel when many blocks are sent at once.

In one group, payloads come whole, one after another. In more groups the heads of all payloads come
first, then some neighbouring layers of every block, then the next: attention over layer 0 can begin
before the last layer is there.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from packkv_store.block import PayloadHead, Span

# Rows of block number, offset in the payload, length.
Extents = npt.NDArray[np.uint32]
Row = tuple[int, int, int]


class Part(NamedTuple):
    """A block to lay out. `is_whole`: its layers lie side by side where they are read from."""

    number: int
    head: PayloadHead
    is_whole: bool


class Group(NamedTuple):
    """Layers that travel together, and which bytes of which payload they are, in order."""

    layers: Span
    extents: Extents


Layout = list[Group]


def lay_out(parts: Sequence[Part], layers: Span, heads: Span, groups: int) -> Layout:
    """About as many layers in each of at most `groups` groups, after one of heads alone if there is
    more than one; none when there are no blocks."""
    if not parts:
        return []
    wanted = layers.within(0, max(part.head.layers for part in parts))
    strips = [_Strip(part, heads) for part in parts]
    count = max(1, min(groups, len(wanted)))
    if count == 1:
        rows = [row for strip in strips for row in strip.whole(wanted)]
        return [_group(wanted, rows)]
    cuts = [len(wanted) * number // count for number in range(count + 1)]
    spans = [wanted[first:last] for first, last in pairwise(cuts)]
    return [
        _group(range(0), [strip.lead for strip in strips]),
        *(_group(span, [row for strip in strips for row in strip.rows(span)]) for span in spans),
    ]


class _Strip:
    """Where the wanted bytes of each layer of a block begin and end."""

    def __init__(self, part: Part, heads: Span) -> None:
        head = part.head
        run = heads.within(head.first_head, head.heads)
        self._number = part.number
        self._is_whole = part.is_whole and len(run) == head.heads
        first = run.start - head.first_head
        self._starts = head.bounds[first :: head.heads].tolist()
        self._ends = head.bounds[first + len(run) :: head.heads].tolist()
        self._layers = head.layers
        self.lead: Row = (part.number, 0, head.head_length)

    def whole(self, layers: range) -> list[Row]:
        """Its head and its layers, in one piece if they lie side by side."""
        rows = self.rows(layers)
        if self._is_whole and rows and rows[0][1] == self.lead[2]:
            return [(self._number, 0, rows[0][1] + rows[0][2])]
        return [self.lead, *rows]

    def rows(self, layers: range) -> list[Row]:
        here = range(layers.start, min(layers.stop, self._layers))
        if not here:
            return []
        if self._is_whole:
            start = self._starts[here.start]
            return [(self._number, start, self._ends[here.stop - 1] - start)]
        return [
            (self._number, self._starts[layer], self._ends[layer] - self._starts[layer])
            for layer in here
        ]


def _group(layers: range, rows: Sequence[Row]) -> Group:
    extents = np.array(rows, np.uint32).reshape(-1, 3)
    return Group(Span(layers.start, len(layers)), extents[extents[:, 2] > 0])

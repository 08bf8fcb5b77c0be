"""Which node is asked for which blocks."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from packkv_store.block import TierName
from packkv_store.index import Location

MAX_PARTS = 64


class Part(NamedTuple):
    """Neighbours that one node is asked for: places `first` to before `end`."""

    node: str
    first: int
    end: int


def runs_from(
    located: Sequence[tuple[Location, ...]], first: int, without: Collection[str]
) -> list[Part]:
    """Parts that cover the run from `first` to the first block that nobody has, each as long as
    one node goes. At most 64: a run that is scattered more widely ends there."""
    parts: list[Part] = []
    while first < len(located) and len(parts) < MAX_PARTS:
        best = Part("", first, first)
        for node in _nodes(located[first], without):
            end = first + 1
            # neighbours mostly are where the one before them is, in one and the same tuple
            while end < len(located) and (
                located[end] is located[end - 1] or any(at.node == node for at in located[end])
            ):
                end += 1
            if end > best.end:
                best = Part(node, first, end)
        if best.end == first:
            break
        parts.append(best)
        first = best.end
    return parts


def shares(
    located: Sequence[tuple[Location, ...]], places: Sequence[int], without: Collection[str]
) -> dict[str, list[int]]:
    """The places, each given to one node that has it, so that all of them have equally much to do.
    Places that nobody has are left out."""
    taken: dict[str, list[int]] = {}
    for place in places:
        nodes = _nodes(located[place], without)
        if nodes:
            least = min(nodes, key=lambda node: len(taken.get(node, ())))
            taken.setdefault(least, []).append(place)
    return taken


def _nodes(locations: Sequence[Location], without: Collection[str]) -> list[str]:
    """Those that have it in RAM first."""
    ordered = sorted(locations, key=lambda at: at.tier is not TierName.RAM)
    return list(dict.fromkeys(at.node for at in ordered if at.node not in without))

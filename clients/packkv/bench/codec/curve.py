"""Curves of KL over bits: which settings lie on them, and where they cross a KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["Crossing", "Point", "crossing", "interval", "lower_hull", "nearest", "neighbours"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """Bits per value and mean KL of one setting; KL > 0."""

    bits: float
    kl: float


@dataclass(frozen=True)
class Crossing:
    """Where a curve has a certain KL.

    Attributes:
        bits: bits per value there.
        extrapolated: no measured points lie on both sides; the nearest two were extended.
    """

    bits: float
    extrapolated: bool


def lower_hull(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no mixture of others beats, from few bits to many.

    The hull is that of (bits, log KL), and only its falling part: a setting that costs more bits
    than another and loses more is never on it.
    """
    hull: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i].bits, points[i].kl)):
        if hull and points[index].kl >= points[hull[-1]].kl:
            continue
        while len(hull) > 1 and not _turns_up(*(points[i] for i in (*hull[-2:], index))):
            hull.pop()
        hull.append(index)
    return hull


def _turns_up(first: Point, middle: Point, last: Point) -> bool:
    """Whether the slope of log KL grows at the middle point, as on a lower hull."""
    before = math.log(middle.kl / first.kl) * (last.bits - middle.bits)
    after = math.log(last.kl / middle.kl) * (middle.bits - first.bits)
    return before < after


def crossing(points: Sequence[Point], kl: float) -> Crossing | None:
    """Bits at a KL, linear in log KL between neighbours; None when two points do not lead there.

    Args:
        points: of one codec; order does not matter.
        kl: the KL wanted.
    """
    ordered = sorted(points, key=lambda point: point.bits)
    pairs = list(pairwise(ordered))
    for left, right in pairs:
        if left.kl >= kl >= right.kl and left.kl > right.kl:
            return Crossing(_on_line(left, right, kl), extrapolated=False)
    if not pairs:
        return None
    left, right = pairs[0] if ordered[0].kl < kl else pairs[-1]
    if left.kl <= right.kl or left.bits == right.bits:
        return None
    return Crossing(_on_line(left, right, kl), extrapolated=True)


def neighbours(points: Sequence[Point], kls: Sequence[float]) -> list[int]:
    """Indices of the points that enclose each KL, or lie next to it, from few bits to many.

    Args:
        points: of one codec; order does not matter.
        kls: the KLs wanted.
    """
    ordered = sorted(range(len(points)), key=lambda i: points[i].bits)
    wanted: set[int] = set()
    for kl in kls:
        beyond = (place for place, i in enumerate(ordered) if points[i].kl <= kl)
        right = min(max(next(beyond, len(ordered)), 1), len(ordered) - 1)
        wanted |= {max(right - 1, 0), right}
    return [ordered[place] for place in sorted(wanted)]


def nearest(points: Sequence[Point], kl: float) -> int:
    """Index of the point whose KL is nearest, as a ratio."""
    return min(range(len(points)), key=lambda i: abs(math.log(points[i].kl / kl)))


def _on_line(left: Point, right: Point, kl: float) -> float:
    share = math.log(left.kl / kl) / math.log(left.kl / right.kl)
    return left.bits + share * (right.bits - left.bits)


def interval(
    ours: Sequence[Sequence[Point]], theirs: Sequence[Sequence[Point]], kl: float
) -> tuple[float, float] | None:
    """95 % interval of (their bits / our bits) at a KL, by paired bootstrap over texts.

    Args:
        ours, theirs: [setting][text].
        kl: the KL at which bits are compared.

    Returns:
        The bounds, or None when there is one text only or a resampled curve misses the KL.
    """
    texts = len(ours[0])
    if texts < 2:
        return None
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(texts, size=texts)
        our, their = (crossing(_means(curve, drawn.tolist()), kl) for curve in (ours, theirs))
        if our is None or their is None:
            return None
        ratios.append(their.bits / our.bits)
    low, high = np.quantile(ratios, (0.025, 0.975)).tolist()
    return low, high


def _means(curve: Sequence[Sequence[Point]], drawn: Sequence[int]) -> list[Point]:
    count = len(drawn)
    return [
        Point(
            sum(setting[text].bits for text in drawn) / count,
            sum(setting[text].kl for text in drawn) / count,
        )
        for setting in curve
    ]

"""Operating points, bits at equal KL, intervals, and the drawing of curves."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from packkv.bench.codec.curve import (
    Point,
    crossing,
    interval,
    lower_hull,
    nearest,
    neighbours,
)
from packkv.bench.codec.plot import svg

# log KL falls by ln 10 per bit
LINE = [Point(bits, 10.0**-bits) for bits in (1.0, 2.0, 3.0)]


def test_the_hull_keeps_what_no_mixture_beats() -> None:
    above, beside = Point(1.5, 0.09), Point(2.5, 0.02)
    points = [above, *LINE, beside, Point(3.5, 0.005)]
    bent = [Point(1, 1.0), Point(2, 0.05), Point(3, 0.02)]
    assert lower_hull(bent) == [0, 1, 2]
    assert [points[i] for i in lower_hull(points)] in ([LINE[0], LINE[2]], LINE)


def test_the_hull_is_falling() -> None:
    assert lower_hull([Point(2, 0.1), Point(3, 0.1), Point(4, 0.2)]) == [0]
    assert lower_hull([Point(2, 0.1), Point(2, 0.05)]) == [1]


def test_bits_are_interpolated_along_log_kl() -> None:
    found = crossing(LINE, 10**-2.25)
    assert found is not None
    assert found.bits == pytest.approx(2.25)
    assert not found.extrapolated


@pytest.mark.parametrize("bits", [0.5, 4.0])
def test_bits_beyond_the_curve_are_marked(bits: float) -> None:
    found = crossing(LINE, 10**-bits)
    assert found is not None
    assert found.bits == pytest.approx(bits)
    assert found.extrapolated


@pytest.mark.parametrize(
    ("kls", "wanted"),
    [
        ((0.05,), [2, 0]),
        ((0.05, 0.005), [2, 0, 1]),
        # beyond the curve: the two that are nearest, which a crossing extends
        ((0.5,), [2, 0]),
        ((1e-5,), [0, 1]),
        # on a point
        ((0.01,), [2, 0]),
    ],
)
def test_neighbours_enclose_a_kl(kls: tuple[float, ...], wanted: list[int]) -> None:
    points = [LINE[1], LINE[2], LINE[0]]
    assert neighbours(points, kls) == wanted
    assert neighbours(points[:1], kls) == [0]


def test_nearest_is_by_ratio() -> None:
    points = [Point(1, 0.1), Point(2, 0.02), Point(3, 0.001)]
    assert nearest(points, 0.05) == 0
    assert nearest(points, 0.005) == 1


def test_no_curve_has_no_bits() -> None:
    assert crossing(LINE[:1], 0.01) is None
    assert crossing([Point(1, 0.1), Point(2, 0.2)], 0.01) is None


def test_the_interval_holds_the_ratio() -> None:
    ours = [[point, Point(point.bits + 0.1, point.kl)] for point in LINE]
    theirs = [[Point(2 * p.bits, p.kl) for p in texts] for texts in ours]
    found = interval(ours, theirs, 0.005)
    assert found is not None
    # means of both texts are on the same curve, so pairing leaves no spread
    assert found == pytest.approx((2.0, 2.0))
    assert interval([[p] for p in LINE], [[p] for p in LINE], 0.005) is None


def test_the_drawing_has_a_line_per_codec() -> None:
    drawn = svg({"ours": LINE, "<theirs>": [Point(2, 0.5), Point(4, 0.01)]}, "a & b")
    root = ElementTree.fromstring(drawn)
    lines = [node for node in root if node.tag.endswith("polyline")]
    assert len(lines) == 2
    for line in lines:
        for place in line.attrib["points"].split():
            assert all(math.isfinite(float(part)) for part in place.split(","))
    assert "<theirs>" in [node.text for node in root]

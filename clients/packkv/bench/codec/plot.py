"""The curves as SVG: bits per value against KL, one line per codec."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from packkv.bench.codec.curve import Point

__all__ = ["svg"]

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 160, 40, 50

# Okabe and Ito's colours, which people tell apart whatever their sight.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")


def svg(curves: Mapping[str, Sequence[Point]], title: str) -> str:
    """An SVG document.

    Args:
        curves: operating points by codec, at least one in all; the first is drawn boldest.
        title: stands above.
    """
    frame = _Frame([point for points in curves.values() for point in points])
    body = [*_axes(frame), *_grid(frame)]
    for number, (codec, points) in enumerate(curves.items()):
        body += _curve(frame, codec, points, number)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="system-ui, sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_LEFT}" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
            *body,
            "</svg>\n",
        ]
    )


class _Frame:
    """Places bits (linear, to the right) and KL (logarithmic, upward) on the page."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.bits = (
            math.floor(min(point.bits for point in points)),
            math.ceil(max(point.bits for point in points) + 1e-9),
        )
        self.decades = (
            math.floor(math.log10(min(point.kl for point in points))),
            math.ceil(math.log10(max(point.kl for point in points)) + 1e-9),
        )

    def x(self, bits: float) -> float:
        low, high = self.bits
        return _LEFT + (bits - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, kl: float) -> float:
        low, high = self.decades
        share = (math.log10(kl) - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _axes(frame: _Frame) -> list[str]:
    across = (_LEFT + _WIDTH - _RIGHT) / 2
    up = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        f'<text x="{across}" y="{_HEIGHT - 12}" text-anchor="middle">'
        "bits per value, everything stored</text>",
        f'<text x="18" y="{up}" text-anchor="middle" transform="rotate(-90 18 {up})">'
        "KL to the exact cache, nats per token</text>",
    ]


def _grid(frame: _Frame) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    lines = []
    for bits in range(frame.bits[0], frame.bits[1] + 1):
        x = frame.x(bits)
        lines.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#ddd"/>')
        lines.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{bits}</text>')
    for decade in range(frame.decades[0], frame.decades[1] + 1):
        y = frame.y(10.0**decade)
        lines.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>')
    return lines


def _curve(frame: _Frame, codec: str, points: Sequence[Point], number: int) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    ordered = sorted(points, key=lambda point: point.bits)
    places = [(frame.x(point.bits), frame.y(point.kl)) for point in ordered]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    thickness = 3 if number == 0 else 1.5
    key = _TOP + 14 + 20 * number
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thickness}"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
        f'<rect x="{_WIDTH - _RIGHT + 14}" y="{key - 9}" width="12" height="10" fill="{colour}"/>',
        f'<text x="{_WIDTH - _RIGHT + 32}" y="{key}">{escape(codec)}</text>',
    ]

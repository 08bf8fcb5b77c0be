"""Row: one operating point of a codec, measured on the reported texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from packkv.bench.codec.curve import Point
from packkv.bench.codec.exact import Measured
from packkv.bench.codec.setting import Setting

__all__ = ["Row", "point_of"]


@dataclass(frozen=True)
class Row:
    """One operating point on the reported texts.

    Attributes:
        codec: its name.
        setting: the codec with its parameters.
        texts: the measurements, one per text.
        published_bits: of PackKV, what the paper would count for each text.
    """

    codec: str
    setting: Setting
    texts: list[Measured] = field(default_factory=list)
    published_bits: list[float] = field(default_factory=list)

    @property
    def points(self) -> list[Point]:
        """Its place on the curve of each text."""
        return [point_of([measured]) for measured in self.texts]

    @property
    def point(self) -> Point:
        """Its place on the curve of means over texts."""
        return point_of(self.texts)


def point_of(texts: Sequence[Measured]) -> Point:
    """Means over texts; an exact cache counts as a KL too small to matter, not as 0."""
    kl = float(np.mean([measured.score.kl.mean() for measured in texts]))
    return Point(float(np.mean([measured.bits for measured in texts])), max(kl, 1e-12))

"""FP8 as engines ship it: e4m3 with a static scale of 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Float8"]

_LARGEST = 448.0


@dataclass(frozen=True)
class Float8:
    """One byte a value; what is beyond ±448 is clamped."""

    @property
    def label(self) -> str:
        return "e4m3"

    def encode(self, values: torch.Tensor) -> _StoredFloat8:
        return _StoredFloat8(values.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn))


@dataclass(frozen=True)
class _StoredFloat8:
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def decode(self) -> torch.Tensor:
        return self.values.float()

"""TurboQuant-like codes: rotate, scale to unit rms, and the best levels for a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

from packkv.bench.codec.baseline import pack_codes, unpack_codes
from packkv_kernels.compress import rotation

__all__ = ["RotatedGaussian", "lloyd_max"]

# Scales are 2^(e/16 − 9) with e one byte, as in the codec `hybrid`.
_OCTAVE_PARTS, _LOWEST = 16, 9

_ITERATIONS = 1000


@cache
def lloyd_max(levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of least mean square error for a unit Gaussian (Max, 1960), and their boundaries.

    Returns:
        float32 [levels] and float32 [levels − 1], ascending.
    """
    # what many levels tend to: quantiles of a Gaussian √3 times as wide (Panter and Dite, 1951)
    shares = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    centres = math.sqrt(3) * torch.special.ndtri(shares)
    for _ in range(_ITERATIONS):
        inner = (centres[1:] + centres[:-1]) / 2
        edges = torch.cat([torch.tensor([-40.0]), inner, torch.tensor([40.0])]).double()
        density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
        mass = torch.special.ndtr(edges).diff()
        centres = (density[:-1] - density[1:]) / mass
    return centres.float(), ((centres[1:] + centres[:-1]) / 2).float()


@dataclass(frozen=True)
class RotatedGaussian:
    """Hadamard, one scale byte per token and head, Lloyd-Max codes (after arXiv 2504.19874).

    Like TurboQuant's mean-square variant with a Hadamard transform for the random rotation, as
    engines implement it, and without the residual sign bits, which they drop too.
    """

    bits: int

    @property
    def label(self) -> str:
        return f"{self.bits} bits"

    def encode(self, values: torch.Tensor) -> _StoredGaussian:
        rotated = values @ rotation(values.shape[-1])
        rms = rotated.square().mean(-1).sqrt()
        exponent = _OCTAVE_PARTS * (rms.clamp_min(2**-20).log2() + _LOWEST)
        scale = exponent.round().clamp(0, 255).to(torch.uint8)
        _, boundaries = lloyd_max(2**self.bits)
        codes = torch.bucketize(rotated / _factor(scale), boundaries)
        return _StoredGaussian(pack_codes(codes, self.bits), self.bits, values.shape, scale)


@dataclass(frozen=True)
class _StoredGaussian:
    codes: bytes
    bits: int
    shape: torch.Size
    scale: torch.Tensor

    @property
    def nbytes(self) -> int:
        return len(self.codes) + self.scale.nbytes

    def decode(self) -> torch.Tensor:
        centres, _ = lloyd_max(2**self.bits)
        codes = unpack_codes(self.codes, self.bits, self.shape).long()
        return (centres[codes] * _factor(self.scale)) @ rotation(self.shape[-1])


def _factor(scale: torch.Tensor) -> torch.Tensor:
    return torch.exp2(scale.float() / _OCTAVE_PARTS - _LOWEST)[..., None]

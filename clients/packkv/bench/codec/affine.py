"""Uniform codes between the least and the largest value of a group: KIVI, and INT4 + Hadamard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from packkv.bench.codec.baseline import pack_codes, unpack_codes
from packkv.bench.codec.setting import SINKS
from packkv_kernels.compress import rotation

__all__ = ["KiviKeys", "KiviValues", "RotatedAffine"]

# Spreads one number per group over the group's values: same shape as the values comes out.
Spread = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _StoredAffine:
    """Codes with a least value and a step per group, both fp16."""

    codes: bytes
    bits: int
    shape: torch.Size
    low: torch.Tensor
    step: torch.Tensor
    spread: Spread

    @property
    def nbytes(self) -> int:
        return len(self.codes) + self.low.nbytes + self.step.nbytes

    def decode(self) -> torch.Tensor:
        codes = unpack_codes(self.codes, self.bits, self.shape)
        return codes * self.spread(self.step.float()) + self.spread(self.low.float())


def _encode(
    values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int, spread: Spread
) -> _StoredAffine:
    """Codes of values [layers, tokens, heads, head_dim] from the extremes of their groups."""
    half_low = low.half()
    # a decoder has the rounded numbers only, so the codes must be made for those
    step = ((high - half_low.float()) / (2**bits - 1)).half()
    divisor = spread(torch.where(step == 0, torch.ones_like(step), step).float())
    codes = ((values - spread(half_low.float())) / divisor).round().clamp(0, 2**bits - 1)
    return _StoredAffine(pack_codes(codes, bits), bits, values.shape, half_low, step, spread)


@dataclass(frozen=True)
class KiviKeys:
    """Groups of consecutive tokens of one channel (KIVI, arXiv 2402.02750)."""

    bits: int
    group: int

    @property
    def label(self) -> str:
        return f"{self.bits} bits g{self.group}"

    def encode(self, values: torch.Tensor) -> _StoredAffine:
        # groups end where blocks do: the first may lack the sinks, the last may be short
        of_token = (torch.arange(values.shape[1]) + SINKS) // self.group
        parts = torch.split(values, torch.bincount(of_token).tolist(), 1)
        low, high = (
            torch.stack([extreme(part, 1) for part in parts], 1)
            for extreme in (torch.amin, torch.amax)
        )
        return _encode(values, low, high, self.bits, lambda numbers: numbers[:, of_token])


@dataclass(frozen=True)
class KiviValues:
    """Groups of neighbouring channels of one token and head (KIVI)."""

    bits: int
    group: int

    @property
    def label(self) -> str:
        return f"{self.bits} bits g{self.group}"

    def encode(self, values: torch.Tensor) -> _StoredAffine:
        head_dim = values.shape[-1]
        group = self.group if head_dim % self.group == 0 else head_dim
        parts = values.reshape(*values.shape[:-1], -1, group)
        low, high = parts.amin(-1), parts.amax(-1)
        return _encode(
            values, low, high, self.bits, lambda numbers: numbers.repeat_interleave(group, -1)
        )


@dataclass(frozen=True)
class RotatedAffine:
    """One group per token and head after a Hadamard transform (vLLM's int4_per_token_head)."""

    bits: int

    @property
    def label(self) -> str:
        return f"{self.bits} bits"

    def encode(self, values: torch.Tensor) -> _StoredRotated:
        group = KiviValues(self.bits, values.shape[-1])
        return _StoredRotated(group.encode(values @ rotation(values.shape[-1])))


@dataclass(frozen=True)
class _StoredRotated:
    rotated: _StoredAffine

    @property
    def nbytes(self) -> int:
        return self.rotated.nbytes

    def decode(self) -> torch.Tensor:
        decoded = self.rotated.decode()
        return decoded @ rotation(decoded.shape[-1])

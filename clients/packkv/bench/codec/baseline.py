"""Codecs that treat K and V apart: sinks kept exact, all other tokens through two quantisers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from packkv.bench.codec.setting import SINKS, KeysValues, head_bytes
from packkv_kernels.packs.bits import read_bits, write_bits

__all__ = ["Baseline", "Quantiser", "Stored", "pack_codes", "unpack_codes"]


class Stored(Protocol):
    """K or V as a quantiser leaves it."""

    @property
    def nbytes(self) -> int:
        """Codes and metadata, every byte of them."""
        ...

    def decode(self) -> torch.Tensor:
        """float32 [layers, tokens, heads, head_dim]."""
        ...


class Quantiser(Protocol):
    """How one of K and V becomes codes and metadata."""

    @property
    def label(self) -> str:
        """Its parameters."""
        ...

    def encode(self, values: torch.Tensor) -> Stored:
        """Compresses float32 [layers, tokens, heads, head_dim]; the first token is at `SINKS`."""
        ...


@dataclass(frozen=True)
class Baseline:
    """A setting made of one quantiser for K and one for V."""

    keys: Quantiser
    values: Quantiser

    @property
    def label(self) -> str:
        return f"K {self.keys.label}, V {self.values.label}"

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> _EncodedPair:
        exact = (keys[:, :SINKS].half(), values[:, :SINKS].half())
        return _EncodedPair(
            exact,
            self.keys.encode(keys[:, SINKS:]),
            self.values.encode(values[:, SINKS:]),
            head_bytes(keys),
        )


@dataclass(frozen=True)
class _EncodedPair:
    exact: tuple[torch.Tensor, torch.Tensor]
    keys: Stored
    values: Stored
    head_bytes: int

    @property
    def nbytes(self) -> int:
        exact = sum(part.nbytes for part in self.exact)
        return self.head_bytes + exact + self.keys.nbytes + self.values.nbytes

    def decode(self) -> KeysValues:
        keys, values = (
            torch.cat([exact.float(), side.decode()], 1)
            for exact, side in zip(self.exact, (self.keys, self.values), strict=True)
        )
        return keys, values


def pack_codes(codes: torch.Tensor, bits: int) -> bytes:
    """Codes of any shape, 0 … 2^bits − 1, without a gap between them."""
    flat = codes.reshape(-1).to(torch.int32).numpy()
    stream = np.zeros(-(-flat.size * bits // 8), np.uint8)
    write_bits(stream, 0, flat, bits)
    return stream.tobytes()


def unpack_codes(data: bytes, bits: int, shape: Sequence[int]) -> torch.Tensor:
    """The codes that `pack_codes` was given, int32."""
    stream = np.frombuffer(data, np.uint8)
    return torch.from_numpy(read_bits(stream, 0, int(np.prod(shape)), bits)).reshape(*shape)

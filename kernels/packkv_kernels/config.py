"""CodecConfig: which codec turns K and V into bytes, and with which parameters."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import ClassVar

from packkv_kernels.errors import InvalidInput

__all__ = [
    "BLOCK_TOKENS",
    "MAX_HEAD_DIM",
    "V_BITS",
    "CacheShape",
    "CodecConfig",
    "CodecId",
    "HybridConfig",
    "PackKVConfig",
    "RawConfig",
]

BLOCK_TOKENS = 64
MAX_HEAD_DIM = 512

# Levels of V in the hybrid codec, and the width of their codes.
V_BITS = {2: 1, 4: 2, 8: 3, 16: 4}


class CodecId(IntEnum):
    """The number of a codec in a payload's header."""

    RAW = 1
    PACKKV = 2
    HYBRID = 3


@dataclass(frozen=True)
class CacheShape:
    """The K (and V) that one rank computes for a token: layers × KV heads × head_dim values."""

    layers: int
    heads: int
    head_dim: int

    def __post_init__(self) -> None:
        _check_range("layers", self.layers, 1, 65_535)
        _check_range("heads", self.heads, 1, 65_535)
        _check_range("head_dim", self.head_dim, 4, MAX_HEAD_DIM)
        if self.head_dim % 4:
            raise InvalidInput(f"head_dim {self.head_dim} is not a multiple of 4")


class CodecConfig:
    """A codec and its parameters: immutable, comparable, and equal exactly if its digest is.

    One frozen dataclass per codec: `HybridConfig`, `PackKVConfig`, `RawConfig`.
    """

    name: ClassVar[str]
    codec_id: ClassVar[CodecId]
    sinks: int

    @staticmethod
    def preset(name: str) -> "CodecConfig":
        """The codec of that name with its default parameters.

        Raises:
            InvalidInput: no codec has that name.
        """
        return _codec(name)()

    @staticmethod
    def parse(text: str) -> "CodecConfig":
        """Reads a spelling such as "hybrid" or "hybrid:delta=1.0,v_levels=8".

        Raises:
            InvalidInput: an unknown codec or parameter, or a value beyond its limits.
        """
        name, _, rest = text.partition(":")
        codec = _codec(name.strip())
        known = {field.name: field.type for field in fields(codec)}
        values: dict[str, int | float] = {}
        for assignment in filter(None, (part.strip() for part in rest.split(","))):
            key, _, value = (part.strip() for part in assignment.partition("="))
            if key not in known:
                raise InvalidInput(f"codec {codec.name} has no parameter {key!r}: {sorted(known)}")
            values[key] = _number(key, value, known[key] is int)
        return codec(**values)  # type: ignore[arg-type]

    @property
    def parameters(self) -> dict[str, int | float]:
        """The parameters by name, in declaration order."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the canonical JSON of name, block size and parameters."""
        described = {"codec": self.name, "block_tokens": BLOCK_TOKENS, **self.parameters}
        text = json.dumps(described, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()

    @property
    def needs_profile(self) -> bool:
        """Whether the integers depend on a calibrated profile."""
        return self.codec_id is CodecId.HYBRID

    def block_sinks(self, first_token: int, tokens: int) -> int:
        """How many leading tokens of the block at `first_token` stay exact."""
        return min(self.sinks, tokens) if first_token == 0 else 0

    def __str__(self) -> str:
        """The spelling that `parse` reads back."""
        spelled = ",".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.name}:{spelled}" if spelled else self.name


@dataclass(frozen=True)
class HybridConfig(CodecConfig):
    """K with query-weighted error and variable width; V rotated, at a fixed width.

    Attributes:
        delta: step of K that is aimed at, in score units: delta · k_scale / rms(q) of a channel.
        v_levels: uniform levels of rotated V: 2, 4, 8 or 16.
        sinks: first tokens of a sequence that stay exact.
    """

    name: ClassVar[str] = "hybrid"
    codec_id: ClassVar[CodecId] = CodecId.HYBRID

    delta: float = 1.0
    v_levels: int = 8
    sinks: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", _check_real("delta", self.delta, 1e-3, 1e3))
        if self.v_levels not in V_BITS:
            raise InvalidInput(f"v_levels {self.v_levels} is not one of {sorted(V_BITS)}")
        _check_range("sinks", self.sinks, 0, BLOCK_TOKENS)


@dataclass(frozen=True)
class PackKVConfig(CodecConfig):
    """PackKV's quantiser (arXiv 2512.24449): one step and zero per token over all KV heads.

    Attributes:
        rel_k: step of K as a share of the token's range.
        rel_v: the same for V.
        sinks: first tokens of a sequence that stay exact.
    """

    name: ClassVar[str] = "packkv"
    codec_id: ClassVar[CodecId] = CodecId.PACKKV

    rel_k: float = 0.05
    rel_v: float = 0.15
    sinks: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "rel_k", _check_real("rel_k", self.rel_k, 1 / 1024, 1.0))
        object.__setattr__(self, "rel_v", _check_real("rel_v", self.rel_v, 1 / 1024, 1.0))
        _check_range("sinks", self.sinks, 0, BLOCK_TOKENS)


@dataclass(frozen=True)
class RawConfig(CodecConfig):
    """Lossless: byte planes and zstandard."""

    name: ClassVar[str] = "raw"
    codec_id: ClassVar[CodecId] = CodecId.RAW

    @property
    def sinks(self) -> int:  # type: ignore[override]
        """Every token is exact, so none needs to be singled out."""
        return 0


def _codec(name: str) -> type[HybridConfig] | type[PackKVConfig] | type[RawConfig]:
    for codec in (HybridConfig, PackKVConfig, RawConfig):
        if codec.name == name:
            return codec
    raise InvalidInput(f"no codec is called {name!r}: hybrid, packkv or raw")


def _number(key: str, text: str, whole: bool) -> int | float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise InvalidInput(f"{key} {text!r} is not {kind}") from None


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{name} {value} is outside {low} … {high}")


def _check_real(name: str, value: float, low: float, high: float) -> float:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidInput(f"{name} {value} is outside {low} … {high}")
    return float(value)

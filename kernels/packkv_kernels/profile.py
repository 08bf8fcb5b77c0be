"""Profile: per-channel query weights of a model, and what follows from them for K."""

import hashlib
import json
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.config import (
    BLOCK_TOKENS,
    V_BITS,
    CacheShape,
    CodecConfig,
    HybridConfig,
)
from packkv_kernels.errors import InvalidInput, ProfileError

__all__ = ["Calibrator", "Profile"]

# A channel that queries never look at still gets a step: at most this many times the head's mean.
_RMS_FLOOR = 1e-2

# The range of a constant channel, whose logarithm would be infinite.
_RANGE_FLOOR = 1e-6

_DTYPES = {
    "k_order": ("I16", "<i2"),
    "k_scale": ("F32", "<f4"),
    "q_rms": ("F32", "<f4"),
    "v_levels": ("U8", "|u1"),
}


@dataclass(frozen=True, eq=False)
class Profile:
    """What calibration learned of a model, over all its layers and KV heads.

    Attributes:
        q_rms: float32 [layers, heads, head_dim], rms of the queries of each KV head's group,
            averaged over the RoPE pair (c, c + head_dim/2); > 0.
        k_order: int16 [layers, heads, head_dim], stored to natural channel, widest first.
        k_scale: float32 [layers, heads], multiplier of the codec's delta; > 0.
        v_levels: uint8 [layers, heads], levels of V, or 0 for the codec's own.
    """

    q_rms: NDArray[np.float32]
    k_order: NDArray[np.int16]
    k_scale: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    v_levels: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def __post_init__(self) -> None:
        heads = self.q_rms.shape[:2]
        if self.k_scale.size == 0:
            object.__setattr__(self, "k_scale", np.ones(heads, np.float32))
        if self.v_levels.size == 0:
            object.__setattr__(self, "v_levels", np.zeros(heads, np.uint8))
        for name, (_, dtype) in _DTYPES.items():
            fixed = np.ascontiguousarray(getattr(self, name), dtype)
            fixed.flags.writeable = False
            object.__setattr__(self, name, fixed)
        _check(self)

    @classmethod
    def identity(cls, shape: CacheShape) -> "Profile":
        """The profile of codecs that need none: unit weights, natural channel order."""
        dims = (shape.layers, shape.heads, shape.head_dim)
        order = np.broadcast_to(np.arange(shape.head_dim, dtype=np.int16), dims)
        return cls(np.ones(dims, np.float32), order)

    @property
    def shape(self) -> CacheShape:
        return CacheShape(*self.q_rms.shape)

    def heads(self, first: int, count: int) -> "Profile":
        """The profile of KV heads first … first + count: what one tensor-parallel rank holds.

        Raises:
            ProfileError: the profile has fewer heads.
        """
        if not 0 <= first < first + count <= self.shape.heads:
            raise ProfileError(
                f"heads {first} … {first + count} of a profile of {self.shape.heads} heads"
            )
        if count == self.shape.heads:
            return self
        part = slice(first, first + count)
        return Profile(
            self.q_rms[:, part],
            self.k_order[:, part],
            self.k_scale[:, part],
            self.v_levels[:, part],
        )

    def k_steps(self, config: CodecConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Step of K per natural channel, and the float32 reciprocal that encoders multiply with.

        Returns:
            (step, inv_step), each float32 [layers, heads, head_dim]; ones for codecs whose step
            is stored in the block.
        """
        if not isinstance(config, HybridConfig):
            ones = np.ones(self.q_rms.shape, np.float32)
            return ones, ones
        scale = config.delta * self.k_scale.astype(np.float64)[..., None]
        step = (scale / self.q_rms.astype(np.float64)).astype(np.float32)
        return step, np.float32(1) / step

    def levels(self, config: CodecConfig) -> NDArray[np.uint8]:
        """Levels of V, uint8 [layers, heads]; zeros for codecs whose V has no fixed levels."""
        if not isinstance(config, HybridConfig):
            return np.zeros(self.v_levels.shape, np.uint8)
        return np.where(self.v_levels == 0, config.v_levels, self.v_levels).astype(np.uint8)

    def to_bytes(self) -> bytes:
        """A safetensors file; equal profiles give equal bytes."""
        parts: dict[str, Any] = {}
        end = 0
        for name, (spelled, _) in _DTYPES.items():
            array = getattr(self, name)
            offsets = [end, end + array.nbytes]
            parts[name] = {"dtype": spelled, "shape": list(array.shape), "data_offsets": offsets}
            end += array.nbytes
        head = json.dumps(parts, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        arrays = (getattr(self, name).tobytes() for name in _DTYPES)
        return struct.pack("<Q", len(head)) + head + b"".join(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Profile":
        """Reads what `to_bytes` (or any safetensors writer) wrote.

        Raises:
            ProfileError: not a profile; the message says what is wrong with it.
        """
        try:
            arrays = _read_safetensors(data)
            return cls(**arrays)
        except InvalidInput as error:
            raise ProfileError(f"not a profile: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise ProfileError(f"not a profile: {type(error).__name__}: {error}") from None

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of `to_bytes()`."""
        return hashlib.sha256(self.to_bytes()).digest()


def _read_safetensors(data: bytes) -> dict[str, NDArray[Any]]:
    (length,) = struct.unpack_from("<Q", data)
    parts = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    arrays = {}
    for name, (spelled, dtype) in _DTYPES.items():
        part = parts[name]
        if part["dtype"] != spelled:
            raise InvalidInput(f"{name} is {part['dtype']}, not {spelled}")
        start, end = part["data_offsets"]
        if not 0 <= start <= end <= len(body):
            raise InvalidInput(f"{name} lies at {start} … {end} of {len(body)} bytes")
        arrays[name] = np.frombuffer(body[start:end], dtype).reshape(part["shape"])
    return arrays


def _check(profile: Profile) -> None:
    if profile.q_rms.ndim != 3:
        raise InvalidInput(f"q_rms {profile.q_rms.shape} is not [layers, heads, head_dim]")
    layers, heads, head_dim = profile.q_rms.shape
    CacheShape(layers, heads, head_dim)
    wanted = {
        "k_order": (layers, heads, head_dim),
        "k_scale": (layers, heads),
        "v_levels": (layers, heads),
    }
    for name, shape in wanted.items():
        if getattr(profile, name).shape != shape:
            raise InvalidInput(f"{name} {getattr(profile, name).shape} is not {shape}")
    for name in ("q_rms", "k_scale"):
        array = getattr(profile, name)
        # the reciprocal of a step must be a normal float32 too
        if not (np.isfinite(array).all() and (array >= 1e-12).all() and (array <= 1e12).all()):
            raise InvalidInput(f"{name} has values outside 1e-12 … 1e12, or NaN")
    if (np.sort(profile.k_order, axis=-1) != np.arange(head_dim)).any():
        raise InvalidInput(f"a row of k_order is not a permutation of 0 … {head_dim - 1}")
    strange = set(np.unique(profile.v_levels).tolist()) - {0, *V_BITS}
    if strange:
        raise InvalidInput(f"v_levels {sorted(strange)} are not 0 or one of {sorted(V_BITS)}")


class Calibrator:
    """Gathers a profile from the queries and keys of ordinary text, layer by layer.

    About a thousand tokens of any text suffice. Feed whole sequences from their start: their
    first tokens are sinks, which no tile holds, and stay out of the widths.
    """

    def __init__(self, shape: CacheShape, sinks: int = 4) -> None:
        self._sinks = sinks
        dims = (shape.layers, shape.heads, shape.head_dim)
        self._shape = shape
        self._squares = torch.zeros(dims, dtype=torch.float64)
        self._queries = torch.zeros(shape.layers, dtype=torch.int64)
        self._log_ranges = torch.zeros(dims, dtype=torch.float64)
        self._blocks = torch.zeros(shape.layers, dtype=torch.int64)

    def observe(self, layer: int, queries: torch.Tensor, keys: torch.Tensor) -> None:
        """Takes in the post-RoPE queries and keys of one layer of one sequence.

        Args:
            queries: [tokens, q_heads, head_dim]; q_heads is a multiple of the KV heads.
            keys: [tokens, heads, head_dim].

        Raises:
            InvalidInput: shapes that do not fit, or NaN or infinity.
        """
        heads, head_dim = self._shape.heads, self._shape.head_dim
        if keys.shape[1:] != (heads, head_dim) or queries.shape[1] % heads:
            raise InvalidInput(
                f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} do not fit "
                f"{heads} KV heads of {head_dim}"
            )
        if queries.shape[2] != head_dim or not (queries.isfinite().all() and keys.isfinite().all()):
            raise InvalidInput(
                f"queries or keys of layer {layer} have NaN, infinity or a bad shape"
            )
        grouped = queries.detach().cpu().double().reshape(len(queries), heads, -1, head_dim)
        self._squares[layer] += grouped.square().mean(2).sum(0)
        self._queries[layer] += len(queries)
        inexact = keys.detach().cpu().double()[self._sinks :]
        for block in torch.split(inexact, BLOCK_TOKENS):
            spread = block.amax(0) - block.amin(0)
            self._log_ranges[layer] += spread.clamp_min(_RANGE_FLOOR).log2()
            self._blocks[layer] += 1

    def finish(self) -> Profile:
        """The profile of what was observed; channels that will need most bits come first.

        Raises:
            ProfileError: a layer was never observed.
        """
        if (self._blocks == 0).any():
            missing = (self._blocks == 0).nonzero().flatten().tolist()
            raise ProfileError(f"layers {missing} were never observed")
        mean = self._squares / self._queries[:, None, None]
        halves = (mean[..., : mean.shape[-1] // 2] + mean[..., mean.shape[-1] // 2 :]) / 2
        rms = torch.cat([halves, halves], -1).sqrt()
        typical = rms.mean(-1, keepdim=True)
        rms = torch.where(typical > 0, rms.maximum(typical * _RMS_FLOOR), torch.ones_like(rms))
        rms = rms.clamp(1e-12, 1e12)
        # log2 of range / step, but for delta: the same for all channels of a head
        widths = self._log_ranges / self._blocks[:, None, None] + rms.log2()
        order = torch.argsort(widths, dim=-1, descending=True, stable=True)
        return Profile(rms.float().numpy(), order.to(torch.int16).numpy())

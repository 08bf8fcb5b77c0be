"""transformers' own QuantizedCache, as it is installed: its quantisers store K and V."""

from __future__ import annotations

from dataclasses import dataclass
from subprocess import SubprocessError

import torch
from transformers import PreTrainedConfig, QuantizedCache

from packkv.bench.codec.setting import SINKS, KeysValues, head_bytes

__all__ = ["GroupWise", "TransformersCache", "missing", "stored_bytes"]


@dataclass(frozen=True)
class GroupWise:
    """The options of the backends that quantise groups; K and V share the bits.

    Attributes:
        bits: of a code.
        axis_key, axis_value: what a group runs along, in the backend's own numbering.
        group: values that share a scale and a zero point.
    """

    bits: int
    axis_key: int
    axis_value: int
    group: int

    @property
    def label(self) -> str:
        return f"{self.bits} bits, K axis {self.axis_key}, V axis {self.axis_value}, g{self.group}"


@dataclass(frozen=True)
class TransformersCache:
    """A setting of `transformers.QuantizedCache`.

    The class gets a prefix as a model's prefill hands it over, in fp16, and quantises all of it
    at once: its window of exact tokens is empty then, and fills with what comes later. As with
    every codec the sinks are kept apart; copies of the first token behind them take their place.

    Attributes:
        backend: "quanto", "hqq" or "fp8".
        config: of the model.
        options: of the backends that have any.
    """

    backend: str
    config: PreTrainedConfig
    options: GroupWise | None = None

    @property
    def label(self) -> str:
        return "e4m3, a scale per layer" if self.options is None else self.options.label

    @torch.inference_mode()
    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> _Filled:
        cache = self.empty()
        multiple = self.options.group if self.options else 1
        for layer, pair in enumerate(zip(keys, values, strict=True)):
            cache.update(*(_as_prefilled(part, multiple) for part in pair), layer)
        exact = (keys[:, :SINKS].half(), values[:, :SINKS].half())
        return _Filled(cache, exact, keys.shape[1], head_bytes(keys))

    def empty(self) -> QuantizedCache:
        """The cache, without any token."""
        options = self.options
        if options is None:
            return QuantizedCache(self.backend, self.config)
        return QuantizedCache(
            self.backend,
            self.config,
            nbits=options.bits,
            axis_key=options.axis_key,
            axis_value=options.axis_value,
            q_group_size=options.group,
        )


@dataclass(frozen=True)
class _Filled:
    cache: QuantizedCache
    exact: tuple[torch.Tensor, torch.Tensor]
    tokens: int
    head_bytes: int

    @property
    def nbytes(self) -> int:
        exact = sum(part.nbytes for part in self.exact)
        return self.head_bytes + exact + sum(map(_layer_bytes, self.cache.layers))

    @torch.inference_mode()
    def decode(self) -> KeysValues:
        keys, values = zip(*map(self._layer, range(len(self.cache.layers))), strict=True)
        return torch.stack(keys), torch.stack(values)

    def _layer(self, layer: int) -> KeysValues:
        heads = self.exact[0].shape[2]
        none = torch.empty(1, heads, 0, self.exact[0].shape[3], dtype=torch.float16)
        # a step without new tokens returns what attention would get
        found = self.cache.update(none, none, layer)
        keys, values = (
            torch.cat([exact[layer], part[0].transpose(0, 1)[SINKS : self.tokens]]).float()
            for exact, part in zip(self.exact, found, strict=True)
        )
        return keys, values


def missing(backend: str, config: PreTrainedConfig) -> str | None:
    """Why a backend cannot be measured here; None if it can."""
    options = None if backend == "fp8" else GroupWise(4, 0, 0, 64)
    values = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64).half()
    try:
        cache = TransformersCache(backend, config, options).empty()
        cache.update(values, values, 0)
        cache.update(values[:, :, :0], values[:, :, :0], 0)
    # a backend is imported, and may compile C++, when it is first used
    except (ImportError, OSError, RuntimeError, SubprocessError, ValueError) as reason:
        first = (str(reason).splitlines() or [type(reason).__name__])[0]
        return f"no rows for transformers-{backend}: {first}"
    return None


def stored_bytes(held: object) -> int:
    """Bytes of all tensors in what a backend keeps: codes, scales, zero points."""
    if isinstance(held, torch.Tensor):
        if not hasattr(held, "__tensor_flatten__"):
            return held.nbytes
        # a tensor made of tensors
        names, _ = held.__tensor_flatten__()
        return sum(stored_bytes(getattr(held, name)) for name in names)
    if isinstance(held, dict):
        return sum(map(stored_bytes, held.values()))
    if isinstance(held, tuple | list):
        return sum(map(stored_bytes, held))
    return 0


def _layer_bytes(layer: object) -> int:
    names = ("_quantized_keys", "_quantized_values", "keys", "values")
    return sum(stored_bytes(getattr(layer, name)) for name in names)


def _as_prefilled(part: torch.Tensor, multiple: int) -> torch.Tensor:
    """fp16 [1, heads, tokens, head_dim] of float32 [tokens, heads, head_dim].

    Tokens are filled up to a multiple with copies of the last.
    """
    first, last = part[SINKS : SINKS + 1], part[-1:]
    filled = [
        first.expand(SINKS, -1, -1),
        part[SINKS:],
        last.expand(-len(part) % multiple, -1, -1),
    ]
    return torch.cat(filled).transpose(0, 1)[None].contiguous().half()

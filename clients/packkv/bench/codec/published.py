"""PackKV as published (arXiv 2512.24449): packs of 16 tokens, repacked, as real bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from packkv.bench.codec.setting import SINKS, KeysValues, head_bytes
from packkv_kernels.backend import run_parallel
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.packs import (
    PackKVQuantizer,
    Repacker,
    Repacking,
    TokenIntegers,
    decode_packs,
    encode_packs,
    published_bytes,
)

__all__ = ["PublishedPackKV"]

# Where K ends and V ends within the section of one layer of a block.
_OFFSET_BYTES = 8


@dataclass(frozen=True)
class PublishedPackKV:
    """The paper's quantiser and packs, with the metadata that the paper leaves out.

    Attributes:
        rel_k, rel_v: step as a share of a token's range.
        repacking: order of the tokens of a block.
        pack_tokens: 4, 8 or 16.
    """

    rel_k: float
    rel_v: float
    repacking: Repacking = Repacking.MEDIAN
    pack_tokens: int = 16

    @property
    def label(self) -> str:
        return f"K {self.rel_k:g}, V {self.rel_v:g}, {self.repacking} p{self.pack_tokens}"

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> _Packed:
        exact = (keys[:, :SINKS].half(), values[:, :SINKS].half())
        layers: list[list[_PackedBlock]] = [[] for _ in range(len(keys))]

        def work(start: int, stop: int) -> None:
            for layer in range(start, stop):
                layers[layer] = self._encode_layer(keys[layer].numpy(), values[layer].numpy())

        run_parallel(work, len(keys))
        return _Packed(layers, exact, self.pack_tokens, head_bytes(keys))

    def published_bits(self, keys: torch.Tensor, values: torch.Tensor) -> float:
        """Bits per value by the paper's own count, which leaves out most metadata.

        As in the paper there are no exact tokens: every token of every full block is packed.

        Args:
            keys, values: float32 [layers, tokens, heads, head_dim], at least one block.
        """
        blocks = keys.shape[1] // BLOCK_TOKENS
        repacker = Repacker(self.repacking, self.pack_tokens)
        counted = 0
        for key, value in zip(keys.numpy(), values.numpy(), strict=True):
            k = PackKVQuantizer(self.rel_k).quantize(key[: blocks * BLOCK_TOKENS])
            v = PackKVQuantizer(self.rel_v).quantize(value[: blocks * BLOCK_TOKENS])
            pairs = list(zip(*(np.split(x.integers, blocks) for x in (k, v)), strict=True))
            orders = [repacker.order(*pair) for pair in pairs]
            for side in zip(*pairs, strict=True):
                packed = [part[order] for part, order in zip(side, orders, strict=True)]
                counted += published_bytes(packed, self.pack_tokens)
        return 8 * counted / (2 * blocks * BLOCK_TOKENS * keys[:, 0].numel())

    def _encode_layer(
        self, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> list[_PackedBlock]:
        k = PackKVQuantizer(self.rel_k).quantize(keys[SINKS:])
        v = PackKVQuantizer(self.rel_v).quantize(values[SINKS:])
        repacker = Repacker(self.repacking, self.pack_tokens)
        blocks = []
        for start, stop in _block_bounds(len(keys)):
            tokens = np.arange(start, stop)
            order = tokens[repacker.order(k.integers[tokens], v.integers[tokens])]
            sides = [_pack_side(side.take(order), self.pack_tokens) for side in (k, v)]
            blocks.append(_PackedBlock(*sides))
        return blocks


@dataclass(frozen=True)
class _PackedSide:
    """K or V of one layer of a block; scale and zero of a token take 4 bytes, as in the paper.

    Scales that fp16 cannot hold stay float32.
    """

    packs: bytes
    shape: tuple[int, ...]
    scale: NDArray[np.float16] | NDArray[np.float32]
    zero: NDArray[np.int16]

    @property
    def nbytes(self) -> int:
        return len(self.packs) + self.scale.nbytes + self.zero.nbytes

    def values(self, pack_tokens: int) -> NDArray[np.float32]:
        integers = decode_packs(self.packs, self.shape, pack_tokens)
        return TokenIntegers(integers, self.scale.astype(np.float32), self.zero).values()


@dataclass(frozen=True)
class _PackedBlock:
    keys: _PackedSide
    values: _PackedSide


@dataclass(frozen=True)
class _Packed:
    layers: list[list[_PackedBlock]]
    exact: tuple[torch.Tensor, torch.Tensor]
    pack_tokens: int
    head_bytes: int

    @property
    def nbytes(self) -> int:
        sections = sum(
            block.keys.nbytes + block.values.nbytes + _OFFSET_BYTES
            for layer in self.layers
            for block in layer
        )
        return self.head_bytes + sections + sum(part.nbytes for part in self.exact)

    def decode(self) -> KeysValues:
        decoded: list[KeysValues | None] = [None] * len(self.layers)
        run_parallel(partial(self._decode_layers, decoded), len(self.layers))
        done = [layer for layer in decoded if layer is not None]
        return torch.stack([k for k, _ in done]), torch.stack([v for _, v in done])

    def _decode_layers(self, decoded: list[KeysValues | None], start: int, stop: int) -> None:
        for layer in range(start, stop):
            blocks = self.layers[layer]
            keys = [block.keys.values(self.pack_tokens) for block in blocks]
            values = [block.values.values(self.pack_tokens) for block in blocks]
            decoded[layer] = (
                torch.cat([self.exact[0][layer].float(), torch.from_numpy(np.concatenate(keys))]),
                torch.cat([self.exact[1][layer].float(), torch.from_numpy(np.concatenate(values))]),
            )


def _block_bounds(tokens: int) -> list[tuple[int, int]]:
    """Start and stop of each block, counted without the sinks."""
    starts = range(0, tokens, BLOCK_TOKENS)
    return [
        (max(start - SINKS, 0), min(start + BLOCK_TOKENS, tokens) - SINKS)
        for start in starts
        if min(start + BLOCK_TOKENS, tokens) > SINKS
    ]


def _pack_side(side: TokenIntegers, pack_tokens: int) -> _PackedSide:
    packs = encode_packs(side.integers, pack_tokens)
    with np.errstate(over="ignore"):
        halves = side.scale.astype(np.float16)
    held = bool((np.isfinite(halves) & (halves > 0)).all())
    scale = halves if held else side.scale
    return _PackedSide(packs, side.integers.shape, scale, side.zero)

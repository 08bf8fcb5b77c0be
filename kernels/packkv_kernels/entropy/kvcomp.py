"""KVComp as published (arXiv 2509.00579): relative quantisation, one Huffman codebook per layer.

`KVCompSide` is K or V of one layer, as it grows: what does not fit the buffer is cut off in whole
blocks of 64 tokens, quantised, coded, and appended to what is there already.
"""

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS, MAX_HEAD_DIM
from packkv_kernels.entropy.codebook import Codebook
from packkv_kernels.entropy.kvcomp_blocks import (
    BLOCK_SLACK,
    decode_blocks,
    encode_blocks,
    most_words,
)
from packkv_kernels.entropy.quantise import dequantise, quantise
from packkv_kernels.entropy.streams import table_of
from packkv_kernels.errors import InvalidInput, PayloadError

__all__ = ["KVCompConfig", "KVCompSide", "Units"]


class Units(Enum):
    """Which values of a block [64, head_dim] share a minimum and a step."""

    BLOCK = "block"
    CHANNEL = "channel"
    TOKEN = "token"

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes of [blocks, 64, head_dim] that a unit spans."""
        return {Units.BLOCK: (1, 2), Units.CHANNEL: (1,), Units.TOKEN: (2,)}[self]

    def per_block(self, head_dim: int) -> int:
        """How many of them a block has."""
        return {Units.BLOCK: 1, Units.CHANNEL: head_dim, Units.TOKEN: BLOCK_TOKENS}[self]


@dataclass(frozen=True)
class KVCompConfig:
    """The paper's parameters.

    Attributes:
        rel_k: step of K as a share of its unit's range; the paper stops near 0.05 for blocks and
            0.25 for channels.
        rel_v: the same for V, whose units are tokens; the paper stops near 0.15.
        k_units: "channel" or "block".
        buffer_tokens: newest tokens of a sequence that may wait uncompressed.
    """

    rel_k: float = 0.05
    rel_v: float = 0.15
    k_units: str = "channel"
    buffer_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("rel_k", "rel_v"):
            value = getattr(self, name)
            # 8-bit codes hold 255 steps; more than half the range would not be a step in fp16
            if not (math.isfinite(value) and 1 / 255 <= value <= 0.5):
                raise InvalidInput(f"{name} {value} is outside 1/255 … 0.5")
        if self.k_units not in ("block", "channel"):
            raise InvalidInput(f"k_units {self.k_units!r} is not 'block' or 'channel'")
        if self.buffer_tokens < BLOCK_TOKENS:
            raise InvalidInput(f"buffer_tokens {self.buffer_tokens} is less than {BLOCK_TOKENS}")

    def keys(self) -> "KVCompSide":
        """An empty K of one layer."""
        return KVCompSide(self.rel_k, Units(self.k_units))

    def values(self) -> "KVCompSide":
        """An empty V of one layer."""
        return KVCompSide(self.rel_v, Units.TOKEN)


class KVCompSide:
    """Compressed K or V of one layer; its codebook is that of the first blocks, the prefill's.

    Attributes:
        codebook: None until there are blocks.
        offsets: u32 [blocks, heads], first word of each block of each head: the paper's block
            offsets array.
    """

    def __init__(self, rel: float, units: Units) -> None:
        self.codebook: Codebook | None = None
        self.offsets = np.empty((0, 0), np.uint32)
        self._rel = np.float32(rel)
        self._units = units
        self._words = np.zeros(BLOCK_SLACK, np.uint32)
        self._head_dim = 0

    @property
    def tokens(self) -> int:
        return BLOCK_TOKENS * len(self.offsets)

    @property
    def words(self) -> NDArray[np.uint32]:
        """The blocks one after the other; `offsets` says where each begins."""
        return self._words[:-BLOCK_SLACK]

    @property
    def nbytes(self) -> int:
        """All that is kept: blocks with their slice lengths and units, offsets, the codebook."""
        if self.codebook is None:
            return 0
        return self.words.nbytes + self.offsets.nbytes + len(self.codebook.to_bytes())

    def append(self, values: NDArray[np.float32]) -> None:
        """Compresses whole blocks behind those that are there.

        Args:
            values: float32 [tokens, heads, head_dim], tokens a multiple of 64.

        Raises:
            InvalidInput: another shape, NaN, infinity, or values beyond ±65,504.
        """
        self._check(values)
        tokens, heads, self._head_dim = values.shape
        blocks = tokens // BLOCK_TOKENS
        by_head = values.reshape(blocks, BLOCK_TOKENS, heads, -1).transpose(0, 2, 1, 3)
        by_block = by_head.reshape(blocks * heads, BLOCK_TOKENS, -1)
        codes, units = quantise(by_block, self._rel, self._units.axes)
        if self.codebook is None:
            self.codebook = Codebook.fit(np.bincount(codes.reshape(-1), minlength=256))
            self.offsets = np.empty((0, heads), np.uint32)
        room = len(codes) * most_words(self._head_dim, units.shape[1])
        words, offsets = np.zeros(room, np.uint32), np.empty(len(codes), np.uint32)
        book = self.codebook
        end = encode_blocks(codes, units, book.lengths, book.codewords(), words, offsets)
        begin = len(self._words) - BLOCK_SLACK
        if begin + end >= 2**32:
            raise InvalidInput("the blocks of a layer exceed what 32-bit offsets can name")
        slack = np.zeros(BLOCK_SLACK, np.uint32)
        self._words = np.concatenate([self._words[:begin], words[:end], slack])
        moved = (offsets + np.uint32(begin)).reshape(blocks, heads)
        self.offsets = np.concatenate([self.offsets, moved])

    def decode(self) -> NDArray[np.float32]:
        """All compressed tokens, float32 [tokens, heads, head_dim].

        Each value is within half its unit's step, and float32 rounding, of what went in.
        """
        blocks, heads = self.offsets.shape
        if self.codebook is None:
            return np.empty((0, heads, self._head_dim), np.float32)
        codes = np.empty((blocks * heads, BLOCK_TOKENS, self._head_dim), np.uint8)
        units = np.empty((len(codes), self._units.per_block(self._head_dim)), np.uint32)
        table = table_of(self.codebook.lengths)
        if not decode_blocks(self._words, self.offsets.reshape(-1), table, units, codes):
            raise PayloadError("section", "a slice is not as long as it says")
        values = dequantise(codes, units, self._units.axes)
        values = values.reshape(blocks, heads, BLOCK_TOKENS, -1).transpose(0, 2, 1, 3)
        return values.reshape(self.tokens, heads, -1)

    def select_heads(self, heads: NDArray[np.int64]) -> None:
        """Keeps these heads in this order, some perhaps twice; blocks are shared, not copied."""
        self.offsets = self.offsets[:, heads]

    def _check(self, values: NDArray[np.float32]) -> None:
        if (
            values.ndim != 3
            or len(values) % BLOCK_TOKENS
            or not 0 < values.shape[2] <= MAX_HEAD_DIM
        ):
            raise InvalidInput(
                f"{values.shape} is not [tokens, heads, head_dim] with tokens a multiple of "
                f"{BLOCK_TOKENS} and head_dim up to {MAX_HEAD_DIM}"
            )
        expected = (self.offsets.shape[1], self._head_dim)
        if self.codebook is not None and values.shape[1:] != expected:
            raise InvalidInput(f"heads and head_dim {values.shape[1:]}, but before {expected}")
        # written so that NaN does not pass
        if not (np.abs(values) <= 65_504).all():
            raise InvalidInput("kvcomp takes finite values up to ±65504")

"""Blocks of K and V to sections on the device: scales, planes, a scan over the lengths, a copy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from packkv_kernels.compress.plan import LayerPlan
from packkv_kernels.compress.rotation import rotation_span
from packkv_kernels.compress.scales import (
    RANGE_BOUNDS,
    STEP_BOUNDS,
    mean_square_thresholds,
    scale_tables,
)
from packkv_kernels.compress.triton.encode import encode_sections, gather_sections
from packkv_kernels.compress.triton.integers import quantise_values, token_scales
from packkv_kernels.compress.triton.target import Target
from packkv_kernels.config import BLOCK_TOKENS, V_BITS, CodecConfig, PackKVConfig
from packkv_kernels.format.tile import DESCRIPTOR_WORDS, WORDS, v_unit

__all__ = [
    "ENCODE_REGISTERS",
    "ENCODE_WARPS",
    "GATHER_WORDS",
    "SCALE_VALUES",
    "DeviceSections",
    "Encoder",
    "encode_blocks",
    "most_words",
    "rotation_shape",
]

# Words that a program of the copy moves.
GATHER_WORDS = 1024

# Values that a program of the scale pass holds.
SCALE_VALUES = 8192

ENCODE_WARPS = 4

# Of a thread of the kernel that writes sections.
ENCODE_REGISTERS = 208


def rotation_shape(target: Target) -> tuple[int, int]:
    """(tokens, warps) of a program that rotates V.

    A thread that holds all of a token adds within its registers, at a seventh of the cost. Of more
    than 128 channels it spills, which still costs less than to go through shared memory.
    """
    return target.lanes, 1


@dataclass(frozen=True)
class DeviceSections:
    """Sections as they came from the encoder.

    Attributes:
        words: uint32; the first starts[-1] are the sections, the rest is unused.
        starts: int64 [layers · blocks · heads + 1], first word of each, and the end of the last.
        descriptors: int32 [layers, blocks, heads, DESCRIPTOR_WORDS].
    """

    words: torch.Tensor
    starts: torch.Tensor
    descriptors: torch.Tensor


class Encoder:
    """Encodes K and V of some layers; holds the codec's tables on the device."""

    def __init__(self, plans: Sequence[LayerPlan], device: torch.device) -> None:
        """
        Args:
            plans: one per layer, of one codec.
            device: where kernels run.
        """

        def stack(rows: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.stack(rows)).to(device)

        self.config = plans[0].config
        self.heads, self.head_dim = plans[0].heads, plans[0].head_dim
        self._order = stack([plan.order for plan in plans])
        self._inv_step = stack([plan.inv_step for plan in plans])
        self._levels = stack([plan.levels.astype(np.int32) for plan in plans])
        inverses = np.zeros((5, 256), np.float32)
        for levels, width in V_BITS.items():
            inverses[width] = scale_tables(levels)[1]
        self._inverses = torch.from_numpy(inverses).to(device)
        self._range_bounds = torch.from_numpy(RANGE_BOUNDS.copy()).to(device)
        self._step_bounds = torch.from_numpy(STEP_BOUNDS.copy()).to(device)
        self._thresholds = torch.from_numpy(mean_square_thresholds()).to(device)

    @staticmethod
    def of(config: CodecConfig, tables: Sequence[torch.Tensor]) -> "Encoder":
        """The encoder of that codec whose `tables` these are."""
        encoder = Encoder.__new__(Encoder)
        encoder.config = config
        encoder._order, encoder._inv_step, encoder._levels, *rest = tables
        encoder._inverses, encoder._range_bounds, encoder._step_bounds, encoder._thresholds = rest
        _, encoder.heads, encoder.head_dim = encoder._order.shape
        return encoder

    @property
    def tables(self) -> list[torch.Tensor]:
        """All that it holds on the device: what an operator of torch takes."""
        return [
            *(self._order, self._inv_step, self._levels, self._inverses),
            *(self._range_bounds, self._step_bounds, self._thresholds),
        ]

    def __call__(
        self, keys: torch.Tensor, values: torch.Tensor, first_token: int
    ) -> DeviceSections:
        """Sections of all blocks; launches only, the device is never waited for.

        Args:
            keys, values: [layers, tokens, heads, head_dim], contiguous, finite, within ±65,504.
            first_token: position of the first token in the sequence.
        """
        layers, tokens = keys.shape[:2]
        sections = layers * -(-tokens // BLOCK_TOKENS) * self.heads
        sinks = self.config.block_sinks(first_token, min(tokens, BLOCK_TOKENS))
        slot_words = most_words(self.head_dim, sinks)
        device = keys.device
        words = torch.empty(sections, slot_words, dtype=torch.uint32, device=device)
        shape = (layers, sections // (layers * self.heads), self.heads, DESCRIPTOR_WORDS)
        descriptors = torch.empty(shape, dtype=torch.int32, device=device)
        scales = [*self._scales(keys, "rel_k"), *self._scales(values, "rel_v")]
        encode_sections[(sections // layers, layers)](
            keys, values, self._order, self._inv_step, self._range_bounds, self._step_bounds,
            self._levels, *self._codes(values, sinks), *scales, words, descriptors,
            tokens, sinks, slot_words,
            HEADS=self.heads, D=self.head_dim, D_PAD=max(16, _power(self.head_dim)),
            UNIT_V=v_unit(self.head_dim), HYBRID=not isinstance(self.config, PackKVConfig),
            num_warps=ENCODE_WARPS, enable_fp_fusion=False,
            **Target.of(device).registers(ENCODE_REGISTERS),
        )  # fmt: skip
        starts = torch.zeros(sections + 1, dtype=torch.int64, device=device)
        torch.cumsum(descriptors.view(sections, -1)[:, WORDS], 0, out=starts[1:])
        gathered = torch.empty(sections * slot_words, dtype=torch.uint32, device=device)
        gather_sections[(sections, -(-slot_words // GATHER_WORDS))](
            words, starts, gathered, slot_words, WORDS=GATHER_WORDS
        )
        return DeviceSections(gathered, starts, descriptors)

    def _codes(self, values: torch.Tensor, sinks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scale codes of rotated V; empty for codecs that do not rotate it."""
        layers, tokens, heads, head_dim = values.shape
        if isinstance(self.config, PackKVConfig):
            tokens = 0
        codes = torch.empty(
            layers, heads, tokens, head_dim, dtype=torch.uint8, device=values.device
        )
        scale_codes = torch.empty(layers, heads, tokens, dtype=torch.int16, device=values.device)
        span, padded = rotation_span(head_dim), max(16, _power(head_dim))
        share, warps = rotation_shape(Target.of(values.device))
        if tokens:
            quantise_values[(-(-tokens // share), heads, layers)](
                values, self._levels, self._inverses, self._thresholds, codes, scale_codes,
                tokens, sinks,
                HEADS=heads, D=head_dim, D_PAD=padded, SPAN=span, FACTOR=1 / math.sqrt(span),
                SHARE=1 / head_dim, TOKENS=share, num_warps=warps, enable_fp_fusion=False,
            )  # fmt: skip
        return codes, scale_codes

    def _scales(self, values: torch.Tensor, rel: str) -> tuple[torch.Tensor, torch.Tensor]:
        """PackKV's scale and zero, float32 [layers, tokens] each; empty for other codecs."""
        if not isinstance(self.config, PackKVConfig):
            empty = torch.empty(0, dtype=torch.float32, device=values.device)
            return empty, empty
        layers, tokens, heads, head_dim = values.shape
        scale = torch.empty(layers, tokens, dtype=torch.float32, device=values.device)
        zero = torch.empty_like(scale)
        width = heads * head_dim
        rows = max(1, SCALE_VALUES // _power(width))
        token_scales[(-(-layers * tokens // rows),)](
            values, scale, zero, layers * tokens, getattr(self.config, rel),
            WIDTH=width, WIDTH_PAD=_power(width), TOKENS=rows, enable_fp_fusion=False,
        )  # fmt: skip
        return scale, zero


def encode_blocks(
    keys: torch.Tensor, values: torch.Tensor, plan: LayerPlan, first_token: int
) -> list[list[bytes]]:
    """Sections of one layer in host memory, [block][head]; bit-identical to the reference's.

    Args:
        keys, values: [tokens, heads, head_dim], float16, bfloat16 or float32, finite and within
            ±65,504.
        plan: the codec's parameters for the layer.
        first_token: position of the first token in the sequence.
    """
    encode = Encoder([plan], keys.device)
    found = encode(keys[None].contiguous(), values[None].contiguous(), first_token)
    starts = found.starts.tolist()
    data = found.words[: starts[-1]].cpu().numpy().tobytes()
    sections = [data[4 * a : 4 * b] for a, b in pairwise(starts)]
    heads = plan.heads
    return [sections[at : at + heads] for at in range(0, len(sections), heads)]


def most_words(head_dim: int, sinks: int) -> int:
    """At least the u32 words of any section: two raw tiles, exact rows, bitmaps, side arrays."""
    return (2 * BLOCK_TOKENS * head_dim // 2 + sinks * head_dim + 2 * head_dim + 512) // 4 * 4


def _power(count: int) -> int:
    """The least power of two that is not below it."""
    return 1 << (count - 1).bit_length()

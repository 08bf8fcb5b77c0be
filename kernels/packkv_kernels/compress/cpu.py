"""Encoding and decoding on the CPU: compiled loops over sections, spread over the cores."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.backend import run_parallel
from packkv_kernels.compress.cpu_sections import (
    decode_sections,
    encode_hybrid_sections,
    encode_packkv_sections,
)
from packkv_kernels.compress.plan import LayerPlan
from packkv_kernels.compress.scales import mean_square_thresholds, scale_tables
from packkv_kernels.config import BLOCK_TOKENS, V_BITS, PackKVConfig
from packkv_kernels.format import ResidentSections

__all__ = ["decode_layers", "encode_blocks"]


def encode_blocks(
    keys: torch.Tensor, values: torch.Tensor, plan: LayerPlan, first_token: int
) -> list[list[bytes]]:
    """Sections of one layer, [block][head]; bit-identical to the reference's.

    Args:
        keys, values: float32 [tokens, heads, head_dim], finite and within ±65,504.
        plan: the codec's parameters for the layer.
        first_token: position of the first token in the sequence.
    """
    tokens, heads, head_dim = keys.shape
    blocks = -(-tokens // BLOCK_TOKENS)
    sinks = plan.config.block_sinks(first_token, min(tokens, BLOCK_TOKENS))
    arena = np.empty((blocks * heads, _most_words(head_dim, sinks)), np.uint32)
    lengths = np.zeros(blocks * heads, np.int64)
    k, v = keys.contiguous().numpy(), values.contiguous().numpy()

    def work(start: int, stop: int) -> None:
        if isinstance(plan.config, PackKVConfig):
            rel_k, rel_v = np.float32(plan.config.rel_k), np.float32(plan.config.rel_v)
            encode_packkv_sections(start, stop, k, v, sinks, rel_k, rel_v, arena, lengths)
        else:
            encode_hybrid_sections(
                *(start, stop, k, v, sinks),
                *(plan.order, plan.inv_step, plan.levels, _inverses(), mean_square_thresholds()),
                *(arena, lengths),
            )

    # packkv's scales are over all heads of a block, so work is split between blocks
    run_parallel(work, blocks)
    sections = [row[:length].tobytes() for row, length in zip(arena, lengths, strict=True)]
    return [sections[block * heads : (block + 1) * heads] for block in range(blocks)]


def decode_layers(
    resident: ResidentSections, plans: Sequence[LayerPlan], tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of a block, float32 [layers, tokens, heads, head_dim].

    Args:
        resident: proven sections, layer-major.
        plans: one per layer.
        tokens: how many the block has.
    """
    shape = (len(plans), tokens, plans[0].heads, plans[0].head_dim)
    keys, values = torch.empty(shape), torch.empty(shape)
    order = np.stack([plan.order for plan in plans])
    step = np.stack([plan.step for plan in plans])
    inv_step = np.stack([plan.inv_step for plan in plans])
    levels = np.stack([plan.levels for plan in plans])

    def work(start: int, stop: int) -> None:
        packed = (resident.words, resident.bases, resident.descriptors)
        decode_sections(
            start, stop, *packed, order, step, inv_step, levels, keys.numpy(), values.numpy()
        )

    run_parallel(work, len(plans))
    return keys, values


def _most_words(head_dim: int, sinks: int) -> int:
    """More u32 words than any section takes: two raw tiles, exact rows, bitmaps, side arrays."""
    return 2 * BLOCK_TOKENS * head_dim // 2 + sinks * head_dim + 2 * head_dim + 512


def _inverses() -> NDArray[np.float32]:
    """1 / step by scale code, float32 [5, 256], rows by width of the levels."""
    rows = np.zeros((5, 256), np.float32)
    for levels, width in V_BITS.items():
        rows[width] = scale_tables(levels)[1]
    return rows

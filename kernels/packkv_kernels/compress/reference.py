"""The definition of right: K and V to integers and back in plain torch, as docs/codec.md says."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.compress.plan import LayerPlan
from packkv_kernels.compress.reference_section import SideCodes, read_side, write_section
from packkv_kernels.compress.rotation import rotation_span
from packkv_kernels.compress.scales import (
    INV_STEPS,
    K_WIDTHS,
    RANGE_BOUNDS,
    STEP_BOUNDS,
    STEPS,
    mean_square_thresholds,
    scale_tables,
)
from packkv_kernels.config import BLOCK_TOKENS, V_BITS, HybridConfig, PackKVConfig
from packkv_kernels.format import ResidentSections, tile

__all__ = ["decode_layer", "encode_blocks"]

_INT16 = (-32_768, 32_767)
_MAX_CODE = 255


def encode_blocks(
    keys: torch.Tensor, values: torch.Tensor, plan: LayerPlan, first_token: int
) -> list[list[bytes]]:
    """Sections of one layer, [block][head].

    Args:
        keys, values: float32 [tokens, heads, head_dim], finite and within ±65,504.
        plan: the codec's parameters for the layer.
        first_token: position of the first token in the sequence.
    """
    blocks = []
    for start in range(0, len(keys), BLOCK_TOKENS):
        k, v = keys[start : start + BLOCK_TOKENS], values[start : start + BLOCK_TOKENS]
        sinks = plan.config.block_sinks(first_token + start, len(k))
        blocks.append(_encode_block(k, v, plan, sinks))
    return blocks


def decode_layer(
    resident: ResidentSections, rows: range, plan: LayerPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of one layer of a block, float32 [tokens, heads, head_dim].

    Args:
        resident: proven sections.
        rows: which sections: the layer's heads in order.
        plan: the codec's parameters for the layer.
    """
    keys, values = [], []
    for head, section in enumerate(rows):
        row = resident.descriptors[section]
        base = resident.bases[section]
        words = resident.words[base : base + row[tile.WORDS]]
        keys.append(_decode_side(words, row, tile.K_SIDE, plan, head))
        values.append(_decode_side(words, row, tile.V_SIDE, plan, head))
    return torch.stack(keys, 1), torch.stack(values, 1)


def _encode_block(
    keys: torch.Tensor, values: torch.Tensor, plan: LayerPlan, sinks: int
) -> list[bytes]:
    heads = range(keys.shape[1])
    if isinstance(plan.config, PackKVConfig):
        k_sides = _packkv_codes(keys, plan.config.rel_k, sinks)
        v_sides = _packkv_codes(values, plan.config.rel_v, sinks)
    else:
        k_sides = [_hybrid_k_codes(keys[:, h], plan, h, sinks) for h in heads]
        v_sides = [_hybrid_v_codes(values[:, h], int(plan.levels[h]), sinks) for h in heads]
    return [write_section(keys[:, h], values[:, h], sinks, k_sides[h], v_sides[h]) for h in heads]


def _hybrid_k_codes(keys: torch.Tensor, plan: LayerPlan, head: int, sinks: int) -> SideCodes | None:
    order = torch.from_numpy(plan.order[head].astype(np.int64))
    scaled = (keys * torch.from_numpy(plan.inv_step[head]))[:, order]
    head_dim = len(order)
    codes = torch.zeros(BLOCK_TOKENS, head_dim, dtype=torch.int64)
    inexact = scaled[sinks:]
    if len(inexact) == 0:
        nothing = torch.zeros(head_dim, dtype=torch.int64)
        widths = torch.zeros(head_dim // tile.K_UNIT, dtype=torch.int64)
        return SideCodes(codes, nothing, steps=nothing, widths=widths)
    low, high = inexact.amin(0), inexact.amax(0)
    span, middle = high - low, (low + high) * 0.5
    # written so that NaN does not fit
    if not (span <= RANGE_BOUNDS[-1]).all():
        return None
    widest = span.reshape(-1, tile.K_UNIT).amax(1)
    width = _table(K_WIDTHS)[torch.searchsorted(_table(RANGE_BOUNDS), widest)].long()
    by_channel = width.repeat_interleave(tile.K_UNIT)
    step = (_table(STEP_BOUNDS)[by_channel] < span[:, None]).sum(1)
    inverse, top = _table(INV_STEPS)[step], (2**by_channel - 1).float()
    parts = torch.where(by_channel < 4, 4.0, 1.0)
    minima = ((middle * inverse - top * 0.5) * parts).round()
    if not (minima.abs() <= _INT16[1]).all():
        return None
    found = (inexact * inverse - minima / parts).round().clamp(min=0).minimum(top)
    codes[sinks : len(keys)] = found.long()
    return SideCodes(codes, minima.long(), steps=step - 8, widths=width)


def _table(values: NDArray[Any]) -> torch.Tensor:
    # a copy: torch does not take arrays that must not be written
    return torch.from_numpy(values.copy())


def _from_minima(integers: torch.Tensor, sinks: int, **scales: Any) -> SideCodes | None:
    """Codes above per-channel minima from integer-valued floats [tokens, head_dim]."""
    head_dim = integers.shape[1]
    codes = torch.zeros(BLOCK_TOKENS, head_dim, dtype=torch.int64)
    inexact = integers[sinks:]
    if len(inexact) == 0:
        return SideCodes(codes, torch.zeros(head_dim, dtype=torch.int64), **scales)
    low, high = inexact.amin(0), inexact.amax(0)
    # written so that NaN does not fit
    fits = (low >= _INT16[0]) & (low <= _INT16[1]) & (high - low <= _MAX_CODE)
    if not fits.all():
        return None
    codes[sinks : len(integers)] = (inexact - low).long()
    return SideCodes(codes, low.long(), **scales)


def _hybrid_v_codes(values: torch.Tensor, levels: int, sinks: int) -> SideCodes | None:
    rotated = _hadamard(values)
    squares = _mean_square(rotated)
    thresholds = torch.from_numpy(mean_square_thresholds())
    log_scales = torch.searchsorted(thresholds, squares, right=True)
    if (log_scales[sinks:] > 255).any():
        return None
    log_scales[:sinks] = 0
    inverse = torch.from_numpy(scale_tables(levels)[1])[log_scales][:, None]
    inexact = ((rotated * inverse).floor() + levels // 2).clamp(0, levels - 1).long()
    codes = torch.zeros(BLOCK_TOKENS, values.shape[1], dtype=torch.int64)
    codes[sinks : len(values)] = inexact[sinks:]
    padded = torch.zeros(BLOCK_TOKENS, dtype=torch.int64)
    padded[: len(values)] = log_scales
    units = values.shape[1] // tile.v_unit(values.shape[1])
    return SideCodes(codes, log_scales=padded, widths=torch.full((units,), V_BITS[levels]))


def _hadamard(rows: torch.Tensor) -> torch.Tensor:
    """rows [tokens, head_dim] · H, by butterflies of spans 1, 2, 4, …, then one factor."""
    head_dim = rows.shape[1]
    span = rotation_span(head_dim)
    width = 1
    while width < span:
        pairs = rows.reshape(len(rows), -1, 2, width)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack([a + b, a - b], 2).reshape(len(rows), head_dim)
        width *= 2
    return rows * torch.tensor(1 / math.sqrt(span), dtype=torch.float32)


def _mean_square(rows: torch.Tensor) -> torch.Tensor:
    """float32 [tokens]: halves are added until one value is left."""
    head_dim = rows.shape[1]
    squares = torch.zeros(len(rows), 1 << (head_dim - 1).bit_length())
    squares[:, :head_dim] = rows * rows
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        squares = squares[:, :half] + squares[:, half:]
    return squares[:, 0] * torch.tensor(1 / head_dim, dtype=torch.float32)


def _packkv_codes(block: torch.Tensor, rel: float, sinks: int) -> list[SideCodes | None]:
    """Codes per head of a block [tokens, heads, head_dim]; a token's scale is over all heads."""
    low, high = block.amin((1, 2)), block.amax((1, 2))
    flat = torch.where(low == 0, torch.ones_like(low), low.abs())
    scale = torch.where(high == low, flat, torch.tensor(rel, dtype=torch.float32) * (high - low))
    zero = (low / scale).round()
    if not ((zero >= _INT16[0]) & (zero <= _INT16[1]))[sinks:].all():
        return [None] * block.shape[1]
    integers = (block / scale[:, None, None]).round() - zero[:, None, None]
    scales, zeros = torch.zeros(BLOCK_TOKENS), torch.zeros(BLOCK_TOKENS, dtype=torch.int64)
    scales[sinks : len(block)] = scale[sinks:]
    zeros[sinks : len(block)] = zero[sinks:].long()
    return [
        _from_minima(integers[:, head], sinks, scales=scales, zeros=zeros)
        for head in range(block.shape[1])
    ]


def _decode_side(
    words: NDArray[np.uint32], row: NDArray[np.int32], side: int, plan: LayerPlan, head: int
) -> torch.Tensor:
    """K or V of one section, float32 [tokens, head_dim], natural channel order."""
    tokens, sinks, head_dim = (int(row[i]) for i in (tile.TOKENS, tile.SINKS, tile.HEAD_DIM))
    if row[tile.STORAGE] != tile.TILE:
        return _values(words[row[side + tile.PLANE_A] :], tokens, head_dim, int(row[tile.STORAGE]))
    codes = read_side(words, row, side)
    if codes is None:
        return _values(words[row[side + tile.PLANE_A] :], tokens, head_dim, tile.FLOAT16)
    exact_at = row[tile.K_EXACT if side == tile.K_SIDE else tile.V_EXACT]
    exact = _values(words[exact_at:], sinks, head_dim, tile.FLOAT16)
    decoded = _dequantise(codes, plan, head)[:tokens]
    decoded[:sinks] = exact
    return decoded


def _dequantise(side: SideCodes, plan: LayerPlan, head: int) -> torch.Tensor:
    if side.scales is not None and side.zeros is not None and side.minima is not None:
        integers = side.codes + side.minima + side.zeros[:, None]
        return integers.float() * side.scales[:, None]
    if side.minima is not None:
        order = torch.from_numpy(plan.order[head].astype(np.int64))
        natural = torch.empty(side.codes.shape)
        assert side.steps is not None
        assert side.widths is not None
        parts = torch.where(side.widths < 4, 4.0, 1.0).repeat_interleave(tile.K_UNIT)
        steps = _table(STEPS)[side.steps + 8]
        natural[:, order] = (side.codes + side.minima / parts) * steps
        return natural * torch.from_numpy(plan.step[head])
    assert isinstance(plan.config, HybridConfig)
    assert side.log_scales is not None
    levels = int(plan.levels[head])
    scale = torch.from_numpy(scale_tables(levels)[0])[side.log_scales]
    return _hadamard((side.codes.float() - (levels - 1) / 2) * scale[:, None])


def _values(words: NDArray[Any], tokens: int, head_dim: int, storage: int) -> torch.Tensor:
    dtype = {
        tile.FLOAT16: torch.float16,
        tile.BFLOAT16: torch.bfloat16,
        tile.FLOAT32: torch.float32,
    }[storage]
    if tokens == 0:
        return torch.empty(0, head_dim)
    used = words[: tokens * head_dim * dtype.itemsize // 4].astype(np.int32)
    return torch.from_numpy(used).view(dtype).reshape(tokens, head_dim).float()

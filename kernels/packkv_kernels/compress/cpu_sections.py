"""The compiled loops over sections: quantise and pack, unpack and scale back."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.pack_codes import unit_widths
from packkv_kernels.compress.quantise import (
    hybrid_k_codes,
    hybrid_v_codes,
    integers_to_codes,
    packkv_integers,
    packkv_scales,
)
from packkv_kernels.compress.rotation import rotate_row
from packkv_kernels.compress.section import Side, new_side, side_flags, write_section
from packkv_kernels.compress.unpack import holds_values, read_row, unpack_k_tile, unpack_v_tile
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled

__all__ = ["decode_sections", "encode_hybrid_sections", "encode_packkv_sections"]

_K_SIDE, _V_SIDE = tile.K_SIDE, tile.V_SIDE


@compiled
def encode_hybrid_sections(
    start: int,
    stop: int,
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    sinks: int,
    order: NDArray[np.int16],
    inv_step: NDArray[np.float32],
    levels: NDArray[np.uint8],
    inverses: NDArray[np.float32],
    thresholds: NDArray[np.float32],
    arena: NDArray[np.uint32],
    lengths: NDArray[np.int64],
) -> None:
    """Encodes blocks start … stop of one layer.

    Args:
        keys, values: [tokens, heads, head_dim].
        sinks: exact tokens of block 0.
        order, inv_step, levels: by head.
        inverses: [5, 256], 1 / step of V by width and scale code.
        thresholds: [256], of mean squares.
        arena: [blocks · heads, words], the sections; a row is as long as `lengths` says.
        lengths: [blocks · heads], words of each section.
    """
    tokens, heads, head_dim = keys.shape
    k_side, v_side = new_side(head_dim, _K_SIDE), new_side(head_dim, _V_SIDE)
    for block in range(start, stop):
        first, last = block * BLOCK_TOKENS, min((block + 1) * BLOCK_TOKENS, tokens)
        exact = sinks if block == 0 else 0
        for head in range(heads):
            k, v = keys[first:last, head], values[first:last, head]
            k_fits = hybrid_k_codes(
                *(k, exact, order[head], inv_step[head], k_side.integers),
                *(k_side.codes, k_side.minima, k_side.widths, k_side.steps),
            )
            width = 4 if levels[head] == 16 else levels[head] // 4 + 1
            v_side.widths[:] = width
            v_fits = hybrid_v_codes(
                *(v, exact, levels[head], inverses[width], thresholds),
                *(v_side.codes, v_side.log_scales),
            )
            flags = side_flags(_K_SIDE, k_side, k_fits, True, tile.CHANNEL_STEPS)
            flags |= side_flags(_V_SIDE, v_side, v_fits, False, tile.LOG_SCALES)
            section = block * heads + head
            lengths[section] = write_section(arena[section], flags, exact, k, v, k_side, v_side)


@compiled
def encode_packkv_sections(
    start: int,
    stop: int,
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    sinks: int,
    rel_k: np.float32,
    rel_v: np.float32,
    arena: NDArray[np.uint32],
    lengths: NDArray[np.int64],
) -> None:
    """Encodes blocks start … stop of one layer; arguments like `encode_hybrid_sections`."""
    tokens, heads, head_dim = keys.shape
    order = np.arange(head_dim).astype(np.int16)
    k_side, v_side = new_side(head_dim, _K_SIDE), new_side(head_dim, _V_SIDE)
    for block in range(start, stop):
        first, last = block * BLOCK_TOKENS, min((block + 1) * BLOCK_TOKENS, tokens)
        exact = sinks if block == 0 else 0
        k_scaled = packkv_scales(keys[first:last], rel_k, exact, k_side.scale, k_side.zero)
        v_scaled = packkv_scales(values[first:last], rel_v, exact, v_side.scale, v_side.zero)
        for head in range(heads):
            k, v = keys[first:last, head], values[first:last, head]
            packkv_integers(k, exact, k_side.scale, k_side.zero, k_side.integers)
            packkv_integers(v, exact, v_side.scale, v_side.zero, v_side.integers)
            k_fits = k_scaled and _encode_integers(k_side, last - first, exact, order)
            v_fits = v_scaled and _encode_integers(v_side, last - first, exact, order)
            flags = side_flags(_K_SIDE, k_side, k_fits, True, tile.FLOAT_SCALES)
            flags |= side_flags(_V_SIDE, v_side, v_fits, True, tile.FLOAT_SCALES)
            section = block * heads + head
            lengths[section] = write_section(arena[section], flags, exact, k, v, k_side, v_side)


@compiled
def _encode_integers(side: Side, tokens: int, sinks: int, order: NDArray[np.int16]) -> bool:
    """Codes, minima and widths from a side's integers; False if the tile must be raw."""
    fits = integers_to_codes(
        *(side.integers, tokens, sinks, order),
        *(side.codes, side.minima, side.widest),
    )
    if fits:
        unit_widths(side.widest, side.widths)
    return fits


@compiled
def decode_sections(
    start: int,
    stop: int,
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    order: NDArray[np.int16],
    step: NDArray[np.float32],
    inv_step: NDArray[np.float32],
    levels: NDArray[np.uint8],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
) -> None:
    """Decodes layers start … stop.

    Args:
        words, bases, descriptors: proven sections, layer-major.
        order, step, inv_step, levels: by layer and head.
        keys, values: [layers, tokens, heads, head_dim], overwritten.
    """
    heads, head_dim = order.shape[1:]
    out = np.empty((BLOCK_TOKENS, head_dim), np.float32)
    for layer in range(start, stop):
        for head in range(heads):
            base = bases[layer * heads + head]
            row = descriptors[layer * heads + head]
            k, v = keys[layer, :, head], values[layer, :, head]
            unpack_k_tile(words, base, row, order[layer, head], inv_step[layer, head], out)
            _unfold_keys(words, base, row, order[layer, head], step[layer, head], out, k)
            unpack_v_tile(words, base, row, levels[layer, head], out)
            _unfold_values(words, base, row, levels[layer, head], out, v)


@compiled
def _exact_tokens(row: NDArray[np.int32], side: int) -> int:
    """How many leading tokens of a side are stored as values."""
    return int(row[tile.TOKENS] if holds_values(row, side) else row[tile.SINKS])


@compiled
def _unfold_keys(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    order: NDArray[np.int16],
    step: NDArray[np.float32],
    packed: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """From packed to natural K; exact tokens are read again, not multiplied back."""
    exact = _exact_tokens(row, _K_SIDE)
    for t in range(exact):
        read_row(words, base, row, _K_SIDE, t, out[t])
    for t in range(exact, row[tile.TOKENS]):
        source, target = packed[t], out[t]
        for c in range(len(order)):
            target[order[c]] = source[c] * step[order[c]]


@compiled
def _unfold_values(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    levels: int,
    packed: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """From packed to natural V; exact tokens are read again, not rotated back."""
    exact = _exact_tokens(row, _V_SIDE)
    for t in range(exact):
        read_row(words, base, row, _V_SIDE, t, out[t])
    for t in range(exact, row[tile.TOKENS]):
        source, target = packed[t], out[t]
        if levels:
            rotate_row(source)
        for c in range(len(source)):
            target[c] = source[c]

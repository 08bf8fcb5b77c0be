"""KVComp's blocks back to values: what attention does without, and is compared with."""

import triton
import triton.language as tl

from packkv_kernels.entropy.triton.slices import (
    CODES,
    code_matrix,
    halves_of,
    open_slices,
    read_codes,
)
from packkv_kernels.entropy.triton.units import BLOCK, CHANNEL

__all__ = ["decode_blocks"]

_CODES = tl.constexpr(CODES)
_BLOCK, _CHANNEL = tl.constexpr(BLOCK), tl.constexpr(CHANNEL)
_LENGTH_WORDS = tl.constexpr(32)


@triton.jit
def decode_blocks(
    words_ptr, offsets_ptr, codebook_ptr, values_ptr, units,
    HEADS: tl.constexpr, D: tl.constexpr, UNITS: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """Values of one block of one head; the grid is (blocks · HEADS,).

    Args:
        words_ptr: uint32, blocks.
        offsets_ptr: int64 [blocks, HEADS], first word of each.
        codebook_ptr: of `DeviceCodebook`: the tree if TREE, else the table.
        values_ptr: [blocks · 64, HEADS, D] of any float type, written.
        units: of a block.
        UNITS: BLOCK, CHANNEL or TOKEN.
    """
    row = tl.program_id(0).to(tl.int64)
    block_ptr = words_ptr + tl.load(offsets_ptr + row)
    t = tl.arange(0, 64)
    reader = open_slices(block_ptr, units)
    for first in range(0, D, _CODES):
        codes, reader = read_codes(
            block_ptr, codebook_ptr, reader, tl.minimum(D - first, _CODES), _CODES, TREE
        )
        channel = first + tl.arange(0, _CODES)[None, :]
        unit = t[:, None]
        if UNITS == _BLOCK:
            unit = unit * 0
        if UNITS == _CHANNEL:
            unit = channel
        inside = channel < D
        low, step = halves_of(tl.load(block_ptr + _LENGTH_WORDS + unit, mask=inside, other=0))
        values = low + code_matrix(codes) * step
        at = ((row // HEADS * 64 + t[:, None]) * HEADS + row % HEADS) * D + channel
        tl.store(values_ptr + at, values.to(values_ptr.dtype.element_ty), mask=inside)

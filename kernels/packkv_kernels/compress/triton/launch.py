"""Launches of the codec's kernels: shapes are checked by callers, buffers are taken here."""

import torch

from packkv_kernels.compress.triton.unpack import unpack_tiles
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format.tile import v_unit

__all__ = ["UNPACK_TOKENS", "unpack_pages"]

# Tokens that a program of the unpack kernel takes: more would not fit its registers.
UNPACK_TOKENS = 8


def unpack_pages(
    words: torch.Tensor,
    bases: torch.Tensor,
    descriptors: torch.Tensor,
    pages: torch.Tensor,
    order: torch.Tensor,
    step: torch.Tensor,
    inv_step: torch.Tensor,
    steps: torch.Tensor,
    middle: torch.Tensor,
    span: int,
    *,
    dtype: torch.dtype = torch.float32,
    natural: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [heads, pages · 64, head_dim] of whole pages.

    Args:
        words: uint32, the arena.
        bases: int64 [slots, heads].
        descriptors: int32 [slots, heads, DESCRIPTOR_WORDS].
        pages: int32 [pages], slots in order.
        order, step, inv_step: [heads, head_dim], of K.
        steps, middle: float32 [heads, 256], [heads], scale table and middle code of rotated V.
        span: size of the rotation of V, 1 for none.
        dtype: of the result.
        natural: real K and V; else K in stored order over its step, and V rotated.
    """
    heads, head_dim = order.shape
    keys = torch.empty(
        (heads, len(pages) * BLOCK_TOKENS, head_dim), dtype=dtype, device=words.device
    )
    values = torch.empty_like(keys)
    unpack_tiles[(len(pages) * BLOCK_TOKENS // UNPACK_TOKENS, heads)](
        words, bases, descriptors, order, step, inv_step, steps, middle, pages, keys, values,
        HEADS=heads, D=head_dim, D_PAD=max(16, 1 << (head_dim - 1).bit_length()),
        UNIT_V=v_unit(head_dim), SPAN=span, FACTOR=span**-0.5, TOKENS=UNPACK_TOKENS,
        NATURAL=natural, num_warps=4,
    )  # fmt: skip
    return keys, values

"""Launches of the codec's kernels: shapes are checked by callers, buffers are taken here."""

import torch

from packkv_kernels.compress.triton.whole import unpack_rotated, unpack_side
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format.tile import K_UNIT, v_unit

__all__ = ["UNPACK_WARPS", "unpack_pages"]

UNPACK_WARPS = 4


def unpack_pages(
    words: torch.Tensor,
    bases: torch.Tensor,
    descriptors: torch.Tensor,
    pages: torch.Tensor,
    order: torch.Tensor,
    step: torch.Tensor,
    steps: torch.Tensor,
    middle: torch.Tensor,
    span: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [heads, pages · 64, head_dim] of whole pages.

    Args:
        words: uint32, the arena.
        bases: int64 [slots, heads].
        descriptors: int32 [slots, heads, DESCRIPTOR_WORDS].
        pages: int32 [pages], slots in order.
        order, step: [heads, head_dim], of K.
        steps, middle: float32 [heads, 256], [heads], scale table and middle code of rotated V.
        span: size of the rotation of V, 1 for none.
        dtype: of the result.
    """
    heads, head_dim = order.shape
    keys = torch.empty(
        (heads, len(pages) * BLOCK_TOKENS, head_dim), dtype=dtype, device=words.device
    )
    values = torch.empty_like(keys)
    grid, unit = (len(pages), heads), v_unit(head_dim)
    shape = {"HEADS": heads, "D": head_dim, "D_PAD": max(16, 1 << (head_dim - 1).bit_length())}
    rotated = span > 1
    for out, side, channels in ((keys, 0, K_UNIT), (values, 1, unit))[: 1 if rotated else 2]:
        unpack_side[grid](
            words, bases, descriptors, order, step, pages, out,
            SIDE=side, UNIT=channels, HYBRID=rotated, num_warps=UNPACK_WARPS,
            enable_fp_fusion=False, **shape,
        )  # fmt: skip
    if rotated:
        unpack_rotated[grid](
            words, bases, descriptors, steps, middle, pages, values,
            UNIT=unit, SPAN=span, FACTOR=span**-0.5, num_warps=UNPACK_WARPS, **shape,
        )  # fmt: skip
    return keys, values

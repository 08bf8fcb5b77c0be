"""The codec as operators of torch: `packkv::pack` and `packkv::unpack`.

An operator has a schema and knows shapes without running, so that torch.compile takes it as it is,
and a CUDA graph captures it. Neither waits for the device.
"""

from collections.abc import Sequence

import torch

from packkv_kernels.compress.triton.blocks import Encoder, most_words
from packkv_kernels.compress.triton.launch import unpack_pages
from packkv_kernels.config import BLOCK_TOKENS, CodecConfig
from packkv_kernels.format.tile import DESCRIPTOR_WORDS

__all__ = ["pack", "unpack"]

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.custom_op("packkv::pack", mutates_args=())
def pack(
    keys: torch.Tensor,
    values: torch.Tensor,
    codec: str,
    tables: Sequence[torch.Tensor],
    first_token: int,
) -> Three:
    """Packs K and V into sections; see `Encoder`.

    Args:
        keys, values: [layers, tokens, heads, head_dim], contiguous, finite, within ±65,504.
        codec: its spelling, str(CodecConfig).
        tables: of the `Encoder` of that codec.
        first_token: position of the first token in the sequence, a multiple of 64.

    Returns:
        words, starts and descriptors of `DeviceSections`.
    """
    encode = Encoder.of(CodecConfig.parse(codec), tables)
    # Triton launches on the current device, which need not be that of the tensors
    with torch.cuda.device_of(keys):
        found = encode(keys, values, first_token)
    return found.words, found.starts, found.descriptors


@pack.register_fake
def _(
    keys: torch.Tensor,
    values: torch.Tensor,
    codec: str,
    tables: Sequence[torch.Tensor],
    first_token: int,
) -> Three:
    layers, tokens, heads, head_dim = keys.shape
    blocks = (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    sections = layers * blocks * heads
    sinks = CodecConfig.parse(codec).block_sinks(first_token, min(tokens, BLOCK_TOKENS))
    return (
        keys.new_empty(sections * most_words(head_dim, sinks), dtype=torch.uint32),
        keys.new_empty(sections + 1, dtype=torch.int64),
        keys.new_empty(layers, blocks, heads, DESCRIPTOR_WORDS, dtype=torch.int32),
    )


@torch.library.custom_op("packkv::unpack", mutates_args=())
def unpack(
    words: torch.Tensor,
    bases: torch.Tensor,
    descriptors: torch.Tensor,
    pages: torch.Tensor,
    tables: Sequence[torch.Tensor],
    span: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [heads, pages · 64, head_dim] of whole pages; see `unpack_pages`.

    Args:
        words, bases, descriptors, pages, span, dtype: of `unpack_pages`.
        tables: order, step, steps and middle of `unpack_pages`.
    """
    order, step, steps, middle = tables
    return unpack_pages(
        words, bases, descriptors, pages, order, step, steps, middle, span, dtype=dtype
    )


@unpack.register_fake
def _(
    words: torch.Tensor,
    bases: torch.Tensor,
    descriptors: torch.Tensor,
    pages: torch.Tensor,
    tables: Sequence[torch.Tensor],
    span: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    heads, head_dim = tables[0].shape
    shape = (heads, pages.shape[0] * BLOCK_TOKENS, head_dim)
    return words.new_empty(shape, dtype=dtype), words.new_empty(shape, dtype=dtype)

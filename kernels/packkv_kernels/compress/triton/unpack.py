"""Unpacking: tiles of packed pages to ordinary K and V, or to the domain that attention reads."""

import triton
import triton.language as tl

from packkv_kernels.compress.triton.rotation import rotate
from packkv_kernels.compress.triton.tile import load_codes, load_exact, load_scales
from packkv_kernels.format import tile

__all__ = ["load_k_tokens", "load_v_tokens", "unpack_tiles"]

_ROW = tl.constexpr(tile.DESCRIPTOR_WORDS)
_TOKENS = tl.constexpr(tile.TOKENS)


@triton.jit
def load_k_tokens(
    words_ptr, row_ptr, order_ptr, step_ptr, inv_step_ptr, steps_ptr, t, channel,
    D: tl.constexpr, NATURAL: tl.constexpr,
):  # fmt: skip
    """K of tokens t [tokens, 1], float32 [tokens, channels], columns in stored channel order.

    Args:
        order_ptr, step_ptr, inv_step_ptr: of the head.
        NATURAL: whether values are K, or K divided by its step.
    """
    inside = channel < D
    order = tl.load(order_ptr + channel, mask=inside, other=0).to(tl.int32)
    zero, scale = load_scales(words_ptr, row_ptr, steps_ptr, 0.0, t, 0)
    codes, channel_step = load_codes(words_ptr, row_ptr, t, channel, 0, D, 4)
    values = (codes + zero) * scale * channel_step
    exact, kept = load_exact(words_ptr, row_ptr, t, order, inside, 0, D)
    if NATURAL:
        values *= tl.load(step_ptr + order, mask=inside, other=0.0)
    else:
        kept *= tl.load(inv_step_ptr + order, mask=inside, other=0.0)
    return tl.where(t < exact, kept, values)


@triton.jit
def load_v_tokens(
    words_ptr, row_ptr, steps_ptr, middle, t, channel,
    D: tl.constexpr, UNIT: tl.constexpr, SPAN: tl.constexpr, FACTOR: tl.constexpr,
    NATURAL: tl.constexpr,
):  # fmt: skip
    """V of tokens t [tokens, 1], float32 [tokens, channels]; rotated unless NATURAL.

    Args:
        SPAN, FACTOR: of the rotation; SPAN 1 for codecs without one.
    """
    zero, scale = load_scales(words_ptr, row_ptr, steps_ptr, middle, t, 1)
    codes, _ = load_codes(words_ptr, row_ptr, t, channel, 1, D, UNIT)
    values = tl.where(channel < D, (codes + zero) * scale, 0.0)
    exact, kept = load_exact(words_ptr, row_ptr, t, channel, channel < D, 1, D)
    if SPAN > 1:
        if NATURAL:
            values = rotate(values, SPAN, FACTOR)
        else:
            kept = rotate(kept, SPAN, FACTOR)
    return tl.where(t < exact, kept, values)


@triton.jit
def unpack_tiles(
    words_ptr, bases_ptr, descriptors_ptr, order_ptr, step_ptr, inv_step_ptr, steps_ptr,
    middle_ptr, table_ptr, keys_ptr, values_ptr,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, UNIT_V: tl.constexpr,
    SPAN: tl.constexpr, FACTOR: tl.constexpr, TOKENS: tl.constexpr, NATURAL: tl.constexpr,
):  # fmt: skip
    """Unpacks TOKENS tokens of one page and head; the grid is (pages · 64 / TOKENS, HEADS).

    Args:
        words_ptr, bases_ptr, descriptors_ptr: the arena; int64 [pages, HEADS]; int32 rows.
        order_ptr, step_ptr, inv_step_ptr: [HEADS, D], of K.
        steps_ptr, middle_ptr: float32 [HEADS, 256] and [HEADS], scales and middle codes of V.
        table_ptr: int32, page slots in order.
        keys_ptr, values_ptr: [HEADS, pages · 64, D] of any float type, written; rows past a
            page's tokens are 0. Not NATURAL: K in stored order over its step, V rotated.
    """
    part, head = tl.program_id(0), tl.program_id(1)
    page = tl.load(table_ptr + part * TOKENS // 64).to(tl.int64)
    words_ptr += tl.load(bases_ptr + page * HEADS + head)
    row_ptr = descriptors_ptr + (page * HEADS + head) * _ROW
    t = part * TOKENS % 64 + tl.arange(0, TOKENS)[:, None]
    channel = tl.arange(0, D_PAD)[None, :]
    order_ptr, steps_ptr = order_ptr + head * D, steps_ptr + head * 256
    keys = load_k_tokens(
        words_ptr, row_ptr, order_ptr, step_ptr + head * D, inv_step_ptr + head * D, steps_ptr,
        t, channel, D, NATURAL,
    )  # fmt: skip
    values = load_v_tokens(
        words_ptr, row_ptr, steps_ptr, tl.load(middle_ptr + head), t, channel,
        D, UNIT_V, SPAN, FACTOR, NATURAL,
    )  # fmt: skip
    inside, exists = channel < D, t < tl.load(row_ptr + _TOKENS)
    tokens = tl.num_programs(0) * TOKENS
    row = (head.to(tl.int64) * tokens + part * TOKENS + tl.arange(0, TOKENS)[:, None]) * D
    target = channel
    if NATURAL:
        target = tl.load(order_ptr + channel, mask=inside, other=0).to(tl.int32)
    kind = keys_ptr.dtype.element_ty
    tl.store(keys_ptr + row + target, tl.where(exists, keys, 0.0).to(kind), mask=inside)
    tl.store(values_ptr + row + channel, tl.where(exists, values, 0.0).to(kind), mask=inside)

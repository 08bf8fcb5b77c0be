"""Decode attention over KVComp's blocks: bits become codes in registers, and codes a dot product.

The paper fuses decoding with q · K and with p · V, one kernel each, around a softmax over scores in
memory. Here one kernel does all of a block: its scores, the running softmax, and p · V; what is
written is a partial state for each split. Both products are of tensor cores, over the codes as
they are: steps of channels are folded into the query, and those of tokens into p.
"""

import triton
import triton.language as tl

from packkv_kernels.entropy.triton.slices import (
    CODES,
    code_matrix,
    halves_of,
    open_slices,
    read_codes,
)
from packkv_kernels.entropy.triton.units import CHANNEL

__all__ = ["attend_blocks"]

_CODES = tl.constexpr(CODES)
_CHANNEL = tl.constexpr(CHANNEL)
_LENGTH_WORDS = tl.constexpr(32)
_NONE = tl.constexpr(float("-inf"))


@triton.jit
def attend_blocks(
    query_ptr, k_words_ptr, k_offsets_ptr, k_codebook_ptr,
    v_words_ptr, v_offsets_ptr, v_codebook_ptr, table_ptr, pages_ptr, mean_ptr, lse_ptr,
    rows, table_stride, factor, k_units,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, K_UNITS: tl.constexpr,
    TREE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One split of one (sequence, KV head, 8 queries); the grid is (their number, splits).

    Args:
        query_ptr: [batch, HEADS, rows, D].
        k_words_ptr, k_offsets_ptr, k_codebook_ptr: like `decode_blocks`; so those of V, whose
            units are tokens.
        table_ptr, pages_ptr: int32 [batch, table_stride] blocks, and how many are in use.
        mean_ptr: float32 [batch · HEADS · groups, splits, D, 8], written: mean of V.
        lse_ptr: float32 [batch · HEADS · groups, splits, 8], written: log₂ of the weights' sum.
        factor: scaling · log₂ e.
        k_units: of a block of K.
        K_UNITS: CHANNEL or BLOCK.
    """
    work, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    groups = tl.cdiv(rows, 8)
    group, head, sequence = work % groups, work // groups % HEADS, work // groups // HEADS
    query_ptr += ((sequence * HEADS + head) * rows + group * 8) * D
    own_rows = rows - group * 8
    pages = tl.load(pages_ptr + sequence)
    share = tl.cdiv(pages, splits)
    best = tl.full([8], _NONE, tl.float32)
    total = tl.zeros([8], tl.float32)
    base = tl.zeros([8], tl.float32)
    mean = tl.zeros([D_PAD // _CODES, _CODES, 8], tl.float32)
    for place in range(split * share, tl.minimum(split * share + share, pages)):
        row = tl.load(table_ptr + sequence * table_stride + place).to(tl.int64) * HEADS + head
        scores = _score_block(
            query_ptr, k_words_ptr + tl.load(k_offsets_ptr + row), k_codebook_ptr, own_rows,
            k_units, factor, D, K_UNITS, TREE, PRECISION,
        )  # fmt: skip
        before = best
        best = tl.maximum(best, tl.max(scores, 0))
        shrink = tl.exp2(before - best)
        p = tl.exp2(scores - best[None, :])
        total = total * shrink + tl.sum(p, 0)
        block_ptr = v_words_ptr + tl.load(v_offsets_ptr + row)
        low, step = halves_of(tl.load(block_ptr + _LENGTH_WORDS + tl.arange(0, 64)))
        base = base * shrink + tl.sum(p * low[:, None], 0)
        mean = _add_block(
            mean * shrink[None, None, :], p * step[:, None], block_ptr, v_codebook_ptr,
            D, TREE, PRECISION,
        )  # fmt: skip
    share_of = 1.0 / tl.where(total == 0, 1.0, total)
    mean = tl.reshape((mean + base[None, None, :]) * share_of[None, None, :], (D_PAD, 8))
    at, column, channel = work * splits + split, tl.arange(0, 8), tl.arange(0, D_PAD)[:, None]
    tl.store(mean_ptr + at * (D * 8) + channel * 8 + column[None, :], mean, mask=channel < D)
    lse = tl.where(total == 0, _NONE, best + tl.log2(tl.where(total == 0, 1.0, total)))
    tl.store(lse_ptr + at * 8 + column, lse)


@triton.jit
def _score_block(
    query_ptr, block_ptr, codebook_ptr, rows, units, factor,
    D: tl.constexpr, K_UNITS: tl.constexpr, TREE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of 64 tokens for 8 queries, float32 [64, 8]."""
    column = tl.arange(0, 8)[None, :]
    scores, base = tl.zeros([64, 8], tl.float32), tl.zeros([8], tl.float32)
    at = open_slices(block_ptr, units)
    for first in range(0, D, _CODES):
        codes, at = read_codes(
            block_ptr, codebook_ptr, at, tl.minimum(D - first, _CODES), _CODES, TREE
        )
        channel = first + tl.arange(0, _CODES)
        unit = channel if K_UNITS == _CHANNEL else channel * 0
        inside = channel < D
        low, step = halves_of(tl.load(block_ptr + _LENGTH_WORDS + unit, mask=inside, other=0))
        query = tl.load(
            query_ptr + column * D + channel[:, None],
            mask=inside[:, None] & (column < rows), other=0.0,
        ).to(tl.float32) * factor  # fmt: skip
        base += tl.sum(query * low[:, None], 0)
        scores = tl.dot(
            code_matrix(codes), query * step[:, None], acc=scores, input_precision=PRECISION
        )
    return scores + base[None, :]


@triton.jit
def _add_block(
    mean, p, block_ptr, codebook_ptr, D: tl.constexpr, TREE: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """mean [channels / 16, 16, 8] and codesᵀ · p of a block of V."""
    place = tl.arange(0, mean.shape[0])[:, None, None]
    at = open_slices(block_ptr, 64)
    for first in range(0, D, _CODES):
        codes, at = read_codes(
            block_ptr, codebook_ptr, at, tl.minimum(D - first, _CODES), _CODES, TREE
        )
        part = tl.dot(tl.trans(code_matrix(codes)), p, input_precision=PRECISION)
        mean += tl.where(place == first // _CODES, part[None, :, :], 0.0)
    return mean

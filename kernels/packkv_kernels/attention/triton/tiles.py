"""Decode attention over packed tiles: planes go from memory through registers to tensor cores.

Both products have the tile as left operand, so that its codes are the fragments of an mma:

    scores [tokens, 8 queries] = K (step · q')     O [channels, 8 queries] += Vᵀ (p · token scale)

An iteration takes TILES tiles, four on NVIDIA. In the first product a warp owns a tile; in the
second all warps share all tokens and each owns a quarter of the channels. `fragments` says why
unpacking is cheap.
"""

import triton
import triton.language as tl

from packkv_kernels.attention.triton.fragments import (
    add_thirds,
    after_pieces,
    fields,
    merge_planes,
)
from packkv_kernels.attention.triton.query import fold_query
from packkv_kernels.attention.triton.stepped import (
    pack_query,
    query_matrix,
    step_query,
    wide_query,
)
from packkv_kernels.attention.triton.window import first_place, lows
from packkv_kernels.format import directory, tile

__all__ = ["attend_tiles"]

_ROW = tl.constexpr(directory.DIRECTORY_WORDS)
_BITMAPS = tl.constexpr(directory.K_BITMAPS)
_STEPS = tl.constexpr(directory.K_STEPS)
_V_PLANES = tl.constexpr(directory.V_PLANES)
_V_C = tl.constexpr(directory.V_PLANE_C)
_V_B = tl.constexpr(directory.V_PLANE_B)
_EXTENT = tl.constexpr(directory.EXTENT)

# p · scale goes to fp16 with this factor: the largest scale, 2⁷, then stays below 2¹⁶
_LIFT = tl.constexpr(256.0)
_NONE = tl.constexpr(float("-inf"))

_DENSE = tl.constexpr(tile.DENSE)
_SPARSE = tl.constexpr(tile.SPARSE)


@triton.jit
def attend_tiles(
    query_ptr, order_ptr, step_ptr, spread_ptr, minima_scores_ptr, words_ptr, directory_ptr,
    table_ptr, pages_ptr, exact_ptr, mean_ptr, lse_ptr,
    rows, table_stride, new, window, states, factor,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, UNIT_V: tl.constexpr,
    WIDE_UNITS: tl.constexpr, V_A: tl.constexpr, V_C: tl.constexpr, V_B: tl.constexpr,
    TILES: tl.constexpr, ASM: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One split of one (sequence, KV head, 8 queries): softmax over its packed tokens.

    Args:
        query_ptr: [batch, HEADS, rows, D].
        order_ptr, step_ptr: of K, by head.
        spread_ptr: float32 [HEADS, 2], token scale of e = 0 and middle code of V.
        minima_scores_ptr: float32 [batch, HEADS, table_stride, 8 · groups], what the minima of K
            add to the scores of a tile.
        words_ptr, directory_ptr: the arena, and [pages, HEADS, 16], see `format.directory`.
        table_ptr, pages_ptr: int32 [batch, table_stride] page slots, and how many are in use.
        exact_ptr: int32 [batch], tokens after the pages; only read with WINDOW, like the next two.
        new: row r is the query of the new token r % new.
        window: tokens that a query sees, its own included.
        mean_ptr: float32 [batch · HEADS · groups, states, D, 8], written from state 0 on, one per
            split: mean of packed V.
        lse_ptr: float32 [batch · HEADS · groups, states, 8], likewise: log₂ of the weights' sum.
        factor: scaling · log₂ e.
    """
    work, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    groups = tl.cdiv(rows, 8)
    group, head, sequence = work % groups, work // groups % HEADS, work // groups // HEADS
    query = fold_query(
        query_ptr + (sequence * HEADS + head) * rows * D, order_ptr, step_ptr,
        group * 8, rows, head, factor, D, D_PAD,
    )  # fmt: skip
    # a power of two brings the query near 2¹⁰, the middle of what fp16 holds exactly
    top = tl.maximum(tl.max(tl.abs(query), 1), 1e-30)
    lift = tl.exp2(10.0 - tl.ceil(tl.log2(top)))
    packed_query = pack_query(tl.trans(query * lift[:, None]).to(tl.float16))
    unlift = 16777216.0 / lift

    spread, middle = tl.load(spread_ptr + head * 2), tl.load(spread_ptr + head * 2 + 1)
    if V_C:
        # of two levels, whose codes lie where others have the bit for 4
        fourfold = tl.where(middle == 0.5, 4.0, 1.0)
        spread, middle = spread / fourfold, middle * fourfold
    pages = tl.load(pages_ptr + sequence)
    skipped, low = 0, tl.zeros([8], tl.int32)
    if WINDOW:
        exact = tl.load(exact_ptr + sequence)
        skipped = first_place(pages, exact, new, window, WINDOW)
        low = lows(pages, exact, new, window, group * 8).to(tl.int32)
    share = tl.cdiv(tl.cdiv(pages - skipped, splits), TILES) * TILES
    first = skipped + split * share
    last = tl.minimum(first + share, pages)
    table_ptr += sequence * table_stride
    directory_ptr += head * _ROW
    minima_scores_ptr += ((sequence * HEADS + head) * table_stride * groups + group) * 8

    # indices of the K operand (quad, lane, tile), of the V operand, and of rows of S
    quad = tl.arange(0, 4)[:, None, None, None, None]
    lane = tl.arange(0, 8)[None, :, None, None, None]
    k_tile = tl.arange(0, TILES)[None, None, :, None, None]
    v_unit = lane + 8 * tl.arange(0, 4)[None, None, :, None, None]
    v_tile = tl.arange(0, TILES)[None, None, None, :, None]
    v_word = (v_unit * 4 + quad) * UNIT_V + tl.arange(0, UNIT_V)[None, None, None, None, :]
    column = tl.arange(0, 8)
    token = tl.arange(0, 64)
    # of every four neighbouring tokens the second two lie in the upper nibble
    v_lift = tl.where(token & 2 != 0, _LIFT / 16, _LIFT)

    best = tl.full([8], _NONE, tl.float32)
    total = tl.zeros([TILES, 8, 8], tl.float32)
    weight = tl.zeros([TILES, 8, 8], tl.float32)
    mean = tl.zeros([D_PAD, 8], tl.float32)
    for start in range(first, last, TILES):
        at = _directory_rows(table_ptr, directory_ptr, start + k_tile, last, HEADS)
        own = _load_steps(words_ptr, at, packed_query, quad, D, ASM)
        keys = _load_keys(words_ptr, at, quad, lane, D_PAD // 4, ASM)
        scores = tl.dot(keys, query_matrix(own, ASM))
        if WIDE_UNITS > 0:
            keys = _load_wide_keys(words_ptr, at, quad, lane, WIDE_UNITS, ASM)
            own = wide_query(own, WIDE_UNITS, ASM)
            scores = tl.dot(keys, query_matrix(own, ASM), acc=scores)
        # axes: (e, k1), tile, k0, lane, query
        scores = tl.permute(tl.reshape(scores, (TILES, 4, 2, 8, 8)), (1, 0, 2, 3, 4))
        place = start + tl.arange(0, TILES)
        used = place < last
        offset = tl.load(
            minima_scores_ptr + place[:, None] * (groups * 8) + column[None, :],
            mask=used[:, None], other=0.0,
        )  # fmt: skip
        k0 = tl.arange(0, 2)[None, None, :, None, None]
        scores = scores * tl.where(k0 == 0, unlift, unlift / 16) + offset[None, :, None, None, :]

        page = tl.load(table_ptr + place, mask=used, other=0).to(tl.int64)
        row_ptr = directory_ptr + page * (HEADS * _ROW)
        extent = tl.load(row_ptr + _EXTENT, mask=used, other=0)
        t = (
            tl.arange(0, 4)[:, None, None, None] * 16 + tl.arange(0, 2)[None, None, :, None] * 8
            + tl.arange(0, 8)[None, None, None, :]
        )  # fmt: skip
        begin, end = (extent & 255)[None, :, None, None], (extent >> 8 & 255)[None, :, None, None]
        inside = (t >= begin) & (t < end)
        scores = tl.where(inside[:, :, :, :, None], scores, _NONE)
        if WINDOW:
            position = t + (place * 64)[None, :, None, None]
            scores = tl.where(position[:, :, :, :, None] >= low, scores, _NONE)

        before = best
        best = tl.maximum(best, tl.max(tl.reshape(scores, (TILES * 64, 8)), 0))
        floor = tl.where(best == _NONE, 0.0, best)
        shrink = tl.exp2(before - floor)
        p = tl.exp2(scores - floor)
        total = total * shrink + tl.sum(tl.sum(p, 2), 0)

        # one byte a token, just before the planes
        scale_ptr = words_ptr + tl.load(row_ptr + _V_PLANES).to(tl.int64) * 4 - 16
        code = tl.load(
            scale_ptr.to(tl.pointer_type(tl.uint8))[:, None] + token[None, :],
            mask=(extent != 0)[:, None], other=0,
        ).to(tl.float32)  # fmt: skip
        scale = tl.where(code == 0, 0.0, tl.exp2(code * 0.0625) * spread) * v_lift[None, :]
        scale = tl.permute(tl.reshape(scale, (TILES, 4, 2, 8)), (1, 0, 2, 3))
        p = p * scale[:, :, :, :, None]
        weight = weight * shrink + tl.sum(tl.sum(p, 2), 0)
        # rows in the order of the tokens: tile, (e, k1), k0, lane
        p = tl.reshape(tl.permute(p, (1, 0, 2, 3, 4)), (TILES * 64, 8)).to(tl.float16)
        at = _directory_rows(table_ptr, directory_ptr, start + v_tile, last, HEADS)
        values = _load_values(
            words_ptr, at, quad, v_unit, v_word, UNIT_V, D // UNIT_V, V_A, V_C, V_B, ASM
        )
        mean = tl.dot(values, p, acc=mean * shrink[None, :])
    _store_state(
        mean_ptr, lse_ptr, work * states + split, best, total, weight, mean, middle,
        D, D_PAD, UNIT_V,
    )  # fmt: skip


@triton.jit
def _directory_rows(table_ptr, directory_ptr, place, last, HEADS: tl.constexpr):
    """Pointers to the rows of page table places [4, 8, 4, ·, 1]; of page 0 past the last."""
    # a full-size index: each thread loads what it needs itself, in the layout it needs it in
    place = place + tl.zeros([4, 8, 1, 1, 1], tl.int32)
    at = tl.max_contiguous(table_ptr + place, [1, 1, 1, 1, 1])
    page = tl.load(at, mask=place < last, other=0)
    return directory_ptr + page.to(tl.int64) * (HEADS * _ROW)


@triton.jit
def _plane(words_ptr, row_ptr, offset: tl.constexpr):
    """Pointers to the first word of a plane, and whether the tile has it."""
    offset = tl.load(row_ptr + offset)
    return words_ptr + offset.to(tl.int64) * 4, offset != 0


@triton.jit
def _bitmap(row_ptr, PLANE: tl.constexpr, quad, UNITS: tl.constexpr):
    """uint32 [4, 8, TILES, UNITS / 4, 1]: the bitmap of a plane of K, a unit's own bit highest."""
    bitmap = tl.load(row_ptr + (_BITMAPS + PLANE)).to(tl.uint32, bitcast=True)
    place = (UNITS // 4 - 1 - tl.arange(0, UNITS // 4)[None, None, None, :, None]) * 4
    return bitmap << (35 - quad - UNITS).to(tl.uint32) << place.to(tl.uint32)


@triton.jit
def _load_pieces(
    words_ptr, row_ptr, PLANE: tl.constexpr, quad, word, UNITS: tl.constexpr, PIECE: tl.constexpr,
    WORDS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Words word … word + WORDS − 1 of the pieces of K's leading units; 0 of units without one."""
    bitmap = _bitmap(row_ptr, PLANE, quad, UNITS)
    # a unit that has a piece counts itself
    at = _plane(words_ptr, row_ptr, PLANE)[0] + (word - PIECE)
    at = after_pieces(at, bitmap, PIECE, 4 * WORDS, ASM)
    at += tl.arange(0, WORDS)[None, None, None, None, :]
    present = bitmap.to(tl.int32, bitcast=True) < 0
    return tl.load(at, mask=present, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _load_steps(words_ptr, row_ptr, query, quad, D: tl.constexpr, ASM: tl.constexpr):
    """The query operand of each tile, of `step_query`."""
    UNITS: tl.constexpr = query.shape[3] * 4
    unit = quad + 4 * tl.arange(0, UNITS // 4)[None, None, None, :, None]
    at = _plane(words_ptr, row_ptr, _STEPS)[0].to(tl.pointer_type(tl.uint16)) + unit
    # to load neighbours at once, a thread would take units that it has no use for
    at = tl.max_contiguous(at, [1, 1, 1, 1, 1])
    steps = tl.load(at, mask=unit < D // 4, other=0).to(tl.uint32)
    return step_query(query, steps, _bitmap(row_ptr, 0, quad, UNITS), ASM)


@triton.jit
def _load_keys(words_ptr, row_ptr, quad, lane, UNITS: tl.constexpr, ASM: tl.constexpr):
    """fp16 [TILES, 64 tokens, channels]: bits 0-3 of the codes, bit 0 at 2 without plane A."""
    a = _load_pieces(words_ptr, row_ptr, 0, quad, 2 * lane, UNITS, 16, 2, ASM)
    b = _load_pieces(words_ptr, row_ptr, 2, quad, 2 * lane, UNITS, 16, 2, ASM)
    c = _load_pieces(words_ptr, row_ptr, 1, quad, (3 * lane) & 7, UNITS, 8, 1, ASM)
    even, odd = merge_planes(a, b)
    even, odd = add_thirds(even, odd, c)
    return _key_matrix(fields(even, odd, ASM))


@triton.jit
def _load_wide_keys(words_ptr, row_ptr, quad, lane, UNITS: tl.constexpr, ASM: tl.constexpr):
    """fp16 [TILES, 64 tokens, channels of the wide units]: bits 4-7 of the codes."""
    low = _load_pieces(words_ptr, row_ptr, 3, quad, 2 * lane, UNITS, 16, 2, ASM)
    high = _load_pieces(words_ptr, row_ptr, 4, quad, 2 * lane, UNITS, 16, 2, ASM)
    even, odd = merge_planes(low, high)
    return _key_matrix(fields(even, odd, ASM))


@triton.jit
def _key_matrix(f):
    """[quad, lane, tile, unit / 4, w, h, k0, k1, e] to [tile, (e k1 k0 lane), (unit w h)]."""
    UNITS: tl.constexpr = f.shape[3] * 4
    TILES: tl.constexpr = f.shape[2]
    f = tl.permute(f, (2, 8, 7, 6, 1, 3, 0, 4, 5))
    return tl.reshape(f, (TILES, 64, UNITS * 4))


@triton.jit
def _load_values(
    words_ptr, row_ptr, quad, unit, word, U: tl.constexpr, UNITS: tl.constexpr,
    HAS_A: tl.constexpr, HAS_C: tl.constexpr, HAS_B: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """fp16 [channels in fragment order, TILES · 64 tokens]: codes, 4 times those of 2 levels."""
    inside = unit < UNITS
    a = tl.zeros([4, 8, 4, row_ptr.shape[3], U], tl.uint32)
    # every tile has a plane that all heads have; of no tile at all, any words do
    if HAS_A:
        at, present = _plane(words_ptr, row_ptr, _V_PLANES)
        if HAS_A == _SPARSE:
            inside = inside & (tl.load(row_ptr + _V_PLANES) != tl.load(row_ptr + _V_C))
        a = tl.load(at + word, mask=inside, other=0).to(tl.uint32, bitcast=True)
    b = tl.zeros_like(a)
    if HAS_B:
        at, present = _plane(words_ptr, row_ptr, _V_B)
        inside = unit < UNITS
        if HAS_B == _SPARSE:
            inside = inside & present
        b = tl.load(at + word, mask=inside, other=0).to(tl.uint32, bitcast=True)
    even, odd = merge_planes(a, b)
    if HAS_C:
        at, present = _plane(words_ptr, row_ptr, _V_C)
        inside = unit < UNITS
        if HAS_C == _SPARSE:
            inside = inside & present
        third = 2 * quad + tl.arange(0, U // 2)[None, None, None, None, :]
        if U == 2:
            third = (3 * quad) & 3
        at = at + unit * (2 * U) + third
        c = tl.load(at, mask=inside, other=0).to(tl.uint32, bitcast=True)
        even, odd = add_thirds(even, odd, c)
    f = fields(even, odd, ASM)
    # [quad, unit % 8, unit / 8, tile, i / 2, i % 2, h, k0, k1, e] to channels × tokens
    TILES: tl.constexpr = f.shape[3]
    f = tl.reshape(f, (4, 8, 4, TILES, U // 2, 2, 2, 2, 2, 2))
    f = tl.permute(f, (4, 2, 5, 1, 3, 9, 8, 0, 7, 6))
    return tl.reshape(f, (32 * U, TILES * 64))


@triton.jit
def _store_state(
    mean_ptr, lse_ptr, at, best, total, weight, mean, middle,
    D: tl.constexpr, D_PAD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """Normalises the sums of one split and writes them, channels in stored order."""
    total = tl.sum(tl.sum(total, 0), 0)
    lift = tl.where(tl.arange(0, 8) & 2 != 0, _LIFT / 16, _LIFT)
    weight = tl.sum(tl.sum(weight, 0) / lift[:, None], 0)
    share = 1.0 / tl.where(total == 0, 1.0, total)
    mean = mean * (share * (16777216.0 / _LIFT))[None, :] - (middle * weight * share)[None, :]
    m, column = tl.arange(0, D_PAD), tl.arange(0, 8)
    channel = ((m >> 4 & 3) * 8 + (m & 7)) * U + (m >> 6) * 2 + (m >> 3 & 1)
    at_mean = mean_ptr + at * (D * 8) + channel[:, None] * 8 + column[None, :]
    tl.store(at_mean, mean, mask=(channel < D)[:, None])
    lse = tl.where(total == 0, _NONE, best + tl.log2(tl.where(total == 0, 1.0, total)))
    tl.store(lse_ptr + at * 8 + column, lse)

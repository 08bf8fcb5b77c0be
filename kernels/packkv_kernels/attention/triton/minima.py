"""What the minima of K add to scores: one number per (tile, query), kept out of the hot loop."""

import triton
import triton.language as tl

from packkv_kernels.attention.triton.query import fold_query
from packkv_kernels.attention.triton.window import first_place
from packkv_kernels.compress.triton.tile import signed
from packkv_kernels.format import directory

__all__ = ["PAGES", "score_minima"]

# Tiles of one program.
PAGES = 16

_PAGES = tl.constexpr(PAGES)
_ROW = tl.constexpr(directory.DIRECTORY_WORDS)
_MINIMA = tl.constexpr(directory.K_MINIMA)
_STEPS = tl.constexpr(directory.K_STEPS)
_PLANE_B = tl.constexpr(directory.K_BITMAPS + 2)
_EXTENT = tl.constexpr(directory.EXTENT)


@triton.jit
def score_minima(
    query_ptr, order_ptr, step_ptr, words_ptr, directory_ptr, table_ptr, pages_ptr, exact_ptr,
    out_ptr, rows, table_stride, new, window, factor,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes q' · minima · steps of 16 tiles for 8 queries; the grid is work × tiles / 16.

    Args:
        out_ptr: float32 [batch, HEADS, table_stride, 8 · groups]; the others like `attend_tiles`.
        PRECISION: of a product that loses no more than float32 does.
    """
    work, groups = tl.program_id(0).to(tl.int64), tl.cdiv(rows, 8)
    group, head, sequence = work % groups, work // groups % HEADS, work // groups // HEADS
    place = tl.program_id(1) * _PAGES + tl.arange(0, _PAGES)
    pages = tl.load(pages_ptr + sequence)
    used = place < pages
    if WINDOW:
        exact = tl.load(exact_ptr + sequence)
        used = used & (place >= first_place(pages, exact, new, window, WINDOW))
    query = fold_query(
        query_ptr + (sequence * HEADS + head) * rows * D, order_ptr, step_ptr,
        group * 8, rows, head, factor, D, D_PAD,
    )  # fmt: skip
    page = tl.load(table_ptr + sequence * table_stride + place, mask=used, other=0).to(tl.int64)
    row_ptr = directory_ptr + (page * HEADS + head) * _ROW
    kind = tl.load(row_ptr + _EXTENT, mask=used, other=0) >> 16
    start = words_ptr + tl.load(row_ptr + _MINIMA, mask=used, other=0).to(tl.int64) * 4
    channel = tl.arange(0, D_PAD)[None, :]
    inside = channel < D
    short = tl.load(
        start.to(tl.pointer_type(tl.int8))[:, None] + channel,
        mask=(kind == 1)[:, None] & inside, other=0,
    )  # fmt: skip
    long = tl.load(
        start.to(tl.pointer_type(tl.int16))[:, None] + channel,
        mask=(kind == 2)[:, None] & inside, other=0,
    )  # fmt: skip
    start = words_ptr + tl.load(row_ptr + _STEPS, mask=used, other=0).to(tl.int64) * 4
    packed = (kind != 0)[:, None] & inside
    steps = tl.load(start[:, None] + (channel >> 3), mask=packed, other=0)
    wide = tl.load(row_ptr + _PLANE_B, mask=used, other=0)[:, None] >> (channel >> 2) & 1
    steps = signed(steps >> ((channel & 7) * 4).to(tl.uint32)).to(tl.float32)
    part = tl.exp2(steps * 0.125 - tl.where(wide != 0, 0.0, 2.0))
    low = (short.to(tl.int32) + long.to(tl.int32)).to(tl.float32)
    scores = tl.dot(low * part, tl.trans(query), input_precision=PRECISION)
    column = tl.arange(0, 8)
    at = (((sequence * HEADS + head) * table_stride + place) * groups + group) * 8
    tl.store(out_ptr + at[:, None] + column[None, :], scores, mask=used[:, None])

"""What a query sees of a sliding window: pages before it are skipped, a part of one is masked."""

import triton
import triton.language as tl

__all__ = ["first_place", "lows"]


@triton.jit
def first_place(pages, exact, new, window, WINDOW: tl.constexpr):
    """The first page of a sequence that any of its queries sees; 0 without a window.

    Args:
        pages: of the sequence.
        exact: tokens after the pages, those of the queries included.
        new: queries; the last tokens are theirs.
        window: tokens that a query sees, its own included.
    """
    place = 0
    if WINDOW:
        place = tl.minimum(tl.maximum(pages * 64 + exact - new - window + 1, 0) // 64, pages)
    return place


@triton.jit
def lows(pages, exact, new, window, first_row):
    """int32 [8]: position of the first token that each of 8 rows sees; arguments as above."""
    row = first_row + tl.arange(0, 8)
    return pages * 64 + exact - new - window + 1 + row % new

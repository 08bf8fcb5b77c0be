"""Codes to planes in a kernel: which units have a plane, where it lies, and its words."""

import triton
import triton.language as tl

__all__ = ["bitmap_word", "plane_mode", "unit_planes", "write_plane"]


@triton.jit
def unit_planes(widest, D: tl.constexpr, UNIT: tl.constexpr):
    """Which units need C, B, H1, H2: four int32 [channels / UNIT] of 0 and 1.

    Args:
        widest: int32 [channels], largest code of each.
    """
    UNITS: tl.constexpr = widest.shape[0] // UNIT
    largest = tl.max(tl.reshape(widest, (UNITS, UNIT)), 1)
    exists = tl.arange(0, UNITS) < D // UNIT
    c = ((largest >= 4) & (largest < 8) & exists).to(tl.int32)
    b = ((largest >= 8) & exists).to(tl.int32)
    h1 = ((largest >= 16) & exists).to(tl.int32)
    h2 = ((largest >= 64) & exists).to(tl.int32)
    return c, b, h1, h2


@triton.jit
def plane_mode(present, UNITS: tl.constexpr):
    """(mode, number of units) of a plane: absent 0, every unit 1, sparse 2."""
    count = tl.sum(present, 0)
    return tl.where(count == 0, 0, tl.where(count == UNITS, 1, 2)), count


@triton.jit
def bitmap_word(present, WORD: tl.constexpr):
    """Word WORD of a plane's bitmap, uint32."""
    unit = tl.arange(0, present.shape[0])
    bits = tl.where(unit >> 5 == WORD, present, 0).to(tl.uint32) << (unit & 31).to(tl.uint32)
    return tl.sum(bits, 0)


@triton.jit
def write_plane(
    words_ptr, codes, present, LOW: tl.constexpr, BITS: tl.constexpr, SIDE: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Writes the pieces of a plane's units.

    Args:
        words_ptr: where the plane begins.
        codes: int32 [64, channels].
        present: int32 [channels / UNIT], 1 for units that have the plane.
        LOW, BITS: which bits of a code the plane holds; BITS is 1 for C, else 2.
        SIDE: 0 for K, 1 for V.
    """
    CHANNELS: tl.constexpr = codes.shape[1]
    field = (codes >> LOW).to(tl.uint32) & (2 * BITS - 1 if BITS == 1 else 3)
    t, c = tl.arange(0, 64)[:, None], tl.arange(0, CHANNELS)[None, :]
    e, k1 = t >> 5, (t >> 4) & 1
    if SIDE == 0:
        j, h, column = ((t >> 3) & 1) + 2 * k1, c & 1, (c >> 1) & 1
    else:
        j, h, column = ((t >> 1) & 1) + 2 * k1, t & 1, c & 1
    bit = 16 * h + 2 * (e + 2 * j) if BITS == 2 else 16 * h + 4 * j + e + 2 * column
    field = field << bit.to(tl.uint32)
    # tokens of one word are added up: no two fields share a bit
    if SIDE == 0:
        LANES: tl.constexpr = 8
        by_lane = tl.sum(tl.reshape(field, (8, 8, CHANNELS)), 0)
        JOINED: tl.constexpr = 2 if BITS == 2 else 4
    else:
        LANES: tl.constexpr = 4
        by_lane = tl.sum(tl.sum(tl.reshape(field, (4, 4, 4, CHANNELS)), 2), 0)
        JOINED: tl.constexpr = 1 if BITS == 2 else 2
    COLUMNS: tl.constexpr = CHANNELS // JOINED
    words = tl.sum(tl.reshape(by_lane, (LANES, COLUMNS, JOINED)), 2)
    PER_UNIT: tl.constexpr = UNIT // JOINED
    lane, place = tl.arange(0, LANES)[:, None], tl.arange(0, COLUMNS)
    word = lane * PER_UNIT + (place % PER_UNIT)[None, :]
    if PER_UNIT == 1:
        word = (3 * lane) & (LANES - 1)
    # presence and rank of each column's unit
    own = tl.reshape(
        tl.broadcast_to(present[:, None], (CHANNELS // UNIT, PER_UNIT)), (COLUMNS,)
    )
    rank = tl.reshape(
        tl.broadcast_to((tl.cumsum(present, 0) - present)[:, None], (CHANNELS // UNIT, PER_UNIT)),
        (COLUMNS,),
    )
    at = rank[None, :] * (LANES * PER_UNIT) + word
    tl.store(words_ptr + at, words, mask=(own != 0)[None, :])

"""Codes to KVComp's blocks: a thread spells a slice, a scan finds its place, one pass writes.

A thread spells into a buffer of its own, so that threads need not know of each other; the buffers
of a block are rows of 64 words, because the threads of a block fill theirs nearly in step. What
the block becomes is then gathered word by word, in the order of memory.
"""

import triton
import triton.language as tl

__all__ = ["SPELLED_BITS", "encode_slices", "gather_blocks"]

# Bits of a spelled code, at most: an escape and the code as it is; its length stands above them.
SPELLED_BITS = 20

_SPELLED_BITS = tl.constexpr(SPELLED_BITS)
_SPELLED_MASK = tl.constexpr((1 << SPELLED_BITS) - 1)


@triton.jit
def encode_slices(
    codes_ptr, spelled_ptr, buffers_ptr, lengths_ptr, ends_ptr, words_ptr, units,
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Spells the 64 slices of one block of one head; the grid is (blocks · heads,).

    Args:
        codes_ptr: uint8 [blocks · heads, D, 64].
        spelled_ptr: uint32 [256], bits of each code | how many << 20.
        buffers_ptr: uint32 [blocks · heads, ROWS, 64], written as far as the slices reach.
        lengths_ptr: int16 [blocks · heads, 64], written: bits of each slice.
        ends_ptr: int32 [blocks · heads, 64], written: bits of it and of those before it.
        words_ptr: int32 [blocks · heads], written: words of the block.
        units: of a block.
    """
    row, t = tl.program_id(0).to(tl.int64), tl.arange(0, 64)
    codes_ptr += row * (D * 64)
    buffers_ptr += row * (ROWS * 64)
    gathered, filled = tl.zeros([64], tl.uint64), tl.zeros([64], tl.int32)
    word = tl.zeros([64], tl.int32)
    for channel in range(D):
        spelled = tl.load(spelled_ptr + tl.load(codes_ptr + channel * 64 + t))
        gathered |= (spelled & _SPELLED_MASK).to(tl.uint64) << filled.to(tl.uint64)
        filled += (spelled >> _SPELLED_BITS).to(tl.int32)
        full = filled >= 32
        tl.store(buffers_ptr + word * 64 + t, gathered.to(tl.uint32), mask=full)
        gathered = tl.where(full, gathered >> 32, gathered)
        filled = tl.where(full, filled - 32, filled)
        word += full.to(tl.int32)
    tl.store(buffers_ptr + word * 64 + t, gathered.to(tl.uint32), mask=filled > 0)
    bits = word * 32 + filled
    tl.store(lengths_ptr + row * 64 + t, bits.to(tl.int16))
    tl.store(ends_ptr + row * 64 + t, tl.cumsum(bits, 0))
    tl.store(words_ptr + row, 32 + units + (tl.sum(bits, 0) + 31) // 32)


@triton.jit
def gather_blocks(
    buffers_ptr, lengths_ptr, ends_ptr, units_ptr, starts_ptr, out_ptr, units,
    D: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Writes WORDS words of one block; the grid is (blocks · heads, most words / WORDS).

    Args:
        buffers_ptr, ends_ptr: of `encode_slices`.
        lengths_ptr: uint32 [blocks · heads, 32], its lengths two by two.
        units_ptr: uint32 [blocks · heads, units].
        starts_ptr: int64 [blocks · heads + 1], first word of each block, and the end of the last.
        out_ptr: uint32, written from each block's start to its end.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts_ptr + row)
    i = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    inside = i < tl.load(starts_ptr + row + 1) - start
    head = tl.load(lengths_ptr + row * 32 + i, mask=i < 32, other=0)
    unit = (i >= 32) & (i < 32 + units)
    head |= tl.load(units_ptr + row * units + i - 32, mask=unit, other=0)
    coded = inside & (i >= 32 + units)
    ends_ptr += row * 64
    bit = (i - 32 - units) * 32
    # the slice that a word begins in: how many end before it, by bisection
    slice_ = tl.zeros([WORDS], tl.int32)
    for place in tl.static_range(6):
        ends = tl.load(ends_ptr + slice_ + ((32 >> place) - 1), mask=coded, other=0)
        slice_ = tl.where(ends <= bit, slice_ + (32 >> place), slice_)
    found, have = tl.zeros([WORDS], tl.uint32), tl.zeros([WORDS], tl.int32)
    # a code has a bit at least, so that no word has parts of more slices
    for _ in tl.static_range(2 + 30 // D):
        open_ = coded & (slice_ < 64) & (have < 32)
        begin = tl.load(ends_ptr + slice_ - 1, mask=open_ & (slice_ > 0), other=0)
        end = tl.load(ends_ptr + slice_, mask=open_, other=0)
        part = bit + have - begin
        at = buffers_ptr + (row * ROWS + (part >> 5)) * 64 + slice_
        low = tl.load(at, mask=open_, other=0).to(tl.uint64)
        high = tl.load(at + 64, mask=open_ & ((part >> 5) + 1 < ROWS), other=0).to(tl.uint64)
        bits = (low | high << 32) >> (part & 31).to(tl.uint64)
        count = tl.where(open_, tl.minimum(end - bit - have, 32 - have), 0)
        bits &= (tl.full([WORDS], 1, tl.uint64) << count.to(tl.uint64)) - 1
        found |= (bits << have.to(tl.uint64)).to(tl.uint32)
        have += count
        slice_ += 1
    tl.store(out_ptr + start + i, head | found, mask=inside)

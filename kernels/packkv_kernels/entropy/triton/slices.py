"""Slices of bits to codes, in registers: 64 slices side by side, sixteen codes at a time.

A reader is the next bit of each slice. Two kinds of it give the same codes: the **tree** goes from
node to node by one bit, as KVComp does (arXiv 2509.00579, 3.3.1); the **table** looks twelve bits
up at once. In neither does a branch depend on data.

Bits are trusted: they are those of our encoder. Behind the last block there are SLACK_WORDS.
"""

import triton
import triton.language as tl

from packkv_kernels.entropy.canonical import MAX_LENGTH
from packkv_kernels.entropy.codebook import RAW_BITS

__all__ = [
    "BASE_SHIFT",
    "CODES",
    "CODE_SHIFT",
    "IS_CODE",
    "MASK_SHIFT",
    "SLACK_WORDS",
    "TOTAL_SHIFT",
    "code_matrix",
    "halves_of",
    "open_slices",
    "read_codes",
]

# Of one read.
CODES = 16

# An entry of the table: bits before the code as it is, its mask (0 of a code with a codeword), the
# code (0 of the escape), and bits altogether.
MASK_SHIFT, BASE_SHIFT, TOTAL_SHIFT = 8, 16, 24

# What stands in the tree for a code: this bit, the code from CODE_SHIFT on, and the root as node.
IS_CODE, CODE_SHIFT = 1 << 31, 16

# A reader of fifteen codes too many, of 20 bits each, and the word after.
SLACK_WORDS = 11

_CODES = tl.constexpr(CODES)
_MASK_SHIFT = tl.constexpr(MASK_SHIFT)
_BASE_SHIFT = tl.constexpr(BASE_SHIFT)
_TOTAL_SHIFT = tl.constexpr(TOTAL_SHIFT)
_CODE_SHIFT = tl.constexpr(CODE_SHIFT)
_NODE_MASK = tl.constexpr((1 << CODE_SHIFT) - 1)
_INDEX = tl.constexpr((1 << MAX_LENGTH) - 1)
_RAW_MASK = tl.constexpr((1 << RAW_BITS) - 1)

# Bits that the tree goes down before it looks how far the slices are.
_STRIDE = tl.constexpr(8)


@triton.jit
def open_slices(block_ptr, units):
    """The first bit of each of the 64 slices of a block, int32.

    Args:
        block_ptr: uint32, the block.
        units: of the block.
    """
    lengths_ptr = block_ptr.to(tl.pointer_type(tl.uint16))
    lengths = tl.load(lengths_ptr + tl.arange(0, 64)).to(tl.int32)
    return (32 + units) * 32 + tl.cumsum(lengths, 0) - lengths


@triton.jit
def _peek(block_ptr, at):
    """The next 32 bits."""
    word_ptr = block_ptr + (at >> 5)
    low, high = tl.load(word_ptr).to(tl.uint64), tl.load(word_ptr + 1).to(tl.uint64)
    return ((low | high << 32) >> (at & 31).to(tl.uint64)).to(tl.uint32)


@triton.jit
def read_codes(block_ptr, codebook_ptr, at, count, COUNT: tl.constexpr, TREE: tl.constexpr):
    """(the next COUNT codes of each slice, int32 [64, 2, 2, …], the reader after them).

    Args:
        codebook_ptr: uint32, of `DeviceCodebook`: the tree if TREE, else the table.
        at: of `open_slices`.
        count: how many codes there are, if not COUNT; what comes for the others means nothing.
    """
    if TREE:
        codes, at = _read_by_tree(block_ptr, codebook_ptr, at, count, COUNT)
    else:
        codes, at = _read_by_table(block_ptr, codebook_ptr, at, COUNT)
    return codes, at


@triton.jit
def _read_by_table(block_ptr, table_ptr, at, COUNT: tl.constexpr):
    if COUNT == 1:
        bits = _peek(block_ptr, at)
        found = tl.load(table_ptr + (bits & _INDEX))
        plain = (bits >> (found & 15)) & (found >> _MASK_SHIFT)
        codes = ((plain | found >> _BASE_SHIFT) & _RAW_MASK).to(tl.int32)
        at += (found >> _TOTAL_SHIFT).to(tl.int32)
    else:
        first, at = _read_by_table(block_ptr, table_ptr, at, COUNT // 2)
        second, at = _read_by_table(block_ptr, table_ptr, at, COUNT // 2)
        codes = tl.join(first, second)
    return codes, at


@triton.jit
def _read_by_tree(block_ptr, tree_ptr, at, count, COUNT: tl.constexpr):
    node, written = tl.zeros([64], tl.int32), tl.zeros([64], tl.int32)
    low, high = tl.zeros([64], tl.uint64), tl.zeros([64], tl.uint64)
    # a slice is through its codes sooner than another, and waits
    while tl.min(written, 0) < count:
        bits = _peek(block_ptr, at)
        for place in tl.static_range(_STRIDE):
            going = written < count
            bit = ((bits >> place) & 1).to(tl.int32)
            found = tl.load(tree_ptr + 2 * node + bit, mask=going, other=0)
            found = found.to(tl.int32, bitcast=True)
            node = found & _NODE_MASK
            code = ((found >> _CODE_SHIFT) & _RAW_MASK).to(tl.uint64)
            # a node that is no code has none to add, and does not move the place
            code = code << (8 * (written & 7)).to(tl.uint64)
            low |= tl.where(written < 8, code, 0)
            high |= tl.where(written < 8, 0, code)
            written += (found < 0).to(tl.int32)
            at += going.to(tl.int32)
    return _bytes_of(low, high, 0, COUNT), at


@triton.jit
def _bytes_of(low, high, first: tl.constexpr, COUNT: tl.constexpr):
    """Bytes first … first + COUNT − 1 of 16, in the order of `read_codes`."""
    if COUNT == 1:
        eight = low if first < 8 else high
        codes = (eight >> (8 * (first % 8))).to(tl.int32) & _RAW_MASK
    else:
        codes = tl.join(
            _bytes_of(low, high, first, COUNT // 2),
            _bytes_of(low, high, first + COUNT // 2, COUNT // 2),
        )
    return codes


@triton.jit
def code_matrix(codes):
    """float32 [64, 16] of what `read_codes` gives for sixteen: its axes count from the last."""
    return tl.reshape(tl.permute(codes, (0, 4, 3, 2, 1)), (64, _CODES)).to(tl.float32)


@triton.jit
def halves_of(unit):
    """(minimum, step) of units, float32."""
    low = (unit & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, (unit >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)

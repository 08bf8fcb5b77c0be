"""Planes to tensor-core operands in registers: what makes packed tiles cheap to multiply.

A 4-bit field that is masked in place *is* an fp16 number: bits 0-3 of a half hold x · 2⁻²⁴ (a
subnormal, exact), bits 4-7 hold 16 times that. So a word of eight fields becomes four fp16 pairs
with five operations, and the factors are taken back where it costs nothing: from rows of scores.
Words are loaded as tensors whose order of lanes is that of an mma operand; the compiler sees that
the layouts are equal, and nothing goes through shared memory.
"""

import triton
import triton.language as tl

__all__ = ["add_thirds", "after_pieces", "fields", "halves", "merge_planes"]


AFTER_PIECES = """{
.reg .b32 rank;
popc.b32 rank, $2;
mad.wide.u32 $0, rank, $3, $1;
}"""

_AFTER_PIECES = tl.constexpr(AFTER_PIECES)


@triton.jit
def after_pieces(words_ptr, bitmap, PIECE: tl.constexpr, ALIGN: tl.constexpr, ASM: tl.constexpr):
    """words_ptr + PIECE words for each bit of a uint32 that is set; ALIGN bytes stay aligned."""
    if ASM:
        # in plain operations the 64-bit sum takes five instructions instead of two
        address = tl.inline_asm_elementwise(
            _AFTER_PIECES,
            "=l,l,r,n",
            [words_ptr.to(tl.int64), bitmap, PIECE * 4],
            dtype=tl.int64,
            is_pure=True,
            pack=1,
        )
        words_ptr = address.to(words_ptr.dtype, bitcast=True)
        words_ptr = tl.multiple_of(words_ptr, [1, 1, 1, 1, ALIGN])
    else:
        words_ptr = words_ptr + _popcount(bitmap) * PIECE
    return words_ptr


@triton.jit
def _popcount(x):
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def merge_planes(low, high):
    """Two 2-bit planes as 4-bit fields: (words of e = 0, words of e = 1)."""
    even = (low & 0x33333333) | ((high << 2) & 0xCCCCCCCC)
    odd = ((low >> 2) & 0x33333333) | (high & 0xCCCCCCCC)
    return even, odd


@triton.jit
def add_thirds(even, odd, c):
    """Puts plane C into 4-bit fields [..., columns]; its words [..., columns / 2] hold two each."""
    c = tl.reshape(tl.join(c, c >> 2), even.shape)
    return even | ((c << 2) & 0x44444444), odd | ((c << 1) & 0x44444444)


@triton.jit
def fields(even, odd, ASM: tl.constexpr):
    """fp16 [..., h, k0, k1, e] from 4-bit fields: code · 2⁻²⁴ where k0 = 0, · 2⁻²⁰ where k0 = 1."""
    return tl.join(_spread(even, ASM), _spread(odd, ASM))


@triton.jit
def _spread(word, ASM: tl.constexpr):
    upper = word >> 8
    first = tl.join(_pair(word & 0x000F000F, ASM), _pair(word & 0x00F000F0, ASM))
    second = tl.join(_pair(upper & 0x000F000F, ASM), _pair(upper & 0x00F000F0, ASM))
    return tl.join(first, second)


@triton.jit
def _pair(word, ASM: tl.constexpr):
    low, high = halves(word, ASM)
    return tl.join(low, high)


@triton.jit
def halves(word, ASM: tl.constexpr):
    """The two fp16 in each uint32, the lower first."""
    if ASM:
        # two registers' halves by name: the assembler makes no instruction of it
        low, high = tl.inline_asm_elementwise(
            "mov.b32 {$0, $1}, $2;",
            "=h,=h,r",
            [word],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )
    else:
        low = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
        high = (word >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
    return low, high

"""Planes to tensor-core operands in registers: what makes packed tiles cheap to multiply.

A 4-bit field that is masked in place *is* an fp16 number: bits 0-3 of a half hold x · 2⁻²⁴ (a
subnormal, exact), bits 4-7 hold 16 times that. So a word of eight fields becomes four fp16 pairs
with five operations, and the factors are taken back where it costs nothing: from rows of scores.
Words are loaded as tensors whose order of lanes is that of an mma operand; the compiler sees that
the layouts are equal, and nothing goes through shared memory.
"""

import triton
import triton.language as tl

__all__ = ["add_thirds", "fields", "merge_planes", "popcount"]


@triton.jit
def popcount(x, ASM: tl.constexpr):
    """Bits that are set in each uint32, as int32."""
    if ASM:
        bits = tl.inline_asm_elementwise(
            "popc.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        x = x - ((x >> 1) & 0x55555555)
        x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
        x = (x + (x >> 4)) & 0x0F0F0F0F
        bits = ((x * 0x01010101) >> 24).to(tl.int32)
    return bits


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
    first = tl.join(_halves(word & 0x000F000F, ASM), _halves(word & 0x00F000F0, ASM))
    second = tl.join(_halves(upper & 0x000F000F, ASM), _halves(upper & 0x00F000F0, ASM))
    return tl.join(first, second)


@triton.jit
def _halves(word, ASM: tl.constexpr):
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
    return tl.join(low, high)

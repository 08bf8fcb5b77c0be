"""The query as the right operand of a tile: multiplied by the channel steps that the tile brings.

Steps are a tile's own, so that they cannot be folded into the query once; but one operand serves
64 tokens, and a unit's four steps lie in 16 bits. Two table look-ups turn them into the upper and
the lower bytes of four fp16 numbers: bytes are looked up by four-bit numbers in one instruction.
"""

import triton
import triton.language as tl

from packkv_kernels.attention.triton.fragments import halves
from packkv_kernels.compress.triton.tile import octaves, signed

__all__ = ["pack_query", "query_matrix", "step_query", "wide_query"]

# Bytes of 2^(b/8), b = 0 … 7, in fp16. Of a negative step the exponent is one less, and without
# plane A two less: in these bytes that is a single bit, 4 or 8.
STEP_QUERY = """{
.reg .b32 index, upper, lower, sign, first, second;
and.b32 index, $2, 0x7777;
prmt.b32 upper, 0x3d3c3c3c, 0x3f3e3e3d, index;
prmt.b32 lower, 0x30c25d00, 0x56ba2ba8, index;
prmt.b32 sign, 0x80808080, 0x80808080, $2;
lop3.b32 sign, sign, 0x04040404, $3, 0x6a;
xor.b32 upper, upper, sign;
prmt.b32 first, lower, upper, 0x5140;
prmt.b32 second, lower, upper, 0x7362;
mul.rn.f16x2 $0, first, $4;
mul.rn.f16x2 $1, second, $5;
}"""
WIDE_QUERY = """{
.reg .b32 sixteen;
mov.b32 sixteen, 0x4c004c00;
mul.rn.f16x2 $0, $1, sixteen;
}"""

_STEP_QUERY, _WIDE_QUERY = tl.constexpr(STEP_QUERY), tl.constexpr(WIDE_QUERY)


@triton.jit
def pack_query(query):
    """fp16 [channels, 8] as uint32 [quad, lane, 1, unit / 4, w], two channels of a unit each."""
    UNITS: tl.constexpr = query.shape[0] // 16
    query = tl.permute(tl.reshape(query, (UNITS, 4, 2, 2, 8)), (1, 4, 0, 2, 3))
    low, high = tl.split(query)
    low = low.to(tl.uint16, bitcast=True).to(tl.uint32)
    high = high.to(tl.uint16, bitcast=True).to(tl.uint32)
    return tl.expand_dims(low | high << 16, 2)


@triton.jit
def step_query(query, steps, bitmap, ASM: tl.constexpr):
    """Two fp16 in each uint32 [quad, lane, tile, unit / 4, w], times 2^(e/8), of one tile each.

    Args:
        query: of `pack_query`.
        steps: uint32 [quad, lane, tile, unit / 4, 1], four 4-bit steps of each unit.
        bitmap: uint32 like steps; the highest bit says whether a unit has plane A. Where it has
            not, its codes come as 4 times their value, and a fourth of the query makes up for it.
    """
    SHAPE: tl.constexpr = (4, 8, steps.shape[2], steps.shape[3])
    q = tl.broadcast_to(query, (4, 8, steps.shape[2], steps.shape[3], 2))
    q0, q1 = tl.split(q)
    steps = tl.reshape(steps, SHAPE)
    bitmap = tl.reshape(bitmap, SHAPE)
    fourth = tl.where(bitmap.to(tl.int32, bitcast=True) < 0, 0, 0x08080808).to(tl.uint32)
    if ASM:
        q0, q1 = tl.inline_asm_elementwise(
            _STEP_QUERY,
            "=r,=r,r,r,r,r",
            [steps, fourth, q0, q1],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    else:
        factor = tl.where(fourth != 0, 0.25, 1.0)
        q0 = _times(q0, steps, factor)
        q1 = _times(q1, steps >> 8, factor)
    return tl.join(q0, q1)


@triton.jit
def _times(pair, steps, factor):
    low, high = halves(pair, False)
    low = (low.to(tl.float32) * (octaves(signed(steps)) * factor)).to(tl.float16)
    high = (high.to(tl.float32) * (octaves(signed(steps >> 4)) * factor)).to(tl.float16)
    low = low.to(tl.uint16, bitcast=True).to(tl.uint32)
    return low | high.to(tl.uint16, bitcast=True).to(tl.uint32) << 16


@triton.jit
def wide_query(query, UNITS: tl.constexpr, ASM: tl.constexpr):
    """Of `step_query`: 16 times the operand of the leading UNITS units, for bits 4-7 of codes."""
    if query.shape[3] * 4 > UNITS:
        TILES: tl.constexpr = query.shape[2]
        HALF: tl.constexpr = query.shape[3] // 2
        query = tl.reshape(query, (4, 8, TILES, 2, HALF, 2))
        query, _ = tl.split(tl.permute(query, (0, 1, 2, 4, 5, 3)))
        query = wide_query(query, UNITS, ASM)
    else:
        if ASM:
            query = tl.inline_asm_elementwise(
                _WIDE_QUERY,
                "=r,r",
                [query],
                dtype=tl.uint32,
                is_pure=True,
                pack=1,
            )
        else:
            low, high = halves(query, False)
            low = (low * 16).to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
            high = (high * 16).to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
            query = low | high << 16
    return query


@triton.jit
def query_matrix(query, ASM: tl.constexpr):
    """fp16 [tile, channels, 8] of `step_query` or `wide_query`."""
    low, high = halves(query, ASM)
    pairs = tl.join(low, high)
    TILES: tl.constexpr = query.shape[2]
    CHANNELS: tl.constexpr = query.shape[3] * 16
    return tl.reshape(tl.permute(pairs, (2, 3, 0, 4, 5, 1)), (TILES, CHANNELS, 8))

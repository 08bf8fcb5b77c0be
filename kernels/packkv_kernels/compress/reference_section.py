"""Codes to section bytes and back, in plain torch: every bit by its formula in docs/codec.md."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format import tile
from packkv_kernels.format.layout import is_raw, plane_mode, side_bits

__all__ = ["SideCodes", "read_side", "write_section"]

_PLANES = (tile.PLANE_A, tile.PLANE_C, tile.PLANE_B, tile.PLANE_H1, tile.PLANE_H2)

# Width of a unit to the planes it has, and the lowest bit of the code that each of them holds.
_WIDTHS = {
    0: {},
    1: {tile.PLANE_C: 0},
    2: {tile.PLANE_A: 0},
    3: {tile.PLANE_A: 0, tile.PLANE_C: 2},
    4: {tile.PLANE_A: 0, tile.PLANE_B: 2},
    6: {tile.PLANE_A: 0, tile.PLANE_B: 2, tile.PLANE_H1: 4},
    8: {tile.PLANE_A: 0, tile.PLANE_B: 2, tile.PLANE_H1: 4, tile.PLANE_H2: 6},
}


@dataclass(frozen=True)
class SideCodes:
    """The integers of K or V of one section.

    Attributes:
        codes: int64 [64, head_dim], 0 … 255, stored channel order.
        minima: int64 [head_dim] in int16, or None.
        log_scales: int64 [64] in 0 … 255, or None.
        scales: float32 [64], or None.
        zeros: int64 [64] in int16, or None; present with `scales`.
        steps: int64 [head_dim] in −8 … 7, or None.
        widths: int64 [units], bits of each unit; None: what its largest code needs.
    """

    codes: torch.Tensor
    minima: torch.Tensor | None = None
    log_scales: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    widths: torch.Tensor | None = None

    def unit_widths(self, unit: int) -> list[int]:
        """Bits of each unit of so many channels."""
        if self.widths is not None:
            return [int(width) for width in self.widths]
        widest = self.codes.reshape(BLOCK_TOKENS, -1, unit).amax((0, 2)).tolist()
        return [min(width for width in _WIDTHS if code < 2**width) for code in widest]


def write_section(
    keys: torch.Tensor, values: torch.Tensor, sinks: int, k: SideCodes | None, v: SideCodes | None
) -> bytes:
    """One section.

    Args:
        keys, values: float32 [tokens, head_dim], natural channel order.
        sinks: leading tokens that are stored exactly.
        k, v: the integers, or None for a raw tile.
    """
    k_widths = k.unit_widths(tile.K_UNIT) if k else []
    v_widths = v.unit_widths(tile.v_unit(values.shape[1])) if v else []
    flags = tile.flag_bits(
        _plane_field(k_widths),
        _plane_field(v_widths),
        (_minima(k), _minima(v)),
        (_scales(k), _scales(v)),
    )
    flags |= (k is None) << tile.RAW_SHIFT | (v is None) << tile.RAW_SHIFT + 1
    head = np.array([flags, len(keys) | sinks << 8], "<u4").tobytes()
    parts = [
        head + _bitmaps(k_widths) + _bitmaps(v_widths),
        _halves(keys[:sinks]),
        _halves(values[:sinks]),
        *(_side_parts(k, k_widths, tile.K_SIDE) if k else [_halves(keys)]),
        *(_side_parts(v, v_widths, tile.V_SIDE) if v else [_halves(values)]),
    ]
    return b"".join(part + bytes(-len(part) % 16) for part in parts)


def read_side(words: NDArray[np.uint32], row: NDArray[np.int32], side: int) -> SideCodes | None:
    """The integers of one side of a proven section, or None for a raw tile.

    Args:
        words: the section's words.
        row: its descriptor.
        side: K_SIDE or V_SIDE.
    """
    flags, head_dim = int(row[tile.FLAGS]), int(row[tile.HEAD_DIM])
    if is_raw(flags, side):
        return None
    minima = log_scales = scales = zeros = steps = None
    kind = side_bits(flags, side, tile.MINIMA_SHIFT)
    if kind:
        at = words[row[side + tile.MINIMA] :]
        minima = _integers(at, "<i1" if kind == tile.INT8_MINIMA else "<i2", head_dim)
    kind = side_bits(flags, side, tile.SCALES_SHIFT)
    at = words[row[side + tile.SCALES] :]
    if kind == tile.LOG_SCALES:
        log_scales = _integers(at, "<u1", BLOCK_TOKENS)
    elif kind == tile.FLOAT_SCALES:
        scales = torch.from_numpy(at[:BLOCK_TOKENS].view("<f4").copy())
        zeros = _integers(at[BLOCK_TOKENS:], "<i2", BLOCK_TOKENS)
    elif kind == tile.CHANNEL_STEPS:
        channel = torch.arange(head_dim)
        nibbles = _integers(at, "<u4", -(-head_dim // 8))[channel // 8] >> 4 * (channel % 8) & 15
        steps = (nibbles + 8) % 16 - 8
    codes, widths = _read_codes(words, row, side)
    return SideCodes(codes, minima, log_scales, scales, zeros, steps, widths)


def positions(side: int, unit: int, plane: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the bits of a unit's code lie in its piece of a plane.

    Returns:
        (word, bit), each int64 [64, unit]: the word in the piece and the lowest bit in the word.
    """
    t = torch.arange(BLOCK_TOKENS)[:, None]
    i = torch.arange(unit)[None, :]
    e, k1, x = t >> 5, (t >> 4) & 1, t & 15
    if side == tile.K_SIDE:
        w, h, k0, lane = i >> 1, i & 1, x >> 3, x & 7
        word, third = 2 * lane + w, (3 * lane) & 7
    else:
        w, h, k0, lane = i & 1, x & 1, (x >> 1) & 1, x >> 2
        word, third = unit * lane + i, (2 * lane + (i >> 1) if unit == 4 else (3 * lane) & 3)
    j = k0 + 2 * k1
    if plane == tile.PLANE_C:
        bit = 16 * h + 4 * j + e + 2 * w
        return third.expand(BLOCK_TOKENS, unit), bit.expand(BLOCK_TOKENS, unit)
    bit = 16 * h + 2 * (e + 2 * j)
    return word.expand(BLOCK_TOKENS, unit), bit.expand(BLOCK_TOKENS, unit)


def _unit(side: int, head_dim: int) -> int:
    return tile.K_UNIT if side == tile.K_SIDE else tile.v_unit(head_dim)


def _bits_in(plane: int) -> int:
    """How many bits of a code a plane holds."""
    return 1 if plane == tile.PLANE_C else 2


def _having(widths: list[int], plane: int) -> list[bool]:
    """Which units have a plane."""
    return [plane in _WIDTHS[width] for width in widths]


def _plane_field(widths: list[int]) -> int:
    """The modes of planes A, C, B, H1, H2, A lowest."""
    field = 0
    for place, plane in enumerate(_PLANES):
        having = _having(widths, plane)
        mode = tile.SPARSE if any(having) else tile.ABSENT
        if any(having) and all(having):
            mode = tile.DENSE
        field |= mode << 2 * place
    return field


def _bitmaps(widths: list[int]) -> bytes:
    bitmaps = b""
    for plane in _PLANES:
        having = _having(widths, plane)
        if any(having) and not all(having):
            bits = np.packbits(having, bitorder="little").tobytes()
            bitmaps += bits + bytes(-len(bits) % 4)
    return bitmaps


def _minima(side: SideCodes | None) -> int:
    if side is None or side.minima is None:
        return tile.NO_MINIMA
    small = bool(((side.minima >= -128) & (side.minima <= 127)).all())
    return tile.INT8_MINIMA if small else tile.INT16_MINIMA


def _scales(side: SideCodes | None) -> int:
    if side is None:
        return tile.NO_SCALES
    if side.steps is not None:
        return tile.CHANNEL_STEPS
    return tile.LOG_SCALES if side.log_scales is not None else tile.FLOAT_SCALES


def _halves(rows: torch.Tensor) -> bytes:
    return rows.to(torch.float16).contiguous().numpy().astype("<f2").tobytes()


def _side_parts(side: SideCodes, widths: list[int], which: int) -> list[bytes]:
    parts = []
    if side.minima is not None:
        dtype = "<i1" if _minima(side) == tile.INT8_MINIMA else "<i2"
        parts.append(side.minima.numpy().astype(dtype).tobytes())
    if side.log_scales is not None:
        parts.append(side.log_scales.numpy().astype("u1").tobytes())
    if side.scales is not None and side.zeros is not None:
        zeros = side.zeros.numpy().astype("<i2").tobytes()
        parts.append(side.scales.numpy().astype("<f4").tobytes() + zeros)
    if side.steps is not None:
        nibbles = (side.steps.numpy() & 15).astype("u1")
        nibbles = np.append(nibbles, np.zeros(-len(nibbles) % 8, "u1"))
        parts.append((nibbles[::2] | nibbles[1::2] << 4).tobytes())
    parts.append(b"".join(_plane(side.codes, plane, widths, which) for plane in _PLANES))
    return parts


def _plane(codes: torch.Tensor, plane: int, widths: list[int], side: int) -> bytes:
    unit = _unit(side, codes.shape[1])
    count = _bits_in(plane)
    word, bit = positions(side, unit, plane)
    low = torch.tensor([_WIDTHS[w][plane] for w in widths if plane in _WIDTHS[w]], dtype=torch.long)
    units = torch.tensor(_having(widths, plane))
    by_unit = codes.reshape(BLOCK_TOKENS, -1, unit).transpose(0, 1)[units]
    shifted = ((by_unit >> low[:, None, None]) & (2**count - 1)) << bit
    pieces = torch.zeros(len(by_unit), 4 * unit * count // 2, dtype=torch.int64)
    # no two fields share a bit, so adding is putting together
    pieces.index_add_(1, word.reshape(-1), shifted.reshape(len(by_unit), BLOCK_TOKENS * unit))
    return pieces.numpy().astype("<u4").tobytes()


def _integers(words: NDArray[np.uint32], dtype: str, count: int) -> torch.Tensor:
    return torch.from_numpy(words.view(dtype)[:count].astype(np.int64))


def _read_codes(
    words: NDArray[np.uint32], row: NDArray[np.int32], side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [64, head_dim] and widths [units], both int64."""
    head_dim = int(row[tile.HEAD_DIM])
    unit = _unit(side, head_dim)
    units = head_dim // unit
    codes = torch.zeros(units, BLOCK_TOKENS, unit, dtype=torch.int64)
    widths = torch.zeros(units, dtype=torch.int64)
    bitmap = int(row[side + tile.BITMAPS])
    for plane in _PLANES:
        mode = plane_mode(int(row[tile.FLAGS]), side, plane)
        present = [u for u in range(units) if mode == tile.DENSE]
        if mode == tile.SPARSE:
            present = [u for u in range(units) if words[bitmap + u // 32] >> (u % 32) & 1]
            bitmap += -(-units // 32)
        count = _bits_in(plane)
        word, bit = positions(side, unit, plane)
        size = 4 * unit * count // 2
        start = int(row[side + plane])
        pieces = torch.from_numpy(words[start : start + len(present) * size].astype(np.int64))
        field = pieces.reshape(len(present), size)[:, word] >> bit & (2**count - 1)
        # planes come by rising bits, but that C may follow A: then it holds bit 2
        low = {tile.PLANE_B: 2, tile.PLANE_H1: 4, tile.PLANE_H2: 6}.get(plane, 0)
        lows = torch.full((len(present),), low)
        if plane == tile.PLANE_C:
            lows = widths[present]
        codes[present] |= field << lows[:, None, None]
        widths[present] += count
    return codes.transpose(0, 1).reshape(BLOCK_TOKENS, head_dim), widths

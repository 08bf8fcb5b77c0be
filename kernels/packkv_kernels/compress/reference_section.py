"""Codes to section bytes and back, in plain torch: every bit by its formula in docs/codec.md."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format import tile
from packkv_kernels.format.layout import is_raw, plane_mode, side_bits

__all__ = ["SideCodes", "read_side", "write_section"]

_PLANES = (tile.PLANE_C, tile.PLANE_B, tile.PLANE_H1, tile.PLANE_H2)

# Width of a unit to the planes it has beside A, in the order C B H1 H2.
_WIDTHS = {
    2: (False, False, False, False),
    3: (True, False, False, False),
    4: (False, True, False, False),
    6: (False, True, True, False),
    8: (False, True, True, True),
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
        width: bits of every unit when the codec fixes them, or None.
    """

    codes: torch.Tensor
    minima: torch.Tensor | None = None
    log_scales: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    width: int | None = None


def write_section(
    keys: torch.Tensor, values: torch.Tensor, sinks: int, k: SideCodes | None, v: SideCodes | None
) -> bytes:
    """One section.

    Args:
        keys, values: float32 [tokens, head_dim], natural channel order.
        sinks: leading tokens that are stored exactly.
        k, v: the integers, or None for a raw tile.
    """
    k_units = _units_with_plane(k, tile.K_UNIT)
    v_units = _units_with_plane(v, tile.v_unit(values.shape[1]))
    flags = tile.flag_bits(
        _plane_field(k_units),
        _plane_field(v_units),
        (_minima(k), _minima(v)),
        (_scales(k), _scales(v)),
    )
    flags |= (k is None) << tile.RAW_SHIFT | (v is None) << tile.RAW_SHIFT + 1
    head = np.array([flags, len(keys) | sinks << 8], "<u4").tobytes()
    parts = [
        head + _bitmaps(k_units) + _bitmaps(v_units),
        _halves(keys[:sinks]),
        _halves(values[:sinks]),
        *(_side_parts(k, k_units, tile.K_SIDE) if k else [_halves(keys)]),
        *(_side_parts(v, v_units, tile.V_SIDE) if v else [_halves(values)]),
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
    minima = log_scales = scales = zeros = None
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
    return SideCodes(_read_codes(words, row, side), minima, log_scales, scales, zeros)


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


def _bits_of(plane: int) -> tuple[int, int]:
    """Lowest bit of the code that a plane holds, and how many."""
    return {
        tile.PLANE_A: (0, 2),
        tile.PLANE_C: (2, 1),
        tile.PLANE_B: (2, 2),
        tile.PLANE_H1: (4, 2),
        tile.PLANE_H2: (6, 2),
    }[plane]


def _units_with_plane(side: SideCodes | None, unit: int) -> torch.Tensor:
    """bool [4, units]: which units have C, B, H1, H2."""
    if side is None:
        return torch.zeros(4, 0, dtype=torch.bool)
    units = side.codes.shape[1] // unit
    if side.width is not None:
        widths = [side.width] * units
    else:
        widest = side.codes.reshape(BLOCK_TOKENS, units, unit).amax((0, 2)).tolist()
        widths = [min(w for w in _WIDTHS if code < 2**w) for code in widest]
    return torch.tensor([_WIDTHS[width] for width in widths]).T


def _plane_field(present: torch.Tensor) -> int:
    field = 0
    for plane, units in enumerate(present):
        mode = tile.SPARSE if units.any() else tile.ABSENT
        if units.numel() and units.all():
            mode = tile.DENSE
        field |= mode << 2 * plane
    return field


def _bitmaps(present: torch.Tensor) -> bytes:
    bitmaps = b""
    for units in present:
        if units.any() and not units.all():
            bits = np.packbits(units.numpy(), bitorder="little").tobytes()
            bitmaps += bits + bytes(-len(bits) % 4)
    return bitmaps


def _minima(side: SideCodes | None) -> int:
    if side is None or side.minima is None:
        return tile.NO_MINIMA
    small = bool(((side.minima >= -128) & (side.minima <= 127)).all())
    return tile.INT8_MINIMA if small else tile.INT16_MINIMA


def _scales(side: SideCodes | None) -> int:
    if side is None or (side.log_scales is None and side.scales is None):
        return tile.NO_SCALES
    return tile.LOG_SCALES if side.log_scales is not None else tile.FLOAT_SCALES


def _halves(rows: torch.Tensor) -> bytes:
    return rows.to(torch.float16).contiguous().numpy().astype("<f2").tobytes()


def _side_parts(side: SideCodes, present: torch.Tensor, which: int) -> list[bytes]:
    parts = []
    if side.minima is not None:
        dtype = "<i1" if _minima(side) == tile.INT8_MINIMA else "<i2"
        parts.append(side.minima.numpy().astype(dtype).tobytes())
    if side.log_scales is not None:
        parts.append(side.log_scales.numpy().astype("u1").tobytes())
    if side.scales is not None and side.zeros is not None:
        zeros = side.zeros.numpy().astype("<i2").tobytes()
        parts.append(side.scales.numpy().astype("<f4").tobytes() + zeros)
    everywhere = torch.ones_like(present[:1])
    planes = zip((tile.PLANE_A, *_PLANES), torch.cat([everywhere, present]), strict=True)
    parts.append(b"".join(_plane(side.codes, plane, units, which) for plane, units in planes))
    return parts


def _plane(codes: torch.Tensor, plane: int, units: torch.Tensor, side: int) -> bytes:
    unit = _unit(side, codes.shape[1])
    low, count = _bits_of(plane)
    word, bit = positions(side, unit, plane)
    by_unit = codes.reshape(BLOCK_TOKENS, -1, unit).transpose(0, 1)[units]
    shifted = ((by_unit >> low) & (2**count - 1)) << bit
    pieces = torch.zeros(len(by_unit), 4 * unit * count // 2, dtype=torch.int64)
    # no two fields share a bit, so adding is putting together
    pieces.index_add_(1, word.reshape(-1), shifted.reshape(len(by_unit), BLOCK_TOKENS * unit))
    return pieces.numpy().astype("<u4").tobytes()


def _integers(words: NDArray[np.uint32], dtype: str, count: int) -> torch.Tensor:
    return torch.from_numpy(words.view(dtype)[:count].astype(np.int64))


def _read_codes(words: NDArray[np.uint32], row: NDArray[np.int32], side: int) -> torch.Tensor:
    head_dim = int(row[tile.HEAD_DIM])
    unit = _unit(side, head_dim)
    units = head_dim // unit
    codes = torch.zeros(units, BLOCK_TOKENS, unit, dtype=torch.int64)
    bitmap = int(row[side + tile.BITMAPS])
    for plane in (tile.PLANE_A, *_PLANES):
        mode = tile.DENSE
        if plane != tile.PLANE_A:
            mode = plane_mode(int(row[tile.FLAGS]), side, plane)
        present = [u for u in range(units) if mode == tile.DENSE]
        if mode == tile.SPARSE:
            present = [u for u in range(units) if words[bitmap + u // 32] >> (u % 32) & 1]
            bitmap += -(-units // 32)
        low, count = _bits_of(plane)
        word, bit = positions(side, unit, plane)
        size = 4 * unit * count // 2
        start = int(row[side + plane])
        pieces = torch.from_numpy(words[start : start + len(present) * size].astype(np.int64))
        field = pieces.reshape(len(present), size)[:, word] >> bit & (2**count - 1)
        codes[present] |= field << low
    return codes.transpose(0, 1).reshape(BLOCK_TOKENS, head_dim)

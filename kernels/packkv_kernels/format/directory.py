"""Directory: one row per section, all that a decode kernel must look up to find the planes.

A descriptor says where parts lie and the section itself says which units have a plane. A row has
both, with offsets from the start of the arena, so that a kernel is two loads away from the codes:

    word 0            5              9                    15
    ┌─────────────────┬──────────────┬────────────────────┬─────────┐
    │ K planes, where │ K bitmaps    │ V planes, minima   │ extent  │
    │ A  C  B  H1 H2  │ C B H1 H2    │ A C B · · K-minima │         │
    └─────────────────┴──────────────┴────────────────────┴─────────┘

Offsets count 16 bytes: 31 bits reach 32 GiB.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format import tile

__all__ = ["DIRECTORY_WORDS", "MAX_UNITS", "directory_rows"]

DIRECTORY_WORDS: Final = 16

K_PLANES: Final = 0  # offsets of A, C, B, H1, H2
K_BITMAPS: Final = 5  # which units have C, B, H1, H2
V_PLANES: Final = 9  # offsets of A, C, B, 0 for one that is absent; V's planes are dense
K_MINIMA: Final = 12
K_MINIMA_KIND: Final = 13  # bytes of a minimum; 0 where the row is no packed tile
EXTENT: Final = 15  # first packed token | past the last << 8; equal when there is none

# A bitmap is one word: sections of larger heads have rows without packed tokens.
MAX_UNITS: Final = 32

_PLANES = range(tile.PLANE_C, tile.PLANE_H2 + 1)


def directory_rows(
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    *,
    wide_units: int,
) -> NDArray[np.int32]:
    """Rows for decode kernels.

    A section that such a kernel cannot read gets a row without packed tokens; its tokens are left
    to the kernel for exact tokens. These are: values instead of codes, scales that are not one
    byte, more than `MAX_UNITS` units, H planes past the first `wide_units` units.

    Args:
        words: the arena.
        bases: int64 [...], first word of each section, a multiple of 4.
        descriptors: int32 [..., DESCRIPTOR_WORDS].
        wide_units: of the leading units of K the kernel reads H planes.

    Returns:
        int32 [..., DIRECTORY_WORDS].
    """
    rows = np.zeros((*bases.shape, DIRECTORY_WORDS), np.int32)
    packed = _readable(descriptors)
    k, v = tile.K_SIDE + tile.PLANE_A, tile.V_SIDE + tile.PLANE_A
    start = (bases // 4)[..., None]
    rows[..., K_PLANES : K_PLANES + 5] = start + descriptors[..., k : k + 5] // 4
    planes = descriptors[..., v : v + 3] // 4
    rows[..., V_PLANES : V_PLANES + 3] = np.where(planes == 0, 0, start + planes)
    rows[..., K_MINIMA] = start[..., 0] + descriptors[..., tile.K_SIDE + tile.MINIMA] // 4
    flags = descriptors[..., tile.FLAGS]
    rows[..., K_MINIMA_KIND] = flags >> tile.MINIMA_SHIFT & 3
    bitmaps = _k_bitmaps(words, bases, descriptors, packed)
    rows[..., K_BITMAPS : K_BITMAPS + 4] = bitmaps.view(np.int32)
    narrow = bitmaps[..., 2] >> np.uint64(wide_units).astype(np.uint32) if wide_units < 32 else 0
    packed &= narrow == 0
    extent = descriptors[..., tile.SINKS] | descriptors[..., tile.TOKENS] << 8
    rows[..., EXTENT] = extent
    rows[~packed] = 0
    return rows


def _readable(descriptors: NDArray[np.int32]) -> NDArray[np.bool_]:
    flags, head_dim = descriptors[..., tile.FLAGS], descriptors[..., tile.HEAD_DIM]
    log_scales = tile.LOG_SCALES << tile.SCALES_SHIFT + 2
    scales = 15 << tile.SCALES_SHIFT
    readable: NDArray[Any] = (
        (descriptors[..., tile.STORAGE] == tile.TILE)
        & (flags >> tile.RAW_SHIFT == 0)
        & (flags & scales == log_scales)
        & (head_dim <= tile.K_UNIT * MAX_UNITS)
        & (descriptors[..., tile.TOKENS] > 0)
    )
    return readable


def _k_bitmaps(
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    packed: NDArray[np.bool_],
) -> NDArray[np.uint32]:
    """uint32 [..., 4]: which units have C, B, H1, H2, whatever mode the plane is in."""
    flags = descriptors[..., tile.FLAGS]
    units = np.minimum(descriptors[..., tile.HEAD_DIM] // tile.K_UNIT, MAX_UNITS)
    every = ((np.uint64(1) << units.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
    at = bases + descriptors[..., tile.K_SIDE + tile.BITMAPS]
    bitmaps = np.zeros((*bases.shape, 4), np.uint32)
    for place, plane in enumerate(_PLANES):
        mode = flags >> tile.PLANES_SHIFT + 2 * (plane - tile.PLANE_C) & 3
        sparse = packed & (mode == tile.SPARSE)
        stored = words[np.where(sparse, at, 0)]
        bitmaps[..., place] = np.where(sparse, stored, np.where(mode == tile.DENSE, every, 0))
        at = at + sparse
    return bitmaps

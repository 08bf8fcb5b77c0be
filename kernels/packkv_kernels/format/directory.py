"""Directory: one row per section, all that a decode kernel must look up to find the planes.

A descriptor says where parts lie and the section itself says which units have a plane. A row has
both, with offsets from the start of the arena, so that a kernel is two loads away from the codes:

    word 0            5              10             13       14      15
    ┌─────────────────┬──────────────┬──────────────┬────────┬───────┬────────┐
    │ K planes, where │ K bitmaps    │ V, where     │ K      │ K     │ extent │
    │ A  C  B  H1 H2  │ A C B H1 H2  │ planes, C, B │ minima │ steps │        │
    └─────────────────┴──────────────┴──────────────┴────────┴───────┴────────┘

Offsets count 16 bytes: 31 bits reach 32 GiB.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format import tile

__all__ = ["DIRECTORY_WORDS", "MAX_UNITS", "directory_rows"]

DIRECTORY_WORDS: Final = 16

K_PLANES: Final = 0  # offsets of A, C, B, H1, H2
K_BITMAPS: Final = 5  # which units have A, C, B, H1, H2
V_PLANES: Final = 10  # offset of the first plane, A or (of two levels) C: scales lie before it
V_PLANE_C: Final = 11  # 0 for one that is absent; V's planes are dense
V_PLANE_B: Final = 12
K_MINIMA: Final = 13
K_STEPS: Final = 14
EXTENT: Final = 15  # first packed token | past the last << 8 | bytes of a minimum of K << 16

# A bitmap is one word: sections of larger heads have rows without packed tokens.
MAX_UNITS: Final = 32

_K, _V = tile.K_SIDE, tile.V_SIDE
_PLANES = range(tile.PLANE_A, tile.PLANE_H2 + 1)


def directory_rows(
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    *,
    wide_units: int,
    stored: NDArray[np.int64] | None = None,
) -> NDArray[np.int32]:
    """Rows for decode kernels.

    A section that such a kernel cannot read gets a row without packed tokens; its tokens are left
    to the kernel for exact tokens. These are: values instead of codes, scales that are not those
    of `hybrid`, more than `MAX_UNITS` units, H planes past the first `wide_units` units.

    Args:
        words: the arena.
        bases: int64 [...], first word of each section, a multiple of 4.
        descriptors: int32 [..., DESCRIPTOR_WORDS].
        wide_units: of the leading units of K the kernel reads H planes.
        stored: first word of each section in `words`, where these are not the whole arena.

    Returns:
        int32 [..., DIRECTORY_WORDS]; zeros for a section that is left out.
    """
    rows = np.zeros((*bases.shape, DIRECTORY_WORDS), np.int32)
    packed = _readable(descriptors)
    start = bases // 4
    for plane in _PLANES:
        rows[..., K_PLANES + plane - tile.PLANE_A] = start + descriptors[..., _K + plane] // 4
    # a byte for each of 64 tokens, and then the planes
    rows[..., V_PLANES] = start + descriptors[..., _V + tile.SCALES] // 4 + 4
    for place, plane in ((V_PLANE_C, tile.PLANE_C), (V_PLANE_B, tile.PLANE_B)):
        offset = descriptors[..., _V + plane] // 4
        rows[..., place] = np.where(offset == 0, 0, start + offset)
    rows[..., K_MINIMA] = start + descriptors[..., _K + tile.MINIMA] // 4
    rows[..., K_STEPS] = start + descriptors[..., _K + tile.SCALES] // 4
    bitmaps = _k_bitmaps(words, bases if stored is None else stored, descriptors, packed)
    rows[..., K_BITMAPS : K_BITMAPS + len(_PLANES)] = bitmaps.view(np.int32)
    if wide_units < MAX_UNITS:
        packed &= bitmaps[..., tile.PLANE_H1 - tile.PLANE_A] >> np.uint32(wide_units) == 0
    kind = descriptors[..., tile.FLAGS] >> tile.MINIMA_SHIFT & 3
    tokens = descriptors[..., tile.SINKS] | descriptors[..., tile.TOKENS] << 8
    rows[..., EXTENT] = tokens | kind << 16
    rows[~packed] = 0
    return rows


def _readable(descriptors: NDArray[np.int32]) -> NDArray[np.bool_]:
    flags, head_dim = descriptors[..., tile.FLAGS], descriptors[..., tile.HEAD_DIM]
    wanted = tile.CHANNEL_STEPS | tile.LOG_SCALES << 2
    readable: NDArray[Any] = (
        (descriptors[..., tile.STORAGE] == tile.TILE)
        & (flags >> tile.RAW_SHIFT & 3 == 0)
        & (flags >> tile.SCALES_SHIFT & 15 == wanted)
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
    """uint32 [..., 5]: which units have A, C, B, H1, H2, whatever mode the plane is in."""
    flags = descriptors[..., tile.FLAGS]
    units = np.minimum(descriptors[..., tile.HEAD_DIM] // tile.K_UNIT, MAX_UNITS)
    every = ((np.uint64(1) << units.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
    at = bases + descriptors[..., _K + tile.BITMAPS]
    bitmaps = np.zeros((*bases.shape, len(_PLANES)), np.uint32)
    for place, plane in enumerate(_PLANES):
        shift = tile.PLANES_SHIFT + 2 * (plane - tile.PLANE_C)
        mode = flags >> (tile.PLANE_A_SHIFT if plane == tile.PLANE_A else shift) & 3
        sparse = packed & (mode == tile.SPARSE)
        stored = words[np.where(sparse, at, 0)]
        bitmaps[..., place] = np.where(sparse, stored, np.where(mode == tile.DENSE, every, 0))
        at = at + sparse
    return bitmaps

"""What cold coding reads of one side of a proven section, compiled, and what it expects there."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.unpack_codes import unpack_codes
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.channels import level_of, low_bits
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import is_raw, side_bits

__all__ = [
    "FLOAT_SCALE_WORDS",
    "LANES",
    "mean_scale",
    "predicted_minimum",
    "read_codes",
    "read_minima",
    "read_scales",
    "side_start",
    "side_words",
    "width_number",
]

FLOAT_SCALE_WORDS: Final = BLOCK_TOKENS * 3 // 2
LANES: Final = 4  # bit streams of a side, so that a processor can decode them at the same time

_PLANE_FLAGS: Final = (1 << tile.MINIMA_SHIFT) - 1


@compiled
def side_start(row: NDArray[np.int32], side: int) -> int:
    """First word of a side's minima, scales and planes, or of its values."""
    if is_raw(row[tile.FLAGS], side):
        return int(row[side + tile.PLANE_A])
    if side_bits(row[tile.FLAGS], side, tile.MINIMA_SHIFT) != tile.NO_MINIMA:
        return int(row[side + tile.MINIMA])
    if side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT) != tile.NO_SCALES:
        return int(row[side + tile.SCALES])
    return int(row[side + tile.PLANE_A])


@compiled
def side_words(row: NDArray[np.int32], side: int) -> int:
    """How many words a side has in the section."""
    end = row[tile.WORDS] if side == tile.V_SIDE else side_start(row, tile.V_SIDE)
    return int(end) - side_start(row, side)


@compiled
def width_number(width: int) -> int:
    """0 … 4 for 2, 3, 4, 6, 8 bits."""
    return width - 2 if width <= 4 else width // 2


@compiled
def read_codes(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    codes: NDArray[np.uint8],
) -> bool:
    """Codes of one side, [head_dim, 64]; False if the side has none, or some where none belong."""
    if is_raw(row[tile.FLAGS], side):
        return False
    values = np.empty((BLOCK_TOKENS, len(codes)), np.float32)
    bare = row.copy()
    # without minima and scales, codes are unpacked as they are
    bare[tile.FLAGS] &= _PLANE_FLAGS
    unpack_codes(words, base, bare, side, 0, values)
    for c in range(len(codes)):
        line = codes[c]
        for t in range(BLOCK_TOKENS):
            line[t] = np.uint8(np.int32(values[t, c]))
    first, last = row[tile.SINKS], row[tile.TOKENS]
    return not (values[:first].any() or values[last:].any())


@compiled
def read_minima(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    minima: NDArray[np.int32],
) -> bool:
    """Minima of a side, [head_dim]; False if it has none."""
    width = 8 * side_bits(row[tile.FLAGS], side, tile.MINIMA_SHIFT)
    if width == 0:
        return False
    start = base + row[side + tile.MINIMA]
    each = 32 // width
    for c in range(len(minima)):
        # the field moves to the top of the word, and comes down with its sign
        word = np.int32(words[start + c // each] << np.uint32(32 - width * (c % each + 1)))
        minima[c] = word >> np.int32(32 - width)
    return True


@compiled
def read_scales(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    scales: NDArray[np.int32],
) -> bool:
    """One-byte token scales of a side, [64]; False if it has none."""
    if side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT) != tile.LOG_SCALES:
        return False
    start = base + row[side + tile.SCALES]
    for t in range(BLOCK_TOKENS):
        scales[t] = (words[start + t // 4] >> np.uint32(8 * (t % 4))) & np.uint32(255)
    return True


@compiled
def predicted_minimum(channel_class: int) -> int:
    """The minimum of a channel whose values lie evenly around 0."""
    low = low_bits(channel_class)
    return -((level_of(channel_class) + 1) << low) // 2


@compiled
def mean_scale(scales: NDArray[np.int32]) -> int:
    """What the scales of a side's tokens are told from; 0 without tokens."""
    return int(scales.sum() // len(scales)) if len(scales) else 0

"""How cold coding sees a channel: its class, and the symbols of its codes.

The largest code M of a channel says how its codes are spread, and the code of the token before
says where the next one lies: keys drift slowly. So a code is coded with a table of its channel's
**level** m and of the code before. M ≤ 15 is the level itself; a larger M keeps its upper four
bits as the level (8 … 15), and the lower bits of each code, which are close to random, stay as they
are: alphabets never exceed 16. M, so cut, is the channel's **class**:

    0 … 15               M
    16 + 8 · (low − 1) …   low = 1 … 4 bits are cut off, and the level is 8 … 15
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import bitmap_words, plane_mode, plane_word

__all__ = [
    "CLASSES",
    "ESCAPE",
    "LEVELS",
    "SMALL",
    "WIDTHS",
    "class_count",
    "class_of",
    "fold",
    "level_of",
    "low_bits",
    "read_widths",
    "unfold",
]

LEVELS: Final = 16
CLASSES: Final = 48
WIDTHS: Final = 5  # how many widths a unit can have: 2, 3, 4, 6, 8 by number

# Small integers (minima, scales) have an alphabet of this size; its last symbol is the escape.
SMALL: Final = 48
ESCAPE: Final = SMALL - 1


@compiled
def class_of(largest: int) -> int:
    """Class of a channel whose largest code is `largest`."""
    low = 0
    while largest >> low >= LEVELS:
        low += 1
    return largest if low == 0 else 8 * low + (largest >> low)


@compiled
def low_bits(channel_class: int) -> int:
    """How many low bits of each code stay as they are."""
    return 0 if channel_class < LEVELS else (channel_class - 8) // 8


@compiled
def level_of(channel_class: int) -> int:
    """Largest symbol of a class, 0 … 15."""
    return channel_class if channel_class < LEVELS else 8 + channel_class % 8


@compiled
def class_count(width: int) -> int:
    """How many classes a channel can have in a unit of width number 0 … 4."""
    return 4 << width if width < 3 else 16 * width - 16


@compiled
def fold(value: int) -> int:
    """Integers near 0 to small symbols: 0, −1, 1, −2, … to 0, 1, 2, 3, …"""
    return 2 * value if value >= 0 else -2 * value - 1


@compiled
def unfold(symbol: int) -> int:
    """The inverse of `fold`."""
    return -((symbol + 1) // 2) if symbol & 1 else symbol // 2


@compiled
def read_widths(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    widths: NDArray[np.uint8],
) -> None:
    """Bits of each unit of a side whose head is proven, from the section's bitmaps.

    Args:
        words, base: where the section begins.
        row: its descriptor.
        side: K_SIDE or V_SIDE.
        widths: [units], overwritten with 2, 3, 4, 6 or 8.
    """
    units = len(widths)
    widths[:] = 2
    bitmap = row[side + tile.BITMAPS]
    for plane in range(tile.PLANE_C, tile.PLANE_H2 + 1):
        mode = plane_mode(row[tile.FLAGS], side, plane)
        # H1 and H2 lie on top of B
        more = 1 if plane == tile.PLANE_C else 2
        for unit in range(units):
            bits = plane_word(words, base, mode, bitmap, units, unit // 32)
            widths[unit] += more * ((bits >> (unit % 32)) & 1)
        if mode == tile.SPARSE:
            bitmap += bitmap_words(units)

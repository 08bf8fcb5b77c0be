"""How cold coding sees a unit and a channel: widths, classes, and small integers as symbols.

The largest code M of a channel says how its codes are spread. M ≤ 15 is the channel's **level**; a
larger M keeps its upper four bits as the level (8 … 15), and the lower bits of each code, which are
close to random, stay as they are: alphabets of codes never exceed 16. M, so cut, is the channel's
**class**:

    0 … 15               M, but 3 for M = 2
    16 + 8 · (low − 1) …   low = 1 … 4 bits are cut off, and the level is 8 … 15
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.places import LEVELS
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import bitmap_of, plane_mode, plane_word

__all__ = [
    "CLASSES",
    "SMALL",
    "WIDTHS",
    "class_count",
    "class_of",
    "fold",
    "has_sparse_planes",
    "level_of",
    "low_bits",
    "plain_bits",
    "read_widths",
    "small_symbol",
    "unfold",
    "unfold_symbol",
    "width_number",
    "width_of",
]

CLASSES: Final = 48
WIDTHS: Final = 7  # how many widths a unit can have: 0, 1, 2, 3, 4, 6, 8 by number

# Small integers, folded: 0 … 7 are symbols of their own, then each half of an octave up to 2¹⁷.
SMALL: Final = 36
_EXACT: Final = 8


@compiled
def width_number(width: int) -> int:
    """0 … 6 for 0, 1, 2, 3, 4, 6, 8 bits."""
    return width if width <= 4 else width // 2 + 2


@compiled
def width_of(number: int) -> int:
    """The inverse of `width_number`."""
    return number if number <= 4 else 2 * number - 4


def _class_of(largest: int) -> int:
    low = max(largest.bit_length() - 4, 0)
    return 8 * low + (largest >> low) if low else 3 if largest == 2 else largest


_CLASS_OF: Final = np.array([_class_of(largest) for largest in range(256)], np.uint8)


@compiled
def class_of(largest: int) -> int:
    """Class of a channel whose largest code is `largest`, at most 255."""
    return int(np.int64(_CLASS_OF[largest]))


@compiled
def low_bits(channel_class: int) -> int:
    """How many low bits of each code stay as they are."""
    return 0 if channel_class < LEVELS else (channel_class - 8) // 8


@compiled
def level_of(channel_class: int) -> int:
    """Largest code of a class without its low bits, 0 … 15."""
    return channel_class if channel_class < LEVELS else 8 + channel_class % 8


@compiled
def class_count(number: int) -> int:
    """How many classes a channel can have in a unit of that width number."""
    return 1 << number if number < 6 else CLASSES


@compiled
def fold(value: int) -> int:
    """Integers near 0 to small ones ≥ 0: 0, −1, 1, −2, … to 0, 1, 2, 3, …"""
    return 2 * value if value >= 0 else -2 * value - 1


@compiled
def unfold(folded: int) -> int:
    """The inverse of `fold`."""
    return -((folded + 1) // 2) if folded & 1 else folded // 2


def _small_symbol(folded: int) -> int:
    octave = folded.bit_length() - 1
    return folded if folded < _EXACT else 2 * octave + 2 + (folded >> (octave - 1) & 1)


# Of folded integers below 2⁹; of larger ones, of their upper bits.
_SMALL_SYMBOL: Final = np.array([_small_symbol(folded) for folded in range(512)], np.uint8)


@compiled
def small_symbol(folded: int) -> int:
    """Symbol of a folded integer below 2¹⁷: itself, or which half of which octave it lies in."""
    if folded < 512:
        return int(np.int64(_SMALL_SYMBOL[folded]))
    # the upper bits are six octaves lower, of two symbols each, or eight
    down = 6 if folded < 1 << 15 else 8
    return int(np.int64(_SMALL_SYMBOL[folded >> down])) + 2 * down


@compiled
def plain_bits(symbol: int) -> int:
    """How many low bits of a folded integer follow its symbol as they are."""
    return 0 if symbol < _EXACT else (symbol - _EXACT) // 2 + 2


@compiled
def unfold_symbol(symbol: int, low: int) -> int:
    """The integer of a symbol and of the bits that follow it."""
    if symbol < _EXACT:
        return unfold(symbol)
    return unfold((2 + (symbol & 1)) << plain_bits(symbol) | low)


@compiled
def has_sparse_planes(row: NDArray[np.int32], side: int) -> bool:
    """Whether bitmaps say what widths a side's units have."""
    sparse = False
    for plane in range(tile.PLANE_A, tile.PLANE_H2 + 1):
        sparse |= plane_mode(row[tile.FLAGS], side, plane) == tile.SPARSE
    return sparse


@compiled
def read_widths(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    widths: NDArray[np.uint8],
) -> None:
    """Bits of each unit of a side whose head is proven, from flags and bitmaps.

    Args:
        words, base: where the section begins.
        row: its descriptor.
        side: K_SIDE or V_SIDE.
        widths: [units], overwritten with 0, 1, 2, 3, 4, 6 or 8.
    """
    units = len(widths)
    widths[:] = 0
    for plane in range(tile.PLANE_A, tile.PLANE_H2 + 1):
        mode = plane_mode(row[tile.FLAGS], side, plane)
        bitmap = bitmap_of(row, side, plane)
        # B lies on top of A, and H1 and H2 on top of B
        more = 1 if plane == tile.PLANE_C else 2
        for unit in range(units):
            bits = plane_word(words, base, mode, bitmap, units, unit // 32)
            widths[unit] += more * ((bits >> (unit % 32)) & 1)

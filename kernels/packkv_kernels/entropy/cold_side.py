"""What cold coding reads of one side of a proven section, compiled, and what it expects there."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.unpack_codes import unpack_codes
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.channels import level_of, low_bits, read_widths
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import is_raw, side_bits, unit_of

__all__ = [
    "FLOAT_SCALE_WORDS",
    "LANES",
    "SIDES",
    "Channels",
    "has_float_scales",
    "mean_scale",
    "predicted_minimum",
    "read_channels",
    "read_codes",
    "read_scales",
    "side_start",
    "side_words",
]

FLOAT_SCALE_WORDS: Final = BLOCK_TOKENS * 3 // 2
LANES: Final = 4  # bit streams of a section, so that a processor can decode them at the same time
SIDES: Final = (tile.K_SIDE, tile.V_SIDE)


class Channels(NamedTuple):
    """What a side says of its stored channels besides their codes.

    Attributes:
        widths: uint8 [head_dim], bits of each channel's unit.
        minima: int32 [head_dim], or empty if the side has none.
        steps: int32 [head_dim], −8 … 7, or empty.
    """

    widths: NDArray[np.uint8]
    minima: NDArray[np.int32]
    steps: NDArray[np.int32]


# Flags of minima and scales: without them, codes are unpacked as they are.
_PARTS: Final = (1 << tile.RAW_SHIFT) - (1 << tile.MINIMA_SHIFT)


@compiled
def side_start(row: NDArray[np.int32], side: int) -> int:
    """First word of a side's minima, scales and planes, or of its values."""
    if is_raw(row[tile.FLAGS], side):
        return int(row[side + tile.PLANE_A])
    if side_bits(row[tile.FLAGS], side, tile.MINIMA_SHIFT) != tile.NO_MINIMA:
        return int(row[side + tile.MINIMA])
    # every codec has minima or scales
    return int(row[side + tile.SCALES])


@compiled
def side_words(row: NDArray[np.int32], side: int) -> int:
    """How many words a side has in the section."""
    end = row[tile.WORDS] if side == tile.V_SIDE else side_start(row, tile.V_SIDE)
    return int(end) - side_start(row, side)


@compiled
def has_float_scales(row: NDArray[np.int32], side: int) -> bool:
    """Whether a side has token scales of four bytes."""
    return bool(side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT) == tile.FLOAT_SCALES)


@compiled
def read_codes(
    words: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    side: int,
    codes: NDArray[np.uint8],
) -> bool:
    """Codes of one side, [head_dim, ≥ 64]; False if it has none, or some where no token has any."""
    if is_raw(row[tile.FLAGS], side):
        return False
    values = np.empty((BLOCK_TOKENS, len(codes)), np.float32)
    bare = row.copy()
    bare[tile.FLAGS] &= ~_PARTS
    unpack_codes(words, base, bare, side, 0, values)
    for c in range(len(codes)):
        line = codes[c]
        for t in range(BLOCK_TOKENS):
            line[t] = np.uint8(np.int32(values[t, c]))
    first, last = row[tile.SINKS], row[tile.TOKENS]
    scales = np.zeros(BLOCK_TOKENS, np.int32)
    read_scales(words, base, row, side, scales)
    stray = values[:first].any() or values[last:].any()
    return not (stray or scales[:first].any() or scales[last:].any())


@compiled
def _signed(words: NDArray[np.uint32], start: int, width: int, i: int) -> int:
    """The i-th of the fields of `width` bits from word `start` on, with its sign."""
    each = 32 // width
    # the field moves to the top of the word, and comes down with its sign
    word = np.int32(words[start + i // each] << np.uint32(32 - width * (i % each + 1)))
    return int(word >> np.int32(32 - width))


@compiled
def read_channels(
    words: NDArray[np.uint32], base: int, row: NDArray[np.int32], side: int
) -> Channels:
    """Widths, minima and steps of a side with codes."""
    head_dim = row[tile.HEAD_DIM]
    unit = unit_of(head_dim, side)
    units = np.empty(head_dim // unit, np.uint8)
    read_widths(words, base, row, side, units)
    width = 8 * side_bits(row[tile.FLAGS], side, tile.MINIMA_SHIFT)
    minima = np.empty(head_dim if width else 0, np.int32)
    for c in range(len(minima)):
        minima[c] = _signed(words, base + row[side + tile.MINIMA], width, c)
    has_steps = side_bits(row[tile.FLAGS], side, tile.SCALES_SHIFT) == tile.CHANNEL_STEPS
    steps = np.empty(head_dim if has_steps else 0, np.int32)
    for c in range(len(steps)):
        steps[c] = _signed(words, base + row[side + tile.SCALES], 4, c)
    return Channels(np.repeat(units, unit), minima, steps)


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
def predicted_minimum(width: int, channel_class: int, has_steps: bool) -> int:
    """The minimum of a channel whose values lie evenly around 0.

    Args:
        width: bits of its unit.
        channel_class: of the channel.
        has_steps: whether the codes span the channel's range, and minima of narrow units count
            quarter steps.
    """
    if has_steps:
        return -((1 << width) - 1) * (4 if width < 4 else 1) // 2
    low = low_bits(channel_class)
    return -((level_of(channel_class) + 1) << low) // 2


@compiled
def mean_scale(scales: NDArray[np.int32]) -> int:
    """What the scales of a side's tokens are told from; 0 without tokens."""
    return int(scales.sum() // len(scales)) if len(scales) else 0

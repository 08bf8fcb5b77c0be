"""Streams of bits, from the least significant of a byte up; compiled."""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format.compiled import compiled

__all__ = ["put", "read_bits", "read_codes", "take", "write_bits", "write_codes"]


@compiled
def put(stream: NDArray[np.uint8], at: int, value: int, width: int) -> int:
    """Writes `width` bits at bit `at` of zeroed bytes; returns the bit behind them."""
    done = 0
    while done < width:
        place = (at + done) & 7
        stream[(at + done) >> 3] |= ((value >> done) << place) & 0xFF
        done += 8 - place
    return at + width


@compiled
def take(stream: NDArray[np.uint8], at: int, width: int) -> int:
    """The `width` bits from bit `at` on."""
    value, done = 0, 0
    while done < width:
        place = (at + done) & 7
        value |= (int(stream[(at + done) >> 3]) >> place) << done
        done += 8 - place
    return value & ((1 << width) - 1)


@compiled
def write_bits(stream: NDArray[np.uint8], at: int, values: NDArray[np.int32], width: int) -> int:
    """Writes values [count] of `width` bits each at bit `at`; returns the bit behind them.

    Args:
        stream: zero from bit `at` on, and long enough.
        at: a bit.
        values: 0 … 2^width − 1; what is above is lost, and spoils what follows.
        width: 0 … 31.
    """
    for value in values:
        at = put(stream, at, value, width)
    return at


@compiled
def read_bits(stream: NDArray[np.uint8], at: int, count: int, width: int) -> NDArray[np.int32]:
    """`count` values of `width` bits each from bit `at` on; the stream is long enough."""
    values = np.empty(count, np.int32)
    for i in range(count):
        values[i] = take(stream, at, width)
        at += width
    return values


@compiled
def write_codes(
    stream: NDArray[np.uint8],
    at: int,
    rows: NDArray[np.int32],
    low: NDArray[np.int32],
    widths: NDArray[np.int32],
    pack_tokens: int,
) -> None:
    """Codes of rows [tokens, channels] above the minima [packs, channels], by pack and channel."""
    for pack in range(len(low)):
        first, last = pack * pack_tokens, min((pack + 1) * pack_tokens, len(rows))
        for c in range(rows.shape[1]):
            for token in range(first, last):
                at = put(stream, at, rows[token, c] - low[pack, c], widths[pack, c])


@compiled
def read_codes(
    stream: NDArray[np.uint8],
    at: int,
    rows: NDArray[np.int32],
    low: NDArray[np.int32],
    widths: NDArray[np.int32],
    pack_tokens: int,
) -> None:
    """Fills rows with what `write_codes` was given; the stream is long enough."""
    for pack in range(len(low)):
        first, last = pack * pack_tokens, min((pack + 1) * pack_tokens, len(rows))
        for c in range(rows.shape[1]):
            for token in range(first, last):
                rows[token, c] = low[pack, c] + take(stream, at, widths[pack, c])
                at += widths[pack, c]

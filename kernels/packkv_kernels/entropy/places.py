"""Where the codes of a channel have lately been: what tells the next ones best.

Keys drift slowly from token to token, and channels of rotated values keep a mean of their own. So
a code is coded with a table of its channel's **level** m, the largest code, and of the channel's
**place**: a running mean of its codes, in `PLACES` steps from 0 to m. A code c pulls the place
towards itself, by half of the way on K, which moves; by less on V, which stays.

Codes of few levels go several to a symbol, because a codeword has no less than one bit: four codes
of level 1, two of level 3. Level 2 is level 3.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format.compiled import compiled

__all__ = [
    "LEVELS",
    "MAX_PLACES",
    "NEXT_PLACE",
    "PLACES",
    "SYMBOLS",
    "bits_of",
    "group_of",
    "symbol_count",
    "top_of",
]

LEVELS: Final = 16
SYMBOLS: Final = 16  # of a table of codes
PLACES: Final = (15, 31)  # of K, of V; the one in the middle is where a channel begins
MAX_PLACES: Final = 31


@compiled
def group_of(level: int) -> int:
    """How many codes a symbol has."""
    return 4 if level == 1 else 2 if level == 3 else 1


@compiled
def bits_of(level: int) -> int:
    """How many bits of a symbol a code takes."""
    return 4 // group_of(level)


@compiled
def top_of(level: int) -> int:
    """The largest symbol: every code is `level`."""
    return SYMBOLS - 1 if level <= 3 else level


@compiled
def symbol_count(level: int, codes: int) -> int:
    """How many symbols so many codes of a channel are; those of level 0 take no bits."""
    return (codes + group_of(level) - 1) // group_of(level)


def _pull(side: int, level: int) -> int:
    """What share of the way a code pulls the place: one in this many."""
    if side == 0:
        return 2
    return 8 if level == 1 else 6 if level == 3 else 4 if level < 8 else 3


def _after_code(places: int, level: int, pull: int) -> NDArray[np.int64]:
    """The place after one code, [place, code], to the nearest; half a step is a step."""
    place, code = np.ogrid[:places, : level + 1]
    way = code * (places - 1) - place * level
    share = level * pull
    after: NDArray[np.int64] = place + np.sign(way) * ((2 * abs(way) + share) // (2 * share))
    return after


def _after_symbol(side: int, level: int) -> NDArray[np.int64]:
    """The place after a symbol, [place, symbol]."""
    after = _after_code(PLACES[side], level, _pull(side, level))
    place: NDArray[np.int64]
    place, symbol = np.mgrid[: PLACES[side], : top_of(level) + 1]
    for first in range(0, 4, bits_of(level)):
        place = after[place, symbol >> first & ((1 << bits_of(level)) - 1)]
    return place


def _next_places() -> NDArray[np.uint8]:
    found = np.zeros((2, LEVELS, MAX_PLACES, SYMBOLS), np.uint8)
    for side, level in np.ndindex(2, LEVELS):
        if level not in (0, 2):
            after = _after_symbol(side, level)
            found[side, level, : len(after), : after.shape[1]] = after
    found.flags.writeable = False
    return found


# The place after a symbol, uint8 [side, level, place, symbol].
NEXT_PLACE: Final = _next_places()

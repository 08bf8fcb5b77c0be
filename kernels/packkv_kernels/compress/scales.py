"""Scales of the hybrid codec: a byte per token of rotated V, four bits per channel of K.

Token scales are log₂ with 1/16 octave, from an rms of 2⁻⁹ up to 2⁷. Channel steps are 1/8 octave,
from half the step that is aimed at up to 1.83 times it.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import V_BITS

__all__ = [
    "INV_STEPS",
    "K_WIDTHS",
    "RANGE_BOUNDS",
    "SCALES",
    "STEPS",
    "STEP_BOUNDS",
    "mean_square_thresholds",
    "scale_tables",
]

# Steps that V of unit rms is cut with. From the best for a Gaussian (Max, Quantizing for Minimum
# Distortion, 1960), that of 4 levels 1.1 times as wide, which measures better in a model.
_SPREAD = {2: 1.5958, 4: 1.0953, 8: 0.5860, 16: 0.3352}

# Steps that it comes back with: wider, because the mean of what falls into a level shrinks values,
# and attention averages noise away but not a shrinkage that all tokens share.
_RESTORED = {2: 2.3139, 4: 1.1391, 8: 0.5977, 16: 0.3352}

# Widths of K, and the widest range in aimed-at steps that each of them takes.
K_WIDTHS = np.array([0, 1, 2, 3, 4, 6, 8], np.uint8)
RANGE_BOUNDS = np.array([0.9, 2.0, 4.15, 9.6, 25.9, 109, 466], np.float32)

# By how many steps a range may be wider than the codes of a width: few codes lie better inside it.
_SLACK = {1: 1.0, 2: 0.25, 3: 0.25}

# 2^(e/8) of the channel steps e = −8 … 7 by e + 8, and its inverse.
_OCTAVES = np.arange(-8, 8, dtype=np.float64) / 8
STEPS = (2.0**_OCTAVES).astype(np.float32)
INV_STEPS = (2.0**-_OCTAVES).astype(np.float32)

# Ranges above which a channel of a width (a row for each number of bits, used or not) takes the
# channel steps −7 … 7. Width 0 always has step 0.
STEP_BOUNDS = np.zeros((9, 15), np.float32)
STEP_BOUNDS[0] = np.repeat([-np.inf, np.inf], [8, 7])
for _width, _slack in _SLACK.items():
    STEP_BOUNDS[_width] = (2**_width - 1 + _slack) * 2.0 ** ((np.arange(15) - 7.5) / 8)
for _width in (4, 6, 8):
    # minima of whole steps are off by up to half a step: the range fits all the same
    STEP_BOUNDS[_width] = (2**_width - 1.5) * 2.0 ** ((np.arange(15) - 8) / 8)

for _table in (K_WIDTHS, RANGE_BOUNDS, STEPS, INV_STEPS, STEP_BOUNDS):
    _table.flags.writeable = False


@cache
def scale_tables(levels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(step that codes come back with, 1 / step that they are cut with) by a token's scale code.

    Each float32 [256]; code 0 has zeros.
    """
    octave = 2.0 ** (np.arange(256, dtype=np.float64) / 16 - 9)
    step = _RESTORED[levels] * octave
    inverse = 1 / (_SPREAD[levels] * octave)
    step[0] = inverse[0] = 0
    return step.astype(np.float32), inverse.astype(np.float32)


@cache
def mean_square_thresholds() -> NDArray[np.float32]:
    """float32 [256]: least mean squares of scale codes 1 … 255, then the first beyond them."""
    code = np.arange(1, 257, dtype=np.float64)
    return (2.0 ** ((2 * code - 1) / 16 - 18)).astype(np.float32)


# Row by number of levels, 2, 4, 8, 16 at rows 1 … 4 (their width): for compiled code, which takes
# arrays but not dictionaries.
SCALES = np.zeros((5, 256), np.float32)
for _levels, _width in V_BITS.items():
    SCALES[_width] = scale_tables(_levels)[0]
SCALES.flags.writeable = False

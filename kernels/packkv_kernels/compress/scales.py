"""Token scales of rotated V: one byte, log₂ with 1/16 octave, from an rms of 2⁻⁹ up to 2⁷."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import V_BITS

__all__ = ["SCALES", "mean_square_thresholds", "scale_tables"]

# Best uniform steps for a unit Gaussian: Max, Quantizing for Minimum Distortion, 1960.
_SPREAD = {4: 0.9957, 8: 0.5860, 16: 0.3352}


@cache
def scale_tables(levels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(step, 1/step) of a token by its scale code, each float32 [256]; code 0 has zeros."""
    exponent = np.arange(256, dtype=np.float64) / 16 - 9
    step = _SPREAD[levels] * 2.0**exponent
    inverse = 1 / step
    step[0] = inverse[0] = 0
    return step.astype(np.float32), inverse.astype(np.float32)


@cache
def mean_square_thresholds() -> NDArray[np.float32]:
    """float32 [256]: least mean squares of scale codes 1 … 255, then the first beyond them."""
    code = np.arange(1, 257, dtype=np.float64)
    return (2.0 ** ((2 * code - 1) / 16 - 18)).astype(np.float32)


# Row by number of levels, 4, 8, 16 at rows 2, 3, 4 (their width): for compiled code, which takes
# arrays but not dictionaries.
SCALES = np.zeros((5, 256), np.float32)
for _levels, _width in V_BITS.items():
    SCALES[_width] = scale_tables(_levels)[0]
SCALES.flags.writeable = False

"""Budgets: which heads get the bits, so that a model loses as little as possible in all.

Heads differ a thousandfold in what their error does to the output. With the KL of every head's K
and V measured alone at one coarse setting, the rest follows: the KL of K grows with the mean square
error that each step makes, that of V with its levels, alike in all heads, and the KLs of heads add
up as long as they are small. Minimising bits + KL / λ then splits into one small choice per head
and side.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import V_BITS
from packkv_kernels.errors import InvalidInput
from packkv_kernels.profile import Profile

__all__ = ["REFERENCE_LEVELS", "Sensitivity", "solve", "uniform"]

# KL of V by its levels, as a share of that at `REFERENCE_LEVELS`: measured, all heads alike.
_V_KL: Final = {2: 6.0, 4: 1.0, 8: 0.27, 16: 0.08}

REFERENCE_LEVELS: Final = 4

# Where K costs a model about as much KL as V at 8 levels: finer K would be wasted.
_UNIFORM_STEP: Final = 1.6

_SEARCH_STEPS: Final = 60


@dataclass(frozen=True)
class Sensitivity:
    """What calibration measured of every head, alone.

    Attributes:
        k_kl: float64 [layers, heads], KL when only this head's K is quantised, coarsely.
        v_kl: float64 [layers, heads], KL when only this head's V is quantised to
            `REFERENCE_LEVELS`.
        steps: float64 [choices], multipliers of the codec's delta to choose from, ascending.
        k_bits: float64 [layers, heads, choices], bits per value of K with each of them.
        k_error: float64 [layers, heads, choices], mean square error of K with each of them, as a
            share of that at which k_kl was measured.
    """

    k_kl: NDArray[np.float64]
    v_kl: NDArray[np.float64]
    steps: NDArray[np.float64]
    k_bits: NDArray[np.float64]
    k_error: NDArray[np.float64]

    def __post_init__(self) -> None:
        heads = self.k_kl.shape
        choices = (*heads, len(self.steps))
        if self.v_kl.shape != heads or not self.k_bits.shape == self.k_error.shape == choices:
            raise InvalidInput(
                f"k_kl {heads}, v_kl {self.v_kl.shape}, k_bits {self.k_bits.shape}, "
                f"k_error {self.k_error.shape} and {len(self.steps)} steps do not fit each other"
            )


def uniform(profile: Profile) -> Profile:
    """The profile with one budget for all heads: what to use before anything was measured."""
    return replace(profile, k_scale=np.full_like(profile.k_scale, _UNIFORM_STEP))


def solve(profile: Profile, sensitivity: Sensitivity, target_kl: float) -> Profile:
    """The profile with the budgets that cost fewest bits at a predicted sum of KLs.

    Args:
        profile: gives everything but the budgets.
        sensitivity: of the same model, with the codec's delta.
        target_kl: sum of the KLs of all heads, K and V, > 0.

    Raises:
        InvalidInput: shapes that do not fit, or a target that is not positive.
    """
    if sensitivity.k_kl.shape != profile.k_scale.shape:
        raise InvalidInput(
            f"sensitivity of {sensitivity.k_kl.shape} heads, profile of {profile.k_scale.shape}"
        )
    if not 0 < target_kl < float("inf"):
        raise InvalidInput(f"target_kl {target_kl} is not a positive number")
    # a head that seems not to matter at all was measured below the noise
    k_kl = np.maximum(sensitivity.k_kl, sensitivity.k_kl.max() * 1e-4)
    v_kl = np.maximum(sensitivity.v_kl, sensitivity.v_kl.max() * 1e-4)
    levels = np.array(sorted(V_BITS))
    k_costs = k_kl[..., None] * sensitivity.k_error
    v_costs = v_kl[..., None] * np.array([_V_KL[level] for level in levels])
    v_bits = np.broadcast_to([float(V_BITS[level]) for level in levels], v_costs.shape)
    # at a higher price of KL less of it is bought: halve the interval on a logarithmic scale
    low, high = 1e-6, 1e9
    for _ in range(_SEARCH_STEPS):
        price = (low * high) ** 0.5
        k_choice = (sensitivity.k_bits + price * k_costs).argmin(-1)
        v_choice = (v_bits + price * v_costs).argmin(-1)
        if _chosen(k_costs, k_choice) + _chosen(v_costs, v_choice) > target_kl:
            low = price
        else:
            high = price
    return replace(
        profile,
        k_scale=sensitivity.steps[(sensitivity.k_bits + high * k_costs).argmin(-1)].astype("f4"),
        v_levels=levels[(v_bits + high * v_costs).argmin(-1)].astype("u1"),
    )


def _chosen(costs: NDArray[np.float64], choice: NDArray[np.int64]) -> float:
    return float(np.take_along_axis(costs, choice[..., None], -1).sum())

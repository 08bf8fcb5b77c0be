"""The codecs that are compared, each with as many settings as the others at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from transformers import PreTrainedConfig

from packkv.bench.codec.affine import KiviKeys, KiviValues, RotatedAffine
from packkv.bench.codec.baseline import Baseline
from packkv.bench.codec.float8 import Float8
from packkv.bench.codec.gaussian import RotatedGaussian
from packkv.bench.codec.hybrid import PayloadSetting
from packkv.bench.codec.kvcomp import KVCompKeys, KVCompValues
from packkv.bench.codec.published import PublishedPackKV
from packkv.bench.codec.quantized_cache import GroupWise, TransformersCache
from packkv.bench.codec.setting import Family
from packkv_kernels.config import HybridConfig
from packkv_kernels.packs import Repacking
from packkv_kernels.profile import Profile

__all__ = ["Grid", "baselines", "even_hybrid", "hybrid", "transformers_caches", "variants"]


class Grid(StrEnum):
    """How many settings of K, and of V, every codec is tuned over."""

    QUICK = "quick"
    DEFAULT = "default"
    WIDE = "wide"

    @property
    def size(self) -> int:
        """Settings of K, and of V: a codec has at most the square of it."""
        return {Grid.QUICK: 2, Grid.DEFAULT: 4, Grid.WIDE: 6}[self]


@dataclass(frozen=True)
class _Axis:
    """Values of one parameter by grid; `wide` covers all that the sources sweep."""

    quick: tuple[float, ...]
    default: tuple[float, ...]
    wide: tuple[float, ...]

    def at(self, grid: Grid) -> tuple[float, ...]:
        values: tuple[float, ...] = getattr(self, grid.value)
        return values


_PACKKV_K = _Axis((0.03, 0.12), (0.02, 0.035, 0.06, 0.11), (0.03, 0.045, 0.07, 0.11, 0.16, 0.24))
_PACKKV_V = _Axis((0.1, 0.4), (0.1, 0.16, 0.25, 0.4), (0.1, 0.15, 0.22, 0.32, 0.47, 0.7))
_KVCOMP_K = _Axis((0.1, 0.4), (0.04, 0.08, 0.15, 0.3), (0.04, 0.08, 0.12, 0.18, 0.28, 0.4))
_KVCOMP_V = _Axis((0.1, 0.3), (0.05, 0.09, 0.16, 0.28), (0.05, 0.08, 0.12, 0.18, 0.25, 0.35))
_BITS = _Axis((2, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6))
_DELTA = _Axis((0.7, 2.0), (0.6, 0.9, 1.3, 2.0, 3.0), (0.3, 0.4, 0.6, 0.8, 1.1, 1.5, 2.0, 3.0))
_LEVELS = _Axis((4, 16), (4, 8, 16), (2, 4, 8, 16))

# (bits, group): KIVI's own 32, and 64, which costs half the metadata
_KIVI_GROUPS = {
    Grid.QUICK: ((2, 32), (4, 32)),
    Grid.DEFAULT: ((2, 64), (2, 32), (3, 64), (4, 64)),
    Grid.WIDE: ((2, 64), (2, 32), (3, 64), (3, 32), (4, 64), (4, 32)),
}

# transformers' QuantizedCache: the first ones are the first that a small grid takes; K along
# tokens and V along channels is what KIVI advises, the same axis for both the class's default.
_QUANTO = tuple(
    GroupWise(bits, *axes, group)
    for group in (64, 32, 128)
    for axes in ((0, 0), (-1, 0), (-1, -1), (0, -1))
    for bits in (2, 4)
)
_HQQ = (
    *(GroupWise(bits, axis, axis, 64) for axis in (0, 1) for bits in (2, 4)),
    # of 3 bits along axis 1 hqq cannot read what it wrote
    *(GroupWise(3, 0, 0, group) for group in (64, 32)),
    *(GroupWise(bits, *axes, 64) for axes in ((0, 1), (1, 0)) for bits in (2, 4)),
    *(GroupWise(bits, axis, axis, 32) for axis in (0, 1) for bits in (2, 4)),
)


def baselines(grid: Grid) -> list[Family]:
    """Everybody else's codecs."""
    return [
        _packkv("packkv", grid),
        _kvcomp("kvcomp", grid),
        Family(
            "kivi",
            [
                Baseline(KiviKeys(*k), KiviValues(*v))
                for k, v in product(_KIVI_GROUPS[grid], repeat=2)
            ],
        ),
        Family(
            "turboquant-like",
            [
                Baseline(RotatedGaussian(int(k)), RotatedGaussian(int(v)))
                for k, v in product(_BITS.at(grid), repeat=2)
            ],
        ),
        Family(
            "int4-hadamard",
            [
                Baseline(RotatedAffine(int(k)), RotatedAffine(int(v)))
                for k, v in product(_BITS.at(grid), repeat=2)
            ],
        ),
        Family("fp8", [Baseline(Float8(), Float8())]),
    ]


def variants(grid: Grid) -> list[Family]:
    """The papers' other choices, each over the same settings as the one that is reported."""
    return [
        _packkv("packkv-none", grid, Repacking.NONE),
        _packkv("packkv-median", grid, Repacking.MEDIAN),
        _packkv("packkv-p8", grid, pack_tokens=8),
        _packkv("packkv-p4", grid, pack_tokens=4),
        _kvcomp("kvcomp-block", grid, "block"),
    ]


def transformers_caches(grid: Grid, config: PreTrainedConfig, backend: str) -> Family:
    """transformers' QuantizedCache.

    Args:
        grid: how many settings.
        config: of the model.
        backend: "quanto", "hqq" or "fp8".
    """
    options = {"quanto": _QUANTO, "hqq": _HQQ}.get(backend, (None,))
    settings = [TransformersCache(backend, config, option) for option in options[: grid.size**2]]
    return Family(f"transformers-{backend}", settings)


def _packkv(
    codec: str, grid: Grid, repacking: Repacking = Repacking.GREEDY, pack_tokens: int = 16
) -> Family:
    return Family(
        codec,
        [
            PublishedPackKV(rel_k, rel_v, repacking, pack_tokens)
            for rel_k, rel_v in product(_PACKKV_K.at(grid), _PACKKV_V.at(grid))
        ],
    )


def _kvcomp(codec: str, grid: Grid, units: str = "channel") -> Family:
    return Family(
        codec,
        [
            Baseline(KVCompKeys(rel_k, units), KVCompValues(rel_v))
            for rel_k, rel_v in product(_KVCOMP_K.at(grid), _KVCOMP_V.at(grid))
        ],
    )


def even_hybrid(profile: Profile, grid: Grid, codec: str) -> Family:
    """Our codec with one budget for all heads: what budgets are worth is the difference.

    Args:
        profile: without budgets.
        grid: how many settings.
        codec: what the family is called.
    """
    return Family(
        codec,
        [
            PayloadSetting(HybridConfig(delta=delta, v_levels=int(levels)), profile)
            for delta, levels in product(_DELTA.at(grid), _LEVELS.at(grid))
        ],
    )


def hybrid(profiles: Sequence[tuple[HybridConfig, Profile, str]]) -> Family:
    """Our codec: configurations with their profiles, and a note on each."""
    return Family("hybrid", [PayloadSetting(*parts) for parts in profiles])

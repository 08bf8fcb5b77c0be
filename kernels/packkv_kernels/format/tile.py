"""Constants of the inside of a tile section, and of the descriptor that says where its parts lie.

A section's bytes are drawn in docs/codec.md. A **descriptor** is one int32 row per section, made
by the validator (or by the encoder) from flags and bitmaps, so that kernels look nothing up:

    word 0         8              16             24
    ┌──────────────┬──────────────┬──────────────┐
    │ section      │ K side       │ V side       │
    └──────────────┴──────────────┴──────────────┘

Offsets count u32 words from the section's start.
"""

from typing import Final

__all__ = [
    "DESCRIPTOR_WORDS",
    "FLAGS",
    "K_SIDE",
    "V_SIDE",
    "flag_bits",
    "v_unit",
]

DESCRIPTOR_WORDS: Final = 24

# Section part of a descriptor.
FLAGS: Final = 0  # word 0 of the section; 0 for `raw`
TOKENS: Final = 1
SINKS: Final = 2
WORDS: Final = 3  # length of the section
STORAGE: Final = 4  # TILE, or what the values of a resident `raw` section are
HEAD_DIM: Final = 5
K_EXACT: Final = 6  # offset of the exact rows of K
V_EXACT: Final = 7

TILE: Final = 0
FLOAT16: Final = 1
BFLOAT16: Final = 2
FLOAT32: Final = 3

# Side parts, and what is at the same place in both. Absent parts have offset 0.
K_SIDE: Final = 8
V_SIDE: Final = 16
BITMAPS: Final = 0  # offset of the bitmap of the first sparse plane
MINIMA: Final = 1
SCALES: Final = 2
PLANE_A: Final = 3  # of a raw tile, or a resident `raw` section: offset of the values
PLANE_C: Final = 4
PLANE_B: Final = 5
PLANE_H1: Final = 6
PLANE_H2: Final = 7

# Word 0 of a section: where the fields begin, and how far V's lie above K's.
PLANES_SHIFT: Final = 0  # 2 bits for each of C, B, H1, H2; V's 8 bits higher
PLANES_V: Final = 8
MINIMA_SHIFT: Final = 16  # 2 bits; V's 2 bits higher
SCALES_SHIFT: Final = 20  # 2 bits; V's 2 bits higher
RAW_SHIFT: Final = 24  # 1 bit; V's 1 bit higher
PLANE_A_SHIFT: Final = 26  # 2 bits; V's 2 bits higher
FLAG_BITS: Final = 30

ABSENT: Final = 0
DENSE: Final = 1
SPARSE: Final = 2

NO_MINIMA: Final = 0
INT8_MINIMA: Final = 1
INT16_MINIMA: Final = 2

NO_SCALES: Final = 0
LOG_SCALES: Final = 1
FLOAT_SCALES: Final = 2
CHANNEL_STEPS: Final = 3

K_UNIT: Final = 4


def v_unit(head_dim: int) -> int:
    """Channels of V that share a width."""
    return 4 if head_dim > 64 else 2


def flag_bits(
    k_planes: int, v_planes: int, minima: tuple[int, int], scales: tuple[int, int]
) -> int:
    """Word 0 of a section from its fields (K, V).

    Args:
        k_planes: 2 bits for each of A, C, B, H1, H2, A lowest (in the word, A lies apart).
        v_planes: the same for V.
        minima: NO_MINIMA, INT8_MINIMA or INT16_MINIMA of K and of V.
        scales: NO_SCALES, LOG_SCALES, FLOAT_SCALES or CHANNEL_STEPS of K and of V.
    """
    return (
        k_planes >> 2 << PLANES_SHIFT
        | v_planes >> 2 << PLANES_SHIFT + PLANES_V
        | (k_planes & 3) << PLANE_A_SHIFT
        | (v_planes & 3) << PLANE_A_SHIFT + 2
        | minima[0] << MINIMA_SHIFT
        | minima[1] << MINIMA_SHIFT + 2
        | scales[0] << SCALES_SHIFT
        | scales[1] << SCALES_SHIFT + 2
    )

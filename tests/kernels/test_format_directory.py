"""Directory rows say what descriptors and bitmaps say, in one place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.format import ResidentSections, read_payload, resident_sections, tile
from packkv_kernels.format.directory import (
    EXTENT,
    K_BITMAPS,
    K_MINIMA,
    K_PLANES,
    K_STEPS,
    V_PLANE_B,
    V_PLANE_C,
    V_PLANES,
    directory_rows,
)
from packkv_kernels.testing import encode_payloads, random_kv, random_profile


def sections_of(codec: str, head_dim: int) -> ResidentSections:
    shape, config = CacheShape(1, 2, head_dim), CodecConfig.parse(codec)
    profile = random_profile(shape) if config.needs_profile else None
    kv = random_kv(shape, BLOCK_TOKENS, dtype=torch.float32)
    return resident_sections(read_payload(encode_payloads(*kv, config, profile)[0]))


@pytest.mark.parametrize(
    ("levels", "first", "has_c", "has_b"),
    [
        (2, tile.PLANE_C, True, False),
        (4, tile.PLANE_A, False, False),
        (8, tile.PLANE_A, True, False),
        (16, tile.PLANE_A, False, True),
    ],
)
def test_offsets_lead_from_the_arena_to_the_parts(
    levels: int, first: int, has_c: bool, has_b: bool
) -> None:
    sections = sections_of(f"hybrid:v_levels={levels}", 128)
    rows = directory_rows(sections.words, sections.bases, sections.descriptors, wide_units=32)
    for row, base, descriptor in zip(rows, sections.bases, sections.descriptors, strict=True):
        k, v = descriptor[tile.K_SIDE :], descriptor[tile.V_SIDE :]
        for place, plane in enumerate(range(tile.PLANE_A, tile.PLANE_H2 + 1)):
            if row[K_BITMAPS + place]:
                assert row[K_PLANES + place] * 4 == base + k[plane]
        assert row[V_PLANES] * 4 == base + v[first] == base + v[tile.SCALES] + 16
        assert row[V_PLANE_C] * 4 == (base + v[tile.PLANE_C] if has_c else 0)
        assert row[V_PLANE_B] * 4 == (base + v[tile.PLANE_B] if has_b else 0)
        assert row[K_MINIMA] * 4 == base + k[tile.MINIMA]
        assert row[K_STEPS] * 4 == base + k[tile.SCALES]
        kind = descriptor[tile.FLAGS] >> tile.MINIMA_SHIFT & 3
        assert row[EXTENT] == 4 | BLOCK_TOKENS << 8 | kind << 16


@pytest.mark.parametrize("delta", [0.5, 8])
def test_bitmaps_are_those_of_the_section_in_every_mode(delta: float) -> None:
    sections = sections_of(f"hybrid:delta={delta}", 64)
    rows = directory_rows(sections.words, sections.bases, sections.descriptors, wide_units=32)
    modes = set()
    for row, base, descriptor in zip(rows, sections.bases, sections.descriptors, strict=True):
        at = base + descriptor[tile.K_SIDE + tile.BITMAPS]
        flags = descriptor[tile.FLAGS]
        for place, shift in enumerate((tile.PLANE_A_SHIFT, 0, 2, 4, 6)):
            mode = int(flags >> shift & 3)
            stored = int(row[K_BITMAPS + place]) & 0xFFFFFFFF
            wanted = {tile.ABSENT: 0, tile.DENSE: 0xFFFF, tile.SPARSE: int(sections.words[at])}
            assert stored == wanted[mode]
            at += mode == tile.SPARSE
            modes.add((place, mode))
    assert (0, tile.SPARSE if delta == 8 else tile.DENSE) in modes


@pytest.mark.parametrize(("codec", "head_dim"), [("packkv", 64), ("raw", 64), ("hybrid", 256)])
def test_what_a_decode_kernel_cannot_read_has_no_packed_tokens(codec: str, head_dim: int) -> None:
    sections = sections_of(codec, head_dim)
    rows = directory_rows(sections.words, sections.bases, sections.descriptors, wide_units=32)
    assert (rows == 0).all()


def test_units_past_the_wide_ones_leave_their_tile_out() -> None:
    sections = sections_of("hybrid:delta=0.5", 64)
    every, few = (
        directory_rows(sections.words, sections.bases, sections.descriptors, wide_units=count)
        for count in (16, 1)
    )
    wide = every[:, K_BITMAPS + 3].view(np.uint32)
    assert (wide >> np.uint32(1)).any()
    assert ((few[:, EXTENT] != 0) == ((every[:, EXTENT] != 0) & (wide >> np.uint32(1) == 0))).all()

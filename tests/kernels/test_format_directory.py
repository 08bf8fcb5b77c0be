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
    V_PLANES,
    directory_rows,
)
from packkv_kernels.testing import encode_payloads, random_kv, random_profile


def sections_of(codec: str, head_dim: int) -> ResidentSections:
    shape, config = CacheShape(1, 2, head_dim), CodecConfig.parse(codec)
    profile = random_profile(shape) if config.needs_profile else None
    kv = random_kv(shape, BLOCK_TOKENS, dtype=torch.float32)
    return resident_sections(read_payload(encode_payloads(*kv, config, profile)[0]))


def test_offsets_lead_from_the_arena_to_the_planes() -> None:
    sections = sections_of("hybrid", 128)
    rows = directory_rows(sections.words, sections.bases, sections.descriptors, wide_units=32)
    for row, base, descriptor in zip(rows, sections.bases, sections.descriptors, strict=True):
        assert row[K_PLANES] * 4 == base + descriptor[tile.K_SIDE + tile.PLANE_A]
        assert row[V_PLANES] * 4 == base + descriptor[tile.V_SIDE + tile.PLANE_A]
        assert row[V_PLANES + 2] == 0
        assert row[K_MINIMA] * 4 == base + descriptor[tile.K_SIDE + tile.MINIMA]
        assert row[EXTENT] == 4 | BLOCK_TOKENS << 8


def test_bitmaps_are_those_of_the_section_in_every_mode() -> None:
    sections = sections_of("hybrid", 64)
    rows = directory_rows(sections.words, sections.bases, sections.descriptors, wide_units=32)
    for row, base, descriptor in zip(rows, sections.bases, sections.descriptors, strict=True):
        at = base + descriptor[tile.K_SIDE + tile.BITMAPS]
        for plane in range(4):
            mode = descriptor[tile.FLAGS] >> 2 * plane & 3
            stored = int(row[K_BITMAPS + plane]) & 0xFFFFFFFF
            wanted = {tile.ABSENT: 0, tile.DENSE: 0xFFFF, tile.SPARSE: int(sections.words[at])}
            assert stored == wanted[int(mode)]
            at += mode == tile.SPARSE


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
    wide = every[:, K_BITMAPS + 2].view(np.uint32)
    assert (wide >> np.uint32(1)).any()
    assert ((few[:, EXTENT] != 0) == ((every[:, EXTENT] != 0) & (wide >> np.uint32(1) == 0))).all()

"""Catalogue: every GPU kernel of the codec, with the shapes that its cost is stated for."""

from collections.abc import Iterator
from typing import Any

from packkv_kernels.attention.triton.combine import combine_states
from packkv_kernels.attention.triton.exact import attend_exact
from packkv_kernels.attention.triton.launch import EXACT_TOKENS, RESIDUAL_TOKENS, decode_options
from packkv_kernels.attention.triton.minima import PAGES, score_minima
from packkv_kernels.attention.triton.resident import v_planes
from packkv_kernels.attention.triton.residual import attend_residual
from packkv_kernels.attention.triton.tiles import attend_tiles
from packkv_kernels.compress.triton.blocks import (
    ENCODE_REGISTERS,
    ENCODE_WARPS,
    GATHER_WORDS,
    SCALE_VALUES,
    rotation_shape,
)
from packkv_kernels.compress.triton.encode import encode_sections, gather_sections
from packkv_kernels.compress.triton.integers import quantise_values, token_scales
from packkv_kernels.compress.triton.launch import UNPACK_WARPS
from packkv_kernels.compress.triton.target import AMD, NVIDIA, Target
from packkv_kernels.compress.triton.whole import unpack_rotated, unpack_side
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format.tile import K_UNIT, v_unit
from packkv_kernels.offline.cold import cold_kernels
from packkv_kernels.offline.kernel import CataloguedKernel
from packkv_kernels.offline.kvcomp import kvcomp_kernels

__all__ = ["catalogue"]

_HEADS = 8


def catalogue(backend: str) -> Iterator[CataloguedKernel]:
    """All kernels as they are launched on "cuda" or "hip"."""
    target = NVIDIA if backend == "cuda" else AMD
    for head_dim in (128, 64):
        yield from _decode_kernels(head_dim, target)
        yield from _other_kernels(head_dim, target)
        yield from _encode_kernels(head_dim, target)
    yield CataloguedKernel(
        "gather_sections",
        gather_sections,
        {"WORDS": GATHER_WORDS},
        elements=GATHER_WORDS,
        types={"out_ptr": "*u32"},
    )
    yield from kvcomp_kernels(target)
    yield from cold_kernels(target)


def _decode_kernels(head_dim: int, target: Target) -> Iterator[CataloguedKernel]:
    variants = [("v8", 8, (8,)), ("v4", 8, (4,)), ("v24816", 8, (2, 4, 8, 16))]
    if head_dim == 128:
        variants += [("v2", 8, (2,)), ("v8_all_wide", 32, (8,)), ("v8_window", 8, (8,))]
    for name, wide_units, levels in variants:
        has_a, has_c, has_b = v_planes(levels)
        yield CataloguedKernel(
            f"packed_decode_attention_hd{head_dim}_{name}",
            attend_tiles,
            {
                **_shape(head_dim),
                "UNIT_V": v_unit(head_dim),
                "WIDE_UNITS": wide_units,
                "V_A": has_a,
                "V_C": has_c,
                "V_B": has_b,
                "TILES": target.tiles,
                "ASM": target.asm,
                "WINDOW": name.endswith("window"),
            },
            elements=target.tiles * 2 * BLOCK_TOKENS * head_dim,
            loop=True,
            options=decode_options(target, head_dim),
        )


def _other_kernels(head_dim: int, target: Target) -> Iterator[CataloguedKernel]:
    shape, suffix = _shape(head_dim), f"_hd{head_dim}"
    rotation = {"SPAN": head_dim, "FACTOR": head_dim**-0.5}
    yield CataloguedKernel(
        "attention_scores_of_minima" + suffix,
        score_minima,
        {**shape, "WINDOW": False, "PRECISION": target.precision},
        elements=PAGES * head_dim,
    )
    tokens = {"UNIT_V": v_unit(head_dim), **rotation}
    yield CataloguedKernel(
        "exact_token_attention" + suffix,
        attend_exact,
        {**shape, **tokens, "TOKENS": EXACT_TOKENS, "WINDOW": False},
        elements=2 * EXACT_TOKENS * head_dim,
        loop=True,
        options={"num_stages": 1},
    )
    residual = {"TOKENS": RESIDUAL_TOKENS, "WINDOW": True, "PRECISION": target.precision}
    yield CataloguedKernel(
        "residual_attention" + suffix,
        attend_residual,
        {**shape, **rotation, **residual},
        elements=2 * RESIDUAL_TOKENS * head_dim,
        loop=True,
        options={"num_stages": 1},
    )
    combined = {"D": head_dim, "D_PAD": head_dim, **rotation}
    yield CataloguedKernel(
        "combine_attention_states" + suffix, combine_states, combined, elements=8 * head_dim
    )
    yield CataloguedKernel(
        "unpack_keys" + suffix,
        unpack_side,
        {**shape, "SIDE": 0, "UNIT": K_UNIT, "HYBRID": True},
        elements=BLOCK_TOKENS * head_dim,
        warps=UNPACK_WARPS,
        options={"enable_fp_fusion": False},
        types={"out_ptr": "*fp16"},
    )
    yield CataloguedKernel(
        "unpack_values" + suffix,
        unpack_rotated,
        {**shape, **rotation, "UNIT": v_unit(head_dim)},
        elements=BLOCK_TOKENS * head_dim,
        warps=UNPACK_WARPS,
        types={"out_ptr": "*fp16"},
    )


def _encode_kernels(head_dim: int, target: Target) -> Iterator[CataloguedKernel]:
    tokens, warps = rotation_shape(target)
    yield CataloguedKernel(
        f"quantise_rotated_values_hd{head_dim}",
        quantise_values,
        {
            **_shape(head_dim),
            "SPAN": head_dim,
            "FACTOR": head_dim**-0.5,
            "SHARE": 1 / head_dim,
            "TOKENS": tokens,
        },
        elements=tokens * head_dim,
        warps=warps,
        options={"enable_fp_fusion": False},
    )
    constants = {**_shape(head_dim), "UNIT_V": v_unit(head_dim)}
    for codec, hybrid in (("hybrid", True), ("packkv", False)):
        yield CataloguedKernel(
            f"encode_{codec}_sections_hd{head_dim}",
            encode_sections,
            {**constants, "HYBRID": hybrid},
            elements=BLOCK_TOKENS * head_dim // 16,
            loop=True,
            warps=ENCODE_WARPS,
            options={"enable_fp_fusion": False, **target.registers(ENCODE_REGISTERS)},
        )
    width = _HEADS * head_dim
    yield CataloguedKernel(
        f"packkv_token_scales_hd{head_dim}",
        token_scales,
        {"WIDTH": width, "WIDTH_PAD": width, "TOKENS": SCALE_VALUES // width},
        elements=SCALE_VALUES,
        options={"enable_fp_fusion": False},
    )


def _shape(head_dim: int) -> dict[str, Any]:
    return {"HEADS": _HEADS, "D": head_dim, "D_PAD": head_dim}

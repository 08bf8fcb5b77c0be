"""Catalogue: every GPU kernel of the codec, with the shapes that its cost is stated for."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from packkv_kernels.attention.triton.combine import combine_states
from packkv_kernels.attention.triton.decode import EXACT_TOKENS, decode_options
from packkv_kernels.attention.triton.exact import attend_exact
from packkv_kernels.attention.triton.minima import PAGES, score_minima
from packkv_kernels.attention.triton.resident import v_planes
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
from packkv_kernels.compress.triton.launch import UNPACK_TOKENS
from packkv_kernels.compress.triton.target import AMD, NVIDIA, Target
from packkv_kernels.compress.triton.unpack import unpack_tiles
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format.tile import v_unit

__all__ = ["ARGUMENT_TYPES", "CataloguedKernel", "catalogue"]

# Types of the arguments that are not compile-time constants, by name; others are int32.
ARGUMENT_TYPES = {
    "query_ptr": "*fp16",
    "order_ptr": "*i16",
    "step_ptr": "*fp32",
    "inv_step_ptr": "*fp32",
    "steps_ptr": "*fp32",
    "middle_ptr": "*fp32",
    "spread_ptr": "*fp32",
    "words_ptr": "*u32",
    "bases_ptr": "*i64",
    "descriptors_ptr": "*i32",
    "directory_ptr": "*i32",
    "table_ptr": "*i32",
    "pages_ptr": "*i32",
    "minima_scores_ptr": "*fp32",
    "mean_ptr": "*fp32",
    "lse_ptr": "*fp32",
    "out_ptr": "*fp32",
    "out_lse_ptr": "*fp32",
    "keys_ptr": "*fp16",
    "values_ptr": "*fp16",
    "k_scales_ptr": "*fp32",
    "k_zeros_ptr": "*fp32",
    "v_scales_ptr": "*fp32",
    "v_zeros_ptr": "*fp32",
    "scales_ptr": "*fp32",
    "zeros_ptr": "*fp32",
    "range_bounds_ptr": "*fp32",
    "step_bounds_ptr": "*fp32",
    "levels_ptr": "*i32",
    "codes_ptr": "*u8",
    "scale_codes_ptr": "*i16",
    "inverse_ptr": "*fp32",
    "thresholds_ptr": "*fp32",
    "starts_ptr": "*i64",
    "rel": "fp32",
    "factor": "fp32",
}

_HEADS = 8


@dataclass(frozen=True)
class CataloguedKernel:
    """A kernel at one shape.

    Attributes:
        name: what it does, and for which shape.
        function: the jitted function.
        constants: its compile-time arguments.
        elements: values of K and V that a program takes, in one iteration if `loop`.
        loop: whether its cost is that of its main loop.
        warps: of a program.
        options: of the launch.
        types: of arguments whose type is not in `ARGUMENT_TYPES`.
    """

    name: str
    function: Any
    constants: dict[str, Any]
    elements: int
    loop: bool = False
    warps: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)


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


def _decode_kernels(head_dim: int, target: Target) -> Iterator[CataloguedKernel]:
    variants = [("v8", 8, (8,)), ("v4", 8, (4,)), ("v24816", 8, (2, 4, 8, 16))]
    if head_dim == 128:
        variants += [("v2", 8, (2,)), ("v8_all_wide", 32, (8,))]
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
        {**shape, "PRECISION": target.precision},
        elements=PAGES * head_dim,
    )
    tokens = {"UNIT_V": v_unit(head_dim), **rotation}
    yield CataloguedKernel(
        "exact_token_attention" + suffix,
        attend_exact,
        {**shape, **tokens, "TOKENS": EXACT_TOKENS},
        elements=2 * EXACT_TOKENS * head_dim,
        loop=True,
        options={"num_stages": 1},
    )
    combined = {"D": head_dim, "D_PAD": head_dim, **rotation}
    yield CataloguedKernel(
        "combine_attention_states" + suffix, combine_states, combined, elements=8 * head_dim
    )
    yield CataloguedKernel(
        "unpack_tiles" + suffix,
        unpack_tiles,
        {**shape, **tokens, "TOKENS": UNPACK_TOKENS, "NATURAL": True},
        elements=2 * UNPACK_TOKENS * head_dim,
    )


def _encode_kernels(head_dim: int, target: Target) -> Iterator[CataloguedKernel]:
    tokens, warps = rotation_shape(target, head_dim)
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

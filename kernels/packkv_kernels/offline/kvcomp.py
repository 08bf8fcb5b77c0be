"""KVComp's kernels at the shapes that their cost is stated for."""

from collections.abc import Iterator
from typing import Any

from packkv_kernels.compress.triton.target import Target
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.triton.attend import attend_blocks
from packkv_kernels.entropy.triton.attention import ATTEND_REGISTERS
from packkv_kernels.entropy.triton.decode import decode_blocks
from packkv_kernels.entropy.triton.encode import SPELLED_BITS, encode_slices, gather_blocks
from packkv_kernels.entropy.triton.side import (
    COUNTED,
    DECODE_REGISTERS,
    GATHERED,
    quantise_warps,
    slice_warps,
)
from packkv_kernels.entropy.triton.slices import CODES
from packkv_kernels.entropy.triton.units import CHANNEL, TOKEN, count_codes, quantise_blocks
from packkv_kernels.offline.kernel import CataloguedKernel

__all__ = ["kvcomp_kernels"]

_TYPES = {
    "codes_ptr": "*u8",
    "units_ptr": "*u32",
    "counts_ptr": "*i32",
    "spelled_ptr": "*u32",
    "buffers_ptr": "*u32",
    "ends_ptr": "*i32",
    "starts_ptr": "*i64",
    "out_ptr": "*u32",
    "offsets_ptr": "*i64",
    "k_words_ptr": "*u32",
    "v_words_ptr": "*u32",
    "codebook_ptr": "*u32",
    "k_codebook_ptr": "*u32",
    "v_codebook_ptr": "*u32",
    "k_offsets_ptr": "*i64",
    "v_offsets_ptr": "*i64",
}
_HEADS = 8

# Values to a word of a block, with lengths and units: what 5 bits of a value come to.
_VALUES_OF_WORD = 6


def kvcomp_kernels(target: Target) -> Iterator[CataloguedKernel]:
    """All of them; head_dim only says how often their loops run."""
    yield from _encode_kernels(128, target)
    yield from _decode_kernels(128, target)
    yield CataloguedKernel(
        "kvcomp_count_codes", count_codes, {"CODES": COUNTED}, elements=COUNTED, types=_TYPES
    )


def _encode_kernels(head_dim: int, target: Target) -> Iterator[CataloguedKernel]:
    suffix, rows = f"_hd{head_dim}", -(-head_dim * SPELLED_BITS // 32)
    for name, units in (("channel", CHANNEL), ("token", TOKEN)):
        yield CataloguedKernel(
            f"kvcomp_quantise_by_{name}{suffix}",
            quantise_blocks,
            {"HEADS": _HEADS, "D": head_dim, "D_PAD": head_dim, "UNITS": units},
            elements=BLOCK_TOKENS * head_dim,
            warps=quantise_warps(head_dim),
            options={"enable_fp_fusion": False},
            types=_TYPES,
        )
    yield CataloguedKernel(
        f"kvcomp_encode{suffix}",
        encode_slices,
        {"D": head_dim, "ROWS": rows},
        elements=BLOCK_TOKENS,
        loop=True,
        warps=slice_warps(target),
        types={**_TYPES, "lengths_ptr": "*i16", "words_ptr": "*i32"},
    )
    yield CataloguedKernel(
        f"kvcomp_gather{suffix}",
        gather_blocks,
        {"D": head_dim, "ROWS": rows, "WORDS": GATHERED},
        elements=GATHERED * _VALUES_OF_WORD,
        types={**_TYPES, "lengths_ptr": "*u32"},
    )


def _decode_kernels(head_dim: int, target: Target) -> Iterator[CataloguedKernel]:
    shape: dict[str, Any] = {"HEADS": _HEADS, "D": head_dim}
    # loops inside the main loop are counted once, so that these are upper bounds: of a read by the
    # table sixteen codes of each slice, of one by the tree eight bits, say two codes
    for reader, tree, codes in (("table", False, CODES), ("tree", True, 2)):
        yield CataloguedKernel(
            f"kvcomp_decode_by_{reader}_hd{head_dim}",
            decode_blocks,
            {**shape, "UNITS": CHANNEL, "TREE": tree},
            elements=BLOCK_TOKENS * codes,
            loop=True,
            warps=slice_warps(target),
            options={"enable_fp_fusion": False, **target.registers(DECODE_REGISTERS)},
            types=_TYPES,
        )
        yield CataloguedKernel(
            f"kvcomp_attention_by_{reader}_hd{head_dim}",
            attend_blocks,
            {
                **shape,
                "D_PAD": head_dim,
                "K_UNITS": CHANNEL,
                "TREE": tree,
                "PRECISION": target.precision,
            },
            elements=2 * BLOCK_TOKENS * codes,
            loop=True,
            warps=slice_warps(target),
            options={"num_stages": 1, **target.registers(ATTEND_REGISTERS)},
            types=_TYPES,
        )

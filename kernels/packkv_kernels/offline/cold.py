"""The kernels that decode cold sections, at the shapes that their cost is stated for."""

from collections.abc import Iterator

from packkv_kernels.compress.triton.target import Target
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.tables import TABLE_BITS
from packkv_kernels.entropy.triton.cold import (
    LANE_WARPS,
    SECTION_WARPS,
    TABLE_WARPS,
    lane_sections,
)
from packkv_kernels.entropy.triton.cold_lanes import decode_lanes
from packkv_kernels.entropy.triton.cold_sections import write_sections
from packkv_kernels.entropy.triton.cold_tables import CODE_SYMBOLS, OTHER_SYMBOLS, spread_tables
from packkv_kernels.format.tile import v_unit
from packkv_kernels.offline.kernel import CataloguedKernel

__all__ = ["cold_kernels"]

_TYPES = {
    "cold_ptr": "*u32",
    "plan_ptr": "*i64",
    "lanes_ptr": "*i32",
    "widths_ptr": "*u8",
    "tables_ptr": "*u16",
    "out_ptr": "*u32",
    "symbols_ptr": "*u32",
    "plain_ptr": "*u32",
    "channels_ptr": "*u32",
    "faults_ptr": "*u8",
    "lengths_ptr": "*u32",
    "targets_ptr": "*i32",
    "places_ptr": "*u8",
}


def cold_kernels(target: Target) -> Iterator[CataloguedKernel]:
    """All of them. The element of tables is one of their entries."""
    for head_dim in (128, 64):
        yield from _section_kernels(head_dim, target)
    for name, symbols in (("code", CODE_SYMBOLS), ("other", OTHER_SYMBOLS)):
        yield CataloguedKernel(
            f"cold_{name}_tables",
            spread_tables,
            {"COUNT": symbols},
            elements=1 << TABLE_BITS,
            warps=TABLE_WARPS,
            types=_TYPES,
        )


def _section_kernels(head_dim: int, target: Target) -> Iterator[CataloguedKernel]:
    unit, most = v_unit(head_dim), lane_sections(target)
    # of a lane eight symbols, and NVIDIA's compiler puts two turns into one; a symbol is one code
    # at least, and two to four of channels with few levels
    symbols = 16 if target.asm else 8
    yield CataloguedKernel(
        f"cold_decode_lanes_hd{head_dim}",
        decode_lanes,
        {"D": head_dim, "UNIT_V": unit, "SECTIONS": most},
        elements=target.lanes * symbols,
        loop=True,
        inner=True,
        warps=LANE_WARPS,
        types=_TYPES,
    )
    # a turn is two of sixteen codes of all words of a side; AMD's compiler has no loop left, and
    # what is counted is K and V, each for narrow units and for wide ones
    yield CataloguedKernel(
        f"cold_write_sections_hd{head_dim}",
        write_sections,
        {"D": head_dim, "D_PAD": head_dim, "UNIT_V": unit},
        elements=BLOCK_TOKENS * head_dim * (2 if target.asm else 64) // 16,
        loop=target.asm,
        inner=target.asm,
        warps=SECTION_WARPS,
        types=_TYPES,
    )

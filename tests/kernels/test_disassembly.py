"""The counter of instructions, on machine code that is written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from packkv_kernels.offline.disassembly import read_cost

AMD_TEXT = """
kernel:
	s_load_dwordx2 s[0:1], s[2:3], 0x0
	v_mov_b32_e32 v0, 0
.LBB0_1:
	global_load_dword v1, v[2:3], off
	v_and_b32_e32 v1, 15, v1
	v_mfma_f32_16x16x16_f16 v[4:7], v[0:1], v[2:3], v[4:7]
	s_add_i32 s4, s4, 1
	s_cbranch_scc1 .LBB0_1
	v_mov_b32_e32 v8, 0
	s_endpgm
    .vgpr_count:     72
    .vgpr_spill_count: 3
"""

NESTED_TEXT = """
kernel:
.LBB0_1:
	v_mov_b32_e32 v0, 0
.LBB0_2:
	v_and_b32_e32 v1, 15, v1
	v_or_b32_e32 v1, 15, v1
	s_cbranch_scc1 .LBB0_2
.LBB0_3:
	v_and_b32_e32 v1, 15, v1
	s_cbranch_scc1 .LBB0_3
	s_cbranch_scc1 .LBB0_1
	s_endpgm
    .vgpr_count:     8
    .vgpr_spill_count: 0
"""


def kernel(text: str) -> SimpleNamespace:
    return SimpleNamespace(asm={"amdgcn": text}, metadata=SimpleNamespace(shared=512))


def test_the_main_loop_is_counted_without_scalar_instructions() -> None:
    cost = read_cost(kernel(AMD_TEXT), loop=True)
    assert (cost.alu, cost.issue) == (1, 3)
    assert (cost.registers, cost.spill_bytes, cost.shared_bytes) == (72, 12, 512)


def test_of_loops_inside_others_the_longest_can_be_counted() -> None:
    assert read_cost(kernel(NESTED_TEXT), loop=True).issue == 4
    assert read_cost(kernel(NESTED_TEXT), loop=True, inner=True).issue == 2
    assert read_cost(kernel(AMD_TEXT), loop=True, inner=True).issue == 3


def test_a_kernel_without_a_loop_is_counted_whole() -> None:
    assert read_cost(kernel(AMD_TEXT), loop=False).issue == 5
    with pytest.raises(ValueError, match="no loop"):
        read_cost(kernel(AMD_TEXT.replace("s_cbranch_scc1", "s_nop")), loop=True)

"""Every Triton kernel compiled for GPUs that are not here, held to a budget of its machine code."""

from __future__ import annotations

from functools import cache

import pytest

pytest.importorskip("triton")

from packkv_kernels.attention.triton.launch import DECODE_REGISTERS
from packkv_kernels.offline import TARGETS, KernelRow, catalogue, kernel_rows

SHARED_LIMIT = {"sm_80": 48 << 10, "sm_90": 48 << 10, "gfx942": 64 << 10}
REGISTER_LIMIT = {"sm_80": 255, "sm_90": 255, "gfx942": 512}

# Instructions per value of K or V in the decode loop: integer ones, and all.
DECODE_BUDGET = {
    "packed_decode_attention_hd128_v8": (2.0, 3.3),
    "packed_decode_attention_hd128_v4": (1.8, 3.0),
    "packed_decode_attention_hd128_v24816": (2.0, 3.4),
    "packed_decode_attention_hd128_v2": (1.8, 3.0),
    "packed_decode_attention_hd128_v8_all_wide": (2.4, 4.0),
    "packed_decode_attention_hd128_v8_window": (2.0, 3.4),
    "packed_decode_attention_hd64_v8": (2.4, 4.4),
    "packed_decode_attention_hd64_v4": (2.2, 4.1),
    "packed_decode_attention_hd64_v24816": (2.5, 4.7),
}
# Instructions per value of the others, in sum of one pass over their code.
ISSUE_BUDGET = {
    "unpack_keys_hd128": 34,
    "unpack_keys_hd64": 40,
    "unpack_values_hd128": 22,
    "unpack_values_hd64": 25,
    "quantise_rotated_values_hd128": 36,
    "quantise_rotated_values_hd64": 34,
    "encode_hybrid_sections_hd128": 52,
    "encode_hybrid_sections_hd64": 62,
    "kvcomp_quantise_by_channel_hd128": 37,
    "kvcomp_quantise_by_token_hd128": 37,
    "kvcomp_encode_hd128": 32,
    "kvcomp_gather_hd128": 25,
    "kvcomp_decode_by_table_hd128": 30,
    "kvcomp_attention_by_table_hd128": 53,
    # of a symbol, which is a code or more; the other, and an entry of a table that a payload has
    "cold_decode_lanes_hd128": 16,
    "cold_decode_lanes_hd64": 16,
    "cold_write_sections_hd128": 46,
    "cold_write_sections_hd64": 51,
    "cold_code_tables": 420,
    "cold_other_tables": 1450,
}
# Planes that went through shared memory would take tens of KiB, and twice the registers.
DECODE_SHARED = 12 << 10
DECODE_AMD = (13.0, 18.5)


@cache
def rows(target: str) -> tuple[KernelRow, ...]:
    return tuple(kernel_rows([target]))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_spills(target: str) -> None:
    backend = TARGETS[target][0]
    assert [row.kernel for row in rows(target)] == [kernel.name for kernel in catalogue(backend)]
    assert {row.kernel: row.spill_bytes for row in rows(target) if row.spill_bytes} == {}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_fits_its_device(target: str) -> None:
    for row in rows(target):
        assert row.shared_bytes <= SHARED_LIMIT[target], row
        assert 0 < row.registers <= REGISTER_LIMIT[target], row
        assert 0 < row.alu_per_element <= row.issue_per_element, row


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_decode_loop_keeps_to_its_budget(target: str) -> None:
    decode = {row.kernel: row for row in rows(target) if "packed_decode" in row.kernel}
    assert decode.keys() == DECODE_BUDGET.keys()
    for name, (alu, issue) in DECODE_BUDGET.items():
        row = decode[name]
        assert row.alu_per_element <= alu, row
        assert row.issue_per_element <= issue, row
        assert row.shared_bytes <= DECODE_SHARED, row
        assert row.registers <= DECODE_REGISTERS, row


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_other_kernels_keep_to_their_budgets(target: str) -> None:
    issued = {row.kernel: row.issue_per_element for row in rows(target)}
    assert {name: issued[name] for name, most in ISSUE_BUDGET.items() if issued[name] > most} == {}


@pytest.mark.timeout(1800)
def test_the_decode_loop_on_amd_does_not_grow() -> None:
    for row in rows("gfx942"):
        if "packed_decode" in row.kernel and "wide" not in row.kernel:
            assert row.alu_per_element <= DECODE_AMD[0], row
            assert row.issue_per_element <= DECODE_AMD[1], row

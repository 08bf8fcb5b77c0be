"""The kernels' inline assembly, run line by line: the interpreter takes other paths there."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("triton")

from packkv_kernels.attention.triton.fragments import AFTER_PIECES
from packkv_kernels.attention.triton.stepped import STEP_QUERY, WIDE_QUERY
from packkv_kernels.compress.scales import STEPS


def run_ptx(text: str, *operands: int, outputs: int = 1) -> tuple[int, ...]:
    """What a block of PTX leaves in its outputs, by the PTX manual's words on each operation.

    Args:
        text: lines "operation target, source, …;", with $0 … of the outputs, then the operands.
    """
    values = {f"${outputs + place}": value for place, value in enumerate(operands)}

    def read(name: str) -> int:
        return values[name] if name in values else int(name, 0)

    for operation, arguments in re.findall(r"^(\w[\w.]*) (.*);$", text, re.MULTILINE):
        target, *sources = arguments.split(", ")
        values[target] = OPERATIONS[operation](*map(read, sources))
    return tuple(values[f"${place}"] for place in range(outputs))


def permute(low: int, high: int, selector: int) -> int:
    result = 0
    for place in range(4):
        select = selector >> 4 * place & 15
        byte = (high << 32 | low) >> 8 * (select & 7) & 255
        if select & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * place
    return result


def look_up(a: int, b: int, c: int, table: int) -> int:
    bits = (
        (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) for i in range(32)
    )
    return sum(bit << i for i, bit in enumerate(bits))


def multiply_pairs(a: int, b: int) -> int:
    product = np.array([a, b], "<u4").view(np.float16).reshape(2, 2).prod(0, dtype=np.float16)
    return int(product.view("<u4")[0])


OPERATIONS: dict[str, Callable[..., int]] = {
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "mov.b32": lambda a: a,
    "prmt.b32": permute,
    "lop3.b32": look_up,
    "popc.b32": lambda a: a.bit_count(),
    "mad.wide.u32": lambda a, b, c: a * b + c,
    "mul.rn.f16x2": multiply_pairs,
}


def pair(low: float, high: float) -> int:
    return int(np.array([low, high], np.float16).view("<u4")[0])


@pytest.mark.parametrize("has_a", [True, False])
def test_the_query_is_multiplied_by_each_step(has_a: bool) -> None:
    query = np.array([1.0, -3.25, 1024.0, 0.1], np.float16)
    for first in range(-8, 8):
        steps = [first, -first - 1, 7 - (first & 7), -8]
        stored = sum((step & 15) << 4 * place for place, step in enumerate(steps))
        found = run_ptx(
            STEP_QUERY, stored, 0 if has_a else 0x08080808,
            pair(*query[:2]), pair(*query[2:]), outputs=2,
        )  # fmt: skip
        factors = STEPS[np.array(steps) + 8].astype(np.float16)
        wanted = query * factors * np.float16(1 if has_a else 0.25)
        assert np.array_equal(np.array(found, "<u4").view(np.float16), wanted)


def test_bits_4_to_7_are_worth_sixteen_times_the_others() -> None:
    assert run_ptx(WIDE_QUERY, pair(1.5, -1800)) == (pair(24, -28800),)


def test_a_piece_lies_after_those_that_are_counted() -> None:
    assert run_ptx(AFTER_PIECES, 1 << 40, 0x80010001, 64) == ((1 << 40) + 192,)

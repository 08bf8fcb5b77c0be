"""Experiments that settle what no compiler could tell without a device.

Each is a named row of its own; what it answers stands in its docstring. The questions are those
that the offline study of the format left open: rates, layouts and latencies that were assumed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from packkv.bench.kernels.gpu.packed import CODEC, Pages, decode_call
from packkv.bench.kernels.gpu.plan import Plan
from packkv.bench.kernels.gpu.probes import multiply_codes
from packkv.bench.kernels.gpu.row import Bench, Row
from packkv_kernels.attention.triton import launch
from packkv_kernels.compress.triton.target import INTERPRETED
from packkv_kernels.config import BLOCK_TOKENS, HybridConfig

__all__ = ["QUESTIONS", "Experiment"]

Experiment = Callable[[Bench, Plan], Iterator[Row]]

_CONTEXT = 32_768


def subnormal_exactness(bench: Bench, plan: Plan) -> Iterator[Row]:
    """Do tensor cores multiply subnormal fp16 exactly? 4-bit codes as x · 2⁻²⁴ and x · 2⁻²⁰."""
    codes = torch.arange(16, device=bench.device, dtype=torch.int32).repeat(64, 4)
    query = bench.randn(64, 16)
    out = torch.empty(2, 64, 16, device=bench.device)
    multiply_codes[(1,)](codes, query, out, 1, num_warps=4)
    right = codes.double() @ query.double()
    # sums of 64 products in float32
    bound = 1e-5 * float(right.abs().max())
    for place, exponent in enumerate((24, 20)):
        error = float((out[place].double() * 2.0**exponent - right).abs().max())
        yield Row(
            "subnormal_product",
            detail=f"2^-{exponent}: {'exact' if error <= bound else 'NOT EXACT'}",
            rel_error=error / float(right.abs().max()),
        )


def product_rate(bench: Bench, plan: Plan) -> Iterator[Row]:
    """How many products of [64, 64] × [64, 16] do tensor cores make, operands in registers?"""
    codes = torch.arange(16, device=bench.device, dtype=torch.int32).repeat(64, 4)
    query, rounds = bench.randn(64, 16), 1 if plan.rehearsed else 4096
    out = torch.empty(2, 64, 16, device=bench.device)
    programs = 1 if plan.rehearsed else 2048
    us = bench.clock.us(lambda: multiply_codes[(programs,)](codes, query, out, rounds, num_warps=4))
    operations = 2 * 2 * 64 * 64 * 16 * rounds * programs
    detail = "" if us is None else f"{operations / us / 1e6:.0f} TFLOP/s"
    yield Row("products_in_registers", detail=detail, us=us)


def formats(bench: Bench, plan: Plan) -> Iterator[Row]:
    """Is the whole kernel bound by memory or by issue? Fewer bits at nearly the same work."""
    for name, config in (
        ("K 4 bits, V 8 levels", CODEC),
        ("K 3 bits, V 4 levels", HybridConfig(delta=1.0, v_levels=4)),
        ("K 2 bits, V 2 levels", HybridConfig(delta=2.0, v_levels=2)),
    ):
        yield _decode(bench, plan, Pages(bench, plan, _context(plan), config), name)


def stages_and_registers(bench: Bench, plan: Plan) -> Iterator[Row]:
    """Does prefetching by num_stages, or a fourth program on a multiprocessor, pay?"""
    chosen, pages = launch.decode_options, Pages(bench, plan, _context(plan))
    for name, options in (
        ("as launched", {}),
        ("num_stages 2", {"num_stages": 2}),
        ("128 registers", {"maxnreg": 128}),
    ):
        if INTERPRETED or (torch.version.hip and "maxnreg" in options):
            options = {}
        with _launched_with(lambda *at, more=options: {**chosen(*at), **more}):
            yield _decode(bench, plan, pages, name)


def splits(bench: Bench, plan: Plan) -> Iterator[Row]:
    """How short may a split get before the fixed cost of a program shows?"""
    for context in (64,) if plan.rehearsed else (256, 1024, 4096, 16384):
        yield _decode(bench, plan, Pages(bench, plan, context), "")


def page_order(bench: Bench, plan: Plan) -> Iterator[Row]:
    """What do scattered pages cost: TLB, and the load of a row before that of its planes?"""
    pages = Pages(bench, plan, _context(plan))
    order = np.random.default_rng(0).permutation(pages.tokens // BLOCK_TOKENS)
    shuffled = order.astype(np.int32)[None]
    for name, table in (("in order", None), ("shuffled", torch.from_numpy(shuffled))):
        place = None if table is None else table.to(bench.device)
        yield _decode(bench, plan, pages, name, place)


def ranked_pieces(bench: Bench, plan: Plan) -> Iterator[Row]:
    """What do pieces of 64 bytes, found by rank, cost against dense planes of as many bytes?"""
    for name, spread in (("dense planes", 0.0), ("ranked pieces", 0.7)):
        yield _decode(bench, plan, Pages(bench, plan, _context(plan), spread=spread), name)


def launches(bench: Bench, plan: Plan) -> Iterator[Row]:
    """What do launches cost beside the work: a call as a program makes it, and in a graph?"""
    pages = Pages(bench, plan, BLOCK_TOKENS)
    query = bench.randn(1, plan.heads, 4, plan.head_dim)
    call = decode_call(pages.layer, query, 1, 1)
    for name, us in (("in a graph", bench.clock.us(call)), ("launched", bench.clock.wall_us(call))):
        yield Row(
            "packed_decode_attention", detail=name, context=BLOCK_TOKENS, batch=1, group=4, us=us
        )


def clocks_under_load(bench: Bench, plan: Plan) -> Iterator[Row]:
    """At what clock does the device run meanwhile? The model of the study assumed 1,755 MHz."""
    row = _decode(bench, plan, Pages(bench, plan, _context(plan)), "")
    yield replace(row, detail=_clock_text(bench))


QUESTIONS: dict[str, Experiment] = {
    experiment.__name__: experiment
    for experiment in (
        subnormal_exactness,
        formats,
        stages_and_registers,
        page_order,
        ranked_pieces,
        splits,
        launches,
        product_rate,
        clocks_under_load,
    )
}


def _context(plan: Plan) -> int:
    return BLOCK_TOKENS if plan.rehearsed else _CONTEXT


def _decode(
    bench: Bench, plan: Plan, pages: Pages, detail: str, table: torch.Tensor | None = None
) -> Row:
    """One sequence over all of the pages, four queries per KV head; experiments name themselves."""
    query = bench.randn(1, plan.heads, 4, plan.head_dim)
    call = decode_call(pages.layer, query, pages.tokens // BLOCK_TOKENS, 1, table)
    return bench.row(
        "packed_decode_attention", call, pages.moved, detail=detail,
        context=pages.tokens, batch=1, group=4, ratio=pages.ratio,
    )  # fmt: skip


@contextmanager
def _launched_with(options: Callable[..., dict[str, int]]) -> Iterator[None]:
    """The decode kernel with other launch options, for as long as it lasts."""
    before = launch.decode_options
    launch.decode_options = options
    try:
        yield
    finally:
        launch.decode_options = before


def _clock_text(bench: Bench) -> str:
    """The driver's own word on clocks and power; "" where there is no such driver."""
    if bench.device.type != "cuda" or torch.version.hip:
        return ""
    command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0]

"""The command behind benchmarks/gpu.py: check, then measure, within ten minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from packkv.bench.kernels.gpu.checks import check_kernels
from packkv.bench.kernels.gpu.clock import clock_for
from packkv.bench.kernels.gpu.cold import measure_cold
from packkv.bench.kernels.gpu.kvcomp import measure_kvcomp
from packkv.bench.kernels.gpu.model import measure_model
from packkv.bench.kernels.gpu.packed import measure_case
from packkv.bench.kernels.gpu.plan import Plan, parse
from packkv.bench.kernels.gpu.questions import QUESTIONS, Experiment
from packkv.bench.kernels.gpu.report import line, write
from packkv.bench.kernels.gpu.row import Bench, Row
from packkv_kernels.compress.triton.target import INTERPRETED

__all__ = ["main"]

_Work = Callable[[], Iterator[Row]]


def main(arguments: Sequence[str]) -> int:
    """Checks, then measures; the exit status is 2 where there is nothing to run on."""
    plan = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not ((plan.check_only or plan.rehearsed) and INTERPRETED):
        print("no GPU here: nothing to time (--dry-run and --check-only need TRITON_INTERPRET=1)")
        return 2
    started = time.monotonic()
    check_kernels(device, small=plan.rehearsed)
    print(f"every kernel agrees with the reference ({time.monotonic() - started:.0f} s)")
    if plan.check_only:
        return 0
    bench = Bench(device, clock_for(rehearsed=plan.rehearsed))
    rows: list[Row] = []
    skipped: list[str] = []
    for name, work in _measurements(bench, plan):
        if time.monotonic() - started > plan.seconds:
            skipped.append(name)
            continue
        for row in work():
            rows.append(row)
            print(line(row), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if skipped:
        print(f"out of time: {', '.join(skipped)}")
    write(plan, bench, rows, skipped)
    return 0


def _measurements(bench: Bench, plan: Plan) -> Iterator[tuple[str, _Work]]:
    """What is measured, most telling first: (name, work)."""
    cases = plan.cases()
    first, others = cases[: len(plan.contexts)], cases[len(plan.contexts) :]
    for context, batch in first:
        yield _case(bench, plan, context, batch)
    yield "kvcomp", lambda: measure_kvcomp(bench, plan)
    yield "cold", lambda: measure_cold(bench, plan)
    yield "model", lambda: measure_model(bench, plan)
    for name, experiment in QUESTIONS.items():
        yield name, _settling(bench, plan, name, experiment)
    for context, batch in others:
        yield _case(bench, plan, context, batch)


def _settling(bench: Bench, plan: Plan, name: str, experiment: Experiment) -> _Work:
    return lambda: (replace(row, experiment=name) for row in experiment(bench, plan))


def _case(bench: Bench, plan: Plan, context: int, batch: int) -> tuple[str, _Work]:
    name = f"context {context}, batch {batch}"
    return name, lambda: measure_case(bench, plan, context, batch)

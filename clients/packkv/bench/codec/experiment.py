"""The experiment: settings are chosen on some texts and reported on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from packkv.bench.codec.budgets import budgeted_profiles, even_profile, scaled_profiles
from packkv.bench.codec.curve import lower_hull, neighbours
from packkv.bench.codec.exact import ExactRun
from packkv.bench.codec.families import (
    Grid,
    baselines,
    even_hybrid,
    hybrid,
    transformers_caches,
    variants,
)
from packkv.bench.codec.plan import Plan
from packkv.bench.codec.published import PublishedPackKV
from packkv.bench.codec.quantized_cache import missing
from packkv.bench.codec.row import Row, point_of
from packkv.bench.codec.setting import Family

__all__ = ["COMPARED_KLS", "Findings", "Progress", "run"]

# What codecs are compared at.
COMPARED_KLS = (0.005, 0.018)

_BACKENDS = ("quanto", "hqq", "fp8")


@dataclass(frozen=True)
class Findings:
    """What was measured on the reported texts.

    Attributes:
        rows: operating points by codec, from few bits to many.
        long_rows: those around the KLs compared, with the long prefix.
        notes: what could not be measured, and why.
    """

    rows: list[Row]
    long_rows: list[Row]
    notes: list[str]


class Progress(Protocol):
    """Is told what happens."""

    def begin(self, what: str, steps: int) -> None:
        """A part of the experiment that takes some steps."""
        ...

    def step(self) -> None:
        """One of them is done."""
        ...


def run(
    model: PreTrainedModel,
    tuning: Sequence[torch.Tensor],
    reported: Sequence[torch.Tensor],
    plan: Plan,
    progress: Progress,
) -> Findings:
    """Operating points of all codecs on the reported texts.

    Args:
        model: a decoder with full attention, in float32.
        tuning: token ids [1, ≥ plan.tuning_tokens] that settings and profiles are chosen on.
        reported: token ids [1, ≥ plan.text_tokens]; those with plan.long_text_tokens get a long
            prefix too.
        plan: what to measure.
        progress: is told.
    """
    ours = _ours(model, tuning, plan, progress)
    theirs, notes = _transformers_caches(model, plan.grid, progress)
    others = variants(plan.grid) if plan.variants else []
    families = [*ours, *baselines(plan.grid), *theirs, *others]
    progress.begin("exact runs of the tuning texts", len(tuning))
    runs = [
        _exact_run(model, ids[:, : plan.tuning_tokens], plan.prefix_tokens, 0, progress)
        for ids in tuning
    ]
    rows = [row for family in families for row in _operating_points(family, runs, progress)]
    del runs
    for number, ids in enumerate(reported, 1):
        what = f"reported text {number} of {len(reported)}"
        _measure(model, ids[:, : plan.text_tokens], plan.prefix_tokens, rows, what, plan, progress)
    long_texts = [ids for ids in reported if plan.takes_long(ids)]
    long_rows = _around_compared(rows) if long_texts else []
    for number, ids in enumerate(long_texts, 1):
        what = f"{plan.long_prefix_tokens:,} tokens, text {number} of {len(long_texts)}"
        used = ids[:, : plan.long_text_tokens]
        _measure(model, used, plan.long_prefix_tokens, long_rows, what, plan, progress)
    return Findings(rows, long_rows, notes)


def _ours(
    model: PreTrainedModel, tuning: Sequence[torch.Tensor], plan: Plan, progress: Progress
) -> list[Family]:
    count = plan.grid.size**2
    if plan.profiles:
        return [hybrid(scaled_profiles(plan.profiles, count))]
    progress.begin("query weights", 1)
    profile = even_profile(model, [ids[:, : plan.prefix_tokens] for ids in tuning])
    progress.step()
    if plan.grid is Grid.QUICK:
        return [even_hybrid(profile, plan.grid, "hybrid")]

    def measured(done: int, total: int) -> None:
        if done == 1:
            progress.begin("budgets per head", total)
        progress.step()

    ours = [hybrid(budgeted_profiles(model, tuning, profile, count, measured))]
    if plan.grid is Grid.WIDE:
        ours.append(even_hybrid(profile, plan.grid, "hybrid-even"))
    return ours


def _transformers_caches(
    model: PreTrainedModel, grid: Grid, progress: Progress
) -> tuple[list[Family], list[str]]:
    """The families that can be measured here, and why others cannot."""
    progress.begin("quantisers that transformers finds", len(_BACKENDS))
    families, notes = [], []
    for backend in _BACKENDS:
        reason = missing(backend, model.config)
        if reason is None:
            families.append(transformers_caches(grid, model.config, backend))
        else:
            notes.append(reason)
        progress.step()
    return families, notes


def _exact_run(
    model: PreTrainedModel, ids: torch.Tensor, prefix: int, greedy: int, progress: Progress
) -> ExactRun:
    exact = ExactRun(model, ids, prefix, greedy)
    progress.step()
    return exact


def _operating_points(family: Family, runs: Sequence[ExactRun], progress: Progress) -> list[Row]:
    """The settings on the lower hull of the tuning texts' means; all, if that is but one."""
    settings = family.settings
    progress.begin(f"tuning {family.codec}", len(settings) * len(runs))
    runs[0].warm_up(settings[0])
    points = []
    for setting in settings:
        measured = []
        for exact in runs:
            measured.append(exact.measure(setting))
            progress.step()
        points.append(point_of(measured))
    hull = lower_hull(points)
    chosen = [settings[index] for index in hull] if len(hull) > 1 else settings
    return [Row(family.codec, setting) for setting in chosen]


def _measure(
    model: PreTrainedModel,
    ids: torch.Tensor,
    prefix: int,
    rows: Sequence[Row],
    what: str,
    plan: Plan,
    progress: Progress,
) -> None:
    """Adds a text [1, prefix + scored tokens + 1] to rows."""
    progress.begin(what, len(rows) + 1)
    exact = _exact_run(model, ids, prefix, plan.greedy_tokens, progress)
    for row in rows:
        row.texts.append(exact.measure(row.setting))
        if isinstance(row.setting, PublishedPackKV):
            row.published_bits.append(row.setting.published_bits(exact.keys, exact.values))
        progress.step()


def _around_compared(rows: Sequence[Row]) -> list[Row]:
    """Rows without texts: of every codec the settings around the KLs compared."""
    found = []
    for codec in dict.fromkeys(row.codec for row in rows):
        curve = [row for row in rows if row.codec == codec]
        chosen = neighbours([row.point for row in curve], COMPARED_KLS)
        found += [Row(codec, curve[index].setting) for index in chosen]
    return found

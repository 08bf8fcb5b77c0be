"""The experiment: settings are chosen on some texts and reported on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from packkv.bench.codec.budgets import budgeted_profiles, even_profile, scaled_profiles
from packkv.bench.codec.curve import Point, lower_hull
from packkv.bench.codec.exact import ExactRun, Measured
from packkv.bench.codec.families import Grid, baselines, even_hybrid, hybrid
from packkv.bench.codec.published import PublishedPackKV
from packkv.bench.codec.setting import Family, Setting
from packkv_kernels.profile import Profile

__all__ = ["Plan", "Progress", "Row", "run"]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        prefix_tokens: tokens whose K and V go through the codecs.
        scored_tokens: tokens after them, teacher-forced over the decoded cache.
        grid: how finely codecs are tuned.
        profiles: for `hybrid`; none: made from the tuning texts, with budgets per head unless
            the grid is quick.
    """

    prefix_tokens: int
    scored_tokens: int
    grid: Grid
    profiles: Sequence[Profile] = ()

    @property
    def text_tokens(self) -> int:
        """Tokens of a text that are used: the last is only a successor."""
        return self.prefix_tokens + self.scored_tokens + 1

    @property
    def tuning_tokens(self) -> int:
        """The same for a tuning text: half the scored tokens choose as well, in half the time."""
        return self.prefix_tokens + self.scored_tokens // 2 + 1


@dataclass(frozen=True)
class Row:
    """One operating point on the reported texts.

    Attributes:
        codec: its name.
        setting: the codec with its parameters.
        texts: the measurements, one per text.
        published_bits: of PackKV, what the paper would count for each text.
    """

    codec: str
    setting: Setting
    texts: list[Measured] = field(default_factory=list)
    published_bits: list[float] = field(default_factory=list)

    @property
    def points(self) -> list[Point]:
        """Its place on the curve of each text."""
        return [point_of([measured]) for measured in self.texts]

    @property
    def point(self) -> Point:
        """Its place on the curve of means over texts."""
        return point_of(self.texts)


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
) -> list[Row]:
    """Operating points of all codecs on the reported texts, by codec, from few bits to many.

    Args:
        model: a decoder with full attention, in float32.
        tuning: token ids [1, ≥ plan.tuning_tokens] that settings and profiles are chosen on.
        reported: token ids [1, ≥ plan.text_tokens].
        plan: what to measure.
        progress: is told.
    """
    families = _families(model, tuning, plan, progress)
    progress.begin("exact runs of the tuning texts", len(tuning))
    runs = [_exact_run(model, ids[:, : plan.tuning_tokens], plan, progress) for ids in tuning]
    chosen = [(family.codec, _operating_points(family, runs, progress)) for family in families]
    del runs
    rows = [Row(codec, setting) for codec, settings in chosen for setting in settings]
    for number, ids in enumerate(reported, 1):
        progress.begin(f"reported text {number} of {len(reported)}", len(rows) + 1)
        exact = _exact_run(model, ids[:, : plan.text_tokens], plan, progress)
        for row in rows:
            row.texts.append(exact.measure(row.setting))
            if isinstance(row.setting, PublishedPackKV):
                row.published_bits.append(row.setting.published_bits(exact.keys, exact.values))
            progress.step()
    return rows


def _families(
    model: PreTrainedModel, tuning: Sequence[torch.Tensor], plan: Plan, progress: Progress
) -> list[Family]:
    count = plan.grid.size**2
    if plan.profiles:
        return [hybrid(scaled_profiles(plan.profiles, count)), *baselines(plan.grid)]
    progress.begin("query weights", 1)
    profile = even_profile(model, [ids[:, : plan.prefix_tokens] for ids in tuning])
    progress.step()
    if plan.grid is Grid.QUICK:
        return [even_hybrid(profile, plan.grid, "hybrid"), *baselines(plan.grid)]

    def measured(done: int, total: int) -> None:
        if done == 1:
            progress.begin("budgets per head", total)
        progress.step()

    ours = hybrid(budgeted_profiles(model, tuning, profile, count, measured))
    families = [ours, *baselines(plan.grid)]
    if plan.grid is Grid.WIDE:
        families.append(even_hybrid(profile, plan.grid, "hybrid-even"))
    return families


def _exact_run(
    model: PreTrainedModel, ids: torch.Tensor, plan: Plan, progress: Progress
) -> ExactRun:
    exact = ExactRun(model, ids, plan.prefix_tokens)
    progress.step()
    return exact


def _operating_points(
    family: Family, runs: Sequence[ExactRun], progress: Progress
) -> list[Setting]:
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
    return [settings[index] for index in hull] if len(hull) > 1 else list(settings)


def point_of(texts: Sequence[Measured]) -> Point:
    """Means over texts; an exact cache counts as a KL too small to matter, not as 0."""
    kl = float(np.mean([measured.score.kl.mean() for measured in texts]))
    return Point(float(np.mean([measured.bits for measured in texts])), max(kl, 1e-12))

"""The command `packkv bench codec`. Importing it loads neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from packkv.bench.progress import bars
from packkv.demo.options import ModelOption
from packkv.errors import ConfigError, PackKVError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from packkv.bench.codec.experiment import Findings
    from packkv.bench.codec.plan import Plan
    from packkv.bench.codec.texts import Text


@dataclass(frozen=True)
class _Report:
    """What was measured, and what on: everything, and what has the long prefix."""

    findings: Findings
    about: dict[str, object]
    about_long: dict[str, object]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("codec")(codec)


def codec(
    text: Annotated[
        list[Path] | None,
        typer.Option(help="UTF-8 text to report on; repeatable  [default: library sources]"),
    ] = None,
    tuning_text: Annotated[
        list[Path] | None,
        typer.Option(help="text to choose settings on  [default: Python's reference, tarfile.py]"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures to this file")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="append a line per row to this file")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the curves to this SVG file")] = None,
    model: ModelOption = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(help="profile for hybrid; repeatable  [default: from the tuning texts]"),
    ] = None,
    prefix_tokens: Annotated[
        int, typer.Option(min=128, help="tokens whose K and V go through the codecs")
    ] = 1024,
    long_prefix_tokens: Annotated[
        int,
        typer.Option(min=0, help="a second prefix, for settings around the KLs compared; 0: none"),
    ] = 4096,
    scored_tokens: Annotated[
        int, typer.Option(min=16, help="tokens that are predicted over the decoded cache")
    ] = 256,
    greedy_tokens: Annotated[
        int, typer.Option(min=0, help="length of the greedy continuations compared; 0: none")
    ] = 128,
    grid: Annotated[
        str, typer.Option(help="settings per codec: quick (4), default (16) or wide (36)")
    ] = "default",
    quick: Annotated[bool, typer.Option("--quick", help="the same as --grid quick")] = False,
    variants: Annotated[
        bool,
        typer.Option(help="also PackKV's other packs and repackings, and KVComp's K by block"),
    ] = False,
) -> None:
    """Every codec on the same texts: bits per value, damage to predictions, and speed.

    Settings are chosen on the tuning texts and reported on the others.
    """
    console = Console()
    try:
        plan = _plan(
            profile or [],
            prefix_tokens=prefix_tokens,
            scored_tokens=scored_tokens,
            grid="quick" if quick else grid,
            long_prefix_tokens=long_prefix_tokens,
            greedy_tokens=greedy_tokens,
            variants=variants,
        )
        report = _measure(
            reported=text or [],
            tuning=tuning_text or [],
            model=model,
            plan=plan,
            console=console,
        )
    except PackKVError as error:
        typer.secho(f"packkv bench codec: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    _write(report, console, json_file, csv_file, plot)


def _plan(profiles: list[Path], *, grid: str, **sizes: Any) -> Plan:
    from packkv.bench.codec.families import Grid
    from packkv.bench.codec.plan import Plan
    from packkv_kernels.errors import ProfileError
    from packkv_kernels.profile import Profile

    try:
        read = [Profile.from_bytes(path.read_bytes()) for path in profiles]
        return Plan(grid=Grid(grid), profiles=read, **sizes)
    except (OSError, ProfileError, ValueError) as reason:
        raise ConfigError(str(reason)) from reason


def _measure(
    reported: list[Path], tuning: list[Path], model: Path | None, plan: Plan, console: Console
) -> _Report:
    from transformers.utils import logging

    from packkv.bench.codec.experiment import run
    from packkv.bench.codec.texts import REPORTED_MODULES, TUNING_MODULES, token_ids
    from packkv.bench.origin import origin
    from packkv.demo.answering import load
    from packkv.demo.model import load_tokenizer, model_folder

    chosen_on, shown = _texts(tuning, TUNING_MODULES), _texts(reported, REPORTED_MODULES)
    logging.disable_progress_bar()
    folder = model_folder(model)
    tokenizer = load_tokenizer(folder)
    loaded = load(folder)
    plan, notes = _within_positions(plan, loaded)
    tuning_ids = [token_ids(tokenizer, text, plan.text_tokens) for text in chosen_on]
    shown_ids = [
        token_ids(tokenizer, text, plan.text_tokens, plan.long_text_tokens) for text in shown
    ]
    with bars(console) as progress:
        findings = run(loaded, tuning_ids, shown_ids, plan, progress)
    about = {
        **origin(),
        "model": folder.name,
        "prefix_tokens": plan.prefix_tokens,
        "scored_tokens": plan.scored_tokens,
        "greedy_tokens": plan.greedy_tokens,
        "grid": plan.grid.value,
        "texts": [text.name for text in shown],
        "tuning_texts": [text.name for text in chosen_on],
    }
    long = [text.name for text, ids in zip(shown, shown_ids, strict=True) if plan.takes_long(ids)]
    about_long = {**about, "prefix_tokens": plan.long_prefix_tokens, "texts": long}
    noted = [*findings.notes, *notes, *_left_out(shown, long, plan)]
    return _Report(replace(findings, notes=noted), about, about_long)


def _texts(paths: list[Path], modules: Sequence[str]) -> list[Text]:
    from packkv.bench.codec.texts import read_module, read_text

    return [read_text(path) for path in paths] or [read_module(name) for name in modules]


def _within_positions(plan: Plan, model: PreTrainedModel) -> tuple[Plan, list[str]]:
    """The plan without a long prefix if the model has no positions for it, and a note on that."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not plan.long_prefix_tokens or positions is None or plan.long_positions <= positions:
        return plan, []
    note = (
        f"no prefixes of {plan.long_prefix_tokens:,} tokens: with what follows them they take "
        f"{plan.long_positions:,} positions, and the model has {positions:,}"
    )
    return replace(plan, long_prefix_tokens=0), [note]


def _left_out(shown: list[Text], long: list[str], plan: Plan) -> list[str]:
    short = [text.name for text in shown if text.name not in long]
    if not short or not plan.long_prefix_tokens:
        return []
    return [
        f"no prefixes of {plan.long_prefix_tokens:,} tokens from {', '.join(short)}: "
        f"shorter than {plan.long_text_tokens:,} tokens"
    ]


def _write(
    report: _Report,
    console: Console,
    json_file: Path | None,
    csv_file: Path | None,
    plot: Path | None,
) -> None:
    from packkv.bench.codec.plot import svg
    from packkv.bench.codec.report import append_csv, as_json, show
    from packkv.bench.results import write_json

    findings, about = report.findings, report.about
    figures = as_json(findings, about, report.about_long)
    show(figures, console)
    if json_file is not None:
        write_json(json_file, figures)
    if csv_file is not None:
        append_csv(csv_file, findings.rows, _flat(about))
        append_csv(csv_file, findings.long_rows, _flat(report.about_long))
    if plot is not None:
        curves: dict[str, list[Any]] = {}
        for row in findings.rows:
            curves.setdefault(row.codec, []).append(row.point)
        # one point is no curve, and would only stretch the axes
        drawn = {codec: points for codec, points in curves.items() if len(points) > 1}
        plot.write_text(svg(drawn, f"{about['model']}, {about['prefix_tokens']} tokens"), "utf-8")


def _flat(about: dict[str, object]) -> dict[str, object]:
    return {
        key: " ".join(value) if isinstance(value, list) else value for key, value in about.items()
    }

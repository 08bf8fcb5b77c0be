"""The command `packkv bench codec`. Importing it loads neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from packkv.errors import ConfigError, PackKVError

if TYPE_CHECKING:
    from packkv.bench.codec.experiment import Plan, Row


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
    model: Annotated[
        Path | None,
        typer.Option(help="transformers folder or GGUF file  [default: SmolLM2-135M-Instruct]"),
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(help="profile for hybrid; repeatable  [default: from the tuning texts]"),
    ] = None,
    prefix_tokens: Annotated[
        int, typer.Option(min=128, help="tokens whose K and V go through the codecs")
    ] = 1024,
    scored_tokens: Annotated[
        int, typer.Option(min=16, help="tokens that are predicted over the decoded cache")
    ] = 256,
    grid: Annotated[
        str, typer.Option(help="settings per codec: quick (4), default (16) or wide (36)")
    ] = "default",
    quick: Annotated[bool, typer.Option("--quick", help="the same as --grid quick")] = False,
) -> None:
    """Every codec on the same texts: bits per value, damage to predictions, and speed.

    Settings are chosen on the tuning texts and reported on the others.
    """
    console = Console()
    try:
        rows, about = _measure(
            reported=text or [],
            tuning=tuning_text or [],
            model=model,
            plan=_plan(prefix_tokens, scored_tokens, "quick" if quick else grid, profile or []),
            console=console,
        )
    except PackKVError as error:
        typer.secho(f"packkv bench codec: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    _write(rows, about, console, json_file, csv_file, plot)


def _plan(prefix_tokens: int, scored_tokens: int, grid: str, profiles: list[Path]) -> Plan:
    from packkv.bench.codec.experiment import Plan
    from packkv.bench.codec.families import Grid
    from packkv_kernels.errors import ProfileError
    from packkv_kernels.profile import Profile

    try:
        read = [Profile.from_bytes(path.read_bytes()) for path in profiles]
        return Plan(prefix_tokens, scored_tokens, Grid(grid), read)
    except (OSError, ProfileError, ValueError) as reason:
        raise ConfigError(str(reason)) from reason


def _measure(
    reported: list[Path], tuning: list[Path], model: Path | None, plan: Plan, console: Console
) -> tuple[list[Row], dict[str, object]]:
    from transformers.utils import logging

    from packkv.bench.codec import texts
    from packkv.bench.codec.experiment import run
    from packkv.bench.origin import origin
    from packkv.demo.answering import load
    from packkv.demo.model import load_tokenizer, model_folder

    chosen_on = [texts.read_text(path) for path in tuning] or [
        texts.read_module(name) for name in texts.TUNING_MODULES
    ]
    shown = [texts.read_text(path) for path in reported] or [
        texts.read_module(name) for name in texts.REPORTED_MODULES
    ]
    logging.disable_progress_bar()
    folder = model_folder(model)
    tokenizer = load_tokenizer(folder)
    tuning_ids = [texts.token_ids(tokenizer, text, plan.text_tokens) for text in chosen_on]
    shown_ids = [texts.token_ids(tokenizer, text, plan.text_tokens) for text in shown]
    loaded = load(folder)
    with _progress(console) as progress:
        rows = run(loaded, tuning_ids, shown_ids, plan, progress)
    about = {
        **origin(),
        "model": folder.name,
        "prefix_tokens": plan.prefix_tokens,
        "scored_tokens": plan.scored_tokens,
        "grid": plan.grid.value,
        "texts": [text.name for text in shown],
        "tuning_texts": [text.name for text in chosen_on],
    }
    return rows, about


def _write(
    rows: list[Row],
    about: dict[str, object],
    console: Console,
    json_file: Path | None,
    csv_file: Path | None,
    plot: Path | None,
) -> None:
    from packkv.bench.codec.plot import svg
    from packkv.bench.codec.report import append_csv, as_json, show

    figures = as_json(rows, about)
    show(figures, console)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if csv_file is not None:
        flat: dict[str, Any] = {
            key: " ".join(value) if isinstance(value, list) else value
            for key, value in about.items()
        }
        append_csv(csv_file, rows, flat)
    if plot is not None:
        curves: dict[str, list[Any]] = {}
        for row in rows:
            curves.setdefault(row.codec, []).append(row.point)
        # one point is no curve, and would only stretch the axes
        drawn = {codec: points for codec, points in curves.items() if len(points) > 1}
        plot.write_text(svg(drawn, f"{about['model']}, {about['prefix_tokens']} tokens"), "utf-8")


class _BarProgress:
    """Shows the parts of the experiment as bars, one after the other."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None, visible=False)

    def begin(self, what: str, steps: int) -> None:
        self._task = self._bar.add_task(what, total=steps)

    def step(self) -> None:
        self._bar.advance(self._task)


@contextmanager
def _progress(console: Console) -> Iterator[_BarProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeElapsedColumn(), console=console) as bar:
        yield _BarProgress(bar)

"""The command `packkv bench route`. Importing it loads neither torch nor transformers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from packkv.bench.progress import bars
from packkv.demo.ending import ended_by_sigterm
from packkv.demo.options import CodecOption, ModelOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("route")(route)


def route(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures to this file")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="append a line per policy to this file")
    ] = None,
    workers: Annotated[int, typer.Option(help="each with a store of its own")] = 2,
    conversations: Annotated[int, typer.Option(help="each about a document of its own")] = 6,
    turns: Annotated[int, typer.Option(help="questions of a conversation")] = 4,
    document_tokens: Annotated[int, typer.Option(help="before the first question, about")] = 512,
    answer_tokens: Annotated[int, typer.Option(help="of each answer")] = 24,
    at_once: Annotated[int, typer.Option(help="questions under way at one time")] = 2,
    seed: Annotated[int, typer.Option(help="of who asks next")] = 0,
    model: ModelOption = None,
    codec: CodecOption = "hybrid",
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text of the documents  [default: Python's reference]")
    ] = None,
    note: Annotated[str, typer.Option(help="what to remember of this run, for JSON and CSV")] = "",
) -> None:
    """Routing by prefix against taking turns: how much of the prompts need not be computed.

    Starts the workers, a store for each, and `packkv route` before them; then runs the same
    conversations by either policy. Whoever waits for no answer may ask next, by chance.

    \b
        packkv bench route --json route.json
        packkv bench route --workers 4 --conversations 20 --turns 6 --at-once 8
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    from packkv.bench.codec.texts import TUNING_MODULES, read_module, read_text
    from packkv.bench.origin import origin
    from packkv.bench.results import append_rows, write_json
    from packkv.bench.route.experiment import run
    from packkv.bench.route.plan import Plan
    from packkv.bench.route.report import as_json, csv_rows, show

    plan = Plan(workers, conversations, turns, document_tokens, answer_tokens, at_once, seed)
    content = read_module(TUNING_MODULES[0]) if text is None else read_text(text)
    console = Console()
    with (
        ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="packkv-bench-") as logs,
        bars(console) as progress,
    ):
        rows = run(plan, content.content, model, codec, Path(logs), progress)
    named = {"model": "SmolLM2-135M-Instruct" if model is None else model.name}
    about = {**origin(), **named, "codec": codec, "texts": content.name, "note": note}
    figures = as_json(rows, plan, about)
    show(figures, console)
    if json_file is not None:
        write_json(json_file, figures)
    if csv_file is not None:
        append_rows(csv_file, csv_rows(figures))

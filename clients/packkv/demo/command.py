"""The command `packkv demo`. Importing it loads neither torch nor transformers."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from packkv.demo.document import python_reference, text_file
from packkv.demo.ending import ended_by_sigterm
from packkv.demo.options import CodecOption, ModelOption
from packkv.demo.outcome import Outcome
from packkv.demo.report import Progress, show
from packkv.demo.scenario import MAX_NODES, Scenario
from packkv.errors import PackKVError
from packkv_kernels.config import CodecConfig
from packkv_kernels.errors import CodecError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 document to ask about  [default: Python's reference]")
    ] = None,
    prefix_tokens: Annotated[
        int, typer.Option(min=512, max=8000, help="tokens that both workers' prompts share")
    ] = 2048,
    new_tokens: Annotated[int, typer.Option(min=2, max=512, help="longest answer")] = 64,
    model: ModelOption = None,
    codec: CodecOption = "hybrid",
    store: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running store  [default: start one]")
    ] = None,
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_NODES,
            help="store nodes; A publishes to the first, B fetches through the last",
        ),
    ] = 1,
    index: Annotated[
        str,
        typer.Option(help="embedded, or redis: where nodes find each other; starts a redis-server"),
    ] = "embedded",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the figures to this file")
    ] = None,
) -> None:
    """Two worker processes share a document's KV cache through a store process; what it gained."""
    console = Console()
    _silence_libraries()
    try:
        # checked here: a slip of the pen should not wait for the model
        spelled = str(CodecConfig.parse(codec))
        document = python_reference() if text is None else text_file(text)
        scenario = Scenario(
            document, model, spelled, prefix_tokens, new_tokens, store, nodes, index
        )
        outcome = _run(scenario, console)
    except (PackKVError, CodecError) as error:
        _write(json_file, {"error": str(error)})
        _fail(str(error))
    show(outcome, console)
    fault = outcome.fault()
    _write(json_file, outcome.as_json() | ({} if fault is None else {"error": fault}))
    if fault is not None:
        _fail(fault)


def _run(scenario: Scenario, console: Console) -> Outcome:
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="packkv-demo-") as folder:
        return scenario.run(Path(folder), Progress(console).step)


def _silence_libraries() -> None:
    """Our steps are the progress; must come before transformers and tqdm are imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"


def _write(file: Path | None, figures: dict[str, object]) -> None:
    if file is not None:
        file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _fail(sentence: str) -> NoReturn:
    typer.secho(f"packkv demo: {sentence}", fg="red", err=True)
    raise typer.Exit(1)

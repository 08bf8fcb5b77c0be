"""The command `packkv bench ttft`. Importing it loads neither torch nor transformers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from packkv.bench.progress import bars
from packkv.demo.ending import ended_by_sigterm
from packkv.demo.options import CodecOption, ModelOption
from packkv.errors import ConfigError

if TYPE_CHECKING:
    from packkv.bench.ttft.experiment import Found
    from packkv.bench.ttft.plan import Plan

_UNLIMITED = "unlimited"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ttft")(ttft)


def ttft(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures to this file")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="append a line per row to this file")
    ] = None,
    prefix_tokens: Annotated[
        str, typer.Option(help="lengths of prefixes, whole blocks of 64 tokens")
    ] = "512,1024,2048",
    gbps: Annotated[
        str, typer.Option(help="bandwidths in Gb/s; unlimited: straight to the store")
    ] = "1,10,25,unlimited",
    prefill_rate: Annotated[
        str, typer.Option(help="tokens a second of workers to imagine as well; '' for none")
    ] = "40000",
    loads: Annotated[int, typer.Option(min=1, max=1000, help="timed loads of each, at most")] = 9,
    question_tokens: Annotated[
        int, typer.Option(help="tokens behind the longest prefix, computed for its first token")
    ] = 32,
    model: ModelOption = None,
    codec: CodecOption = "hybrid",
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text of the prefix  [default: Python's reference]")
    ] = None,
    note: Annotated[str, typer.Option(help="what to remember of this run, for JSON and CSV")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="128 tokens over 1 Gb/s and straight, one load")
    ] = False,
) -> None:
    """When a prefix is better loaded than computed: prefix length by bandwidth.

    \b
    compute    a prefill on this machine, as a worker does that finds nothing; once per length
    load       find, fetch, verify and adopt the same blocks from a store process, through a link
               of that bandwidth: a process in between that lets bytes pass no faster
    chosen     what the SDK's prefix cache does by itself once it has seen both: load, recompute,
               or part, which loads the front and computes the rest
    first      from a prompt to its first token: the longest prefix and a question behind it, when
    token      the model begins after the prefix has come, and when each layer waits for its own
               part (layer by layer); in turn

    This machine's CPU computes slowly, so loading wins over any link of a data centre. The rows
    with * tell the prefix cache of a worker that computes at --prefill-rate, and show where a
    faster one turns. Every row names the rate at which its link turns.

    \b
        packkv bench ttft --json ttft.json
        packkv bench ttft --gbps 0.01,0.1,1 --prefill-rate ''      # where this CPU turns
        packkv bench ttft --prefix-tokens 4096 --prefill-rate 20000,50000,200000
    """
    if quick:
        plan = _plan("128", f"1,{_UNLIMITED}", prefill_rate, 1, question_tokens)
    else:
        plan = _plan(prefix_tokens, gbps, prefill_rate, loads, question_tokens)
    console = Console()
    found, about = _measure(plan, codec, model, text, console)
    _write(found, {**about, "note": note}, console, json_file, csv_file)


def _plan(
    prefix_tokens: str, gbps: str, prefill_rate: str, loads: int, question_tokens: int
) -> Plan:
    from packkv.bench.ttft.plan import Plan

    return Plan(
        prefix_tokens=tuple(int(value) for value in _numbers("--prefix-tokens", prefix_tokens)),
        gbps=tuple(
            None if word == _UNLIMITED else _number("--gbps", word) for word in _words(gbps)
        ),
        prefill_rates=tuple(_numbers("--prefill-rate", prefill_rate)),
        loads=loads,
        question_tokens=question_tokens,
    )


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _numbers(option: str, text: str) -> list[float]:
    return [_number(option, word) for word in _words(text)]


def _number(option: str, word: str) -> float:
    try:
        return float(word)
    except ValueError as reason:
        raise ConfigError(f"{option}: {word!r} is no number") from reason


def _measure(
    plan: Plan, codec: str, model: Path | None, text: Path | None, console: Console
) -> tuple[Found, dict[str, object]]:
    # before transformers and torch are imported: our steps are the progress, nothing is fetched
    # from a hub, and threads that wait must not take the processor from store and link
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from packkv.bench.codec.texts import TUNING_MODULES, read_module, read_text, token_ids
    from packkv.bench.origin import origin
    from packkv.bench.ttft.experiment import run
    from packkv.demo.answering import load
    from packkv.demo.model import load_tokenizer, model_folder
    from packkv_kernels.config import CodecConfig
    from packkv_kernels.errors import CodecError

    try:
        spelled = str(CodecConfig.parse(codec))
    except CodecError as reason:
        raise ConfigError(str(reason)) from reason
    content = read_module(TUNING_MODULES[0]) if text is None else read_text(text)
    folder = model_folder(model)
    ids = token_ids(load_tokenizer(folder), content, plan.tokens)
    with (
        ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="packkv-bench-") as logs,
        bars(console) as progress,
    ):
        found = run(load(folder), ids, plan, spelled, Path(logs), progress)
    about = {**origin(), "model": folder.name, "codec": spelled, "texts": content.name}
    return found, about


def _write(
    found: Found,
    about: dict[str, object],
    console: Console,
    json_file: Path | None,
    csv_file: Path | None,
) -> None:
    from packkv.bench.results import append_rows, write_json
    from packkv.bench.ttft.report import as_json, csv_rows, show

    figures = as_json(found, about)
    show(figures, console)
    if json_file is not None:
        write_json(json_file, figures)
    if csv_file is not None:
        append_rows(csv_file, csv_rows(figures, about))

"""The command `packkv calibrate`: a profile for a model, with budgets per layer and head."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from packkv.cli.output import print_json
from packkv.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from packkv.integrations.hf.calibration import CalibrationConfig


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("calibrate")(calibrate)


def calibrate(
    model: Annotated[
        Path | None,
        typer.Argument(help="transformers folder or GGUF file  [default: the demo's model]"),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="UTF-8 text, repeatable  [default: Python's reference and a module]"),
    ] = None,
    kl: Annotated[
        float, typer.Option(min=1e-6, help="mean KL per token that the budgets aim at")
    ] = 0.008,
    prefix_tokens: Annotated[
        int, typer.Option(min=64, help="packed tokens of each text, a multiple of 64")
    ] = 768,
    scored_tokens: Annotated[
        int, typer.Option(min=1, help="tokens after them that are scored")
    ] = 128,
    out: Annotated[
        Path | None, typer.Option(help="where to write it  [default: into the model's folder]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Measure what each head deserves, once per model: a few minutes for a small one on a CPU.

    Any text of a few pages does, of another kind than what is served later. Workers find the
    profile in the model's folder, and share it through the store.

    \b
        packkv calibrate /models/llama --text manual.txt --text code.py --kl 0.005
    """
    from transformers.utils import logging

    from packkv.demo.model import load_tokenizer, model_folder
    from packkv.identity import PROFILE_FILE
    from packkv.integrations.hf.calibration import CalibrationConfig
    from packkv_kernels.errors import InvalidInput

    logging.disable_progress_bar()
    folder = model_folder(model)
    target = out or folder / PROFILE_FILE
    try:
        config = CalibrationConfig(
            target_kl=kl, prefix_tokens=prefix_tokens, scored_tokens=scored_tokens
        )
    except InvalidInput as error:
        raise ConfigError(str(error)) from error
    began = time.monotonic()
    texts = _token_ids(_texts(text or []), load_tokenizer(folder), config.text_tokens)
    data = _run(folder, texts, config)
    target.write_bytes(data)
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        print_json({"profile": str(target), "bytes": len(data), "kl": kl, "seconds": seconds})
    else:
        typer.echo(f"wrote {target} ({len(data):,} bytes) after {seconds:.0f} s")


def _run(folder: Path, texts: list[torch.Tensor], config: CalibrationConfig) -> bytes:
    from rich.progress import Progress

    from packkv.demo.answering import load
    from packkv.integrations.hf.calibration import calibrate as calibrate_model

    with Progress(transient=True) as bar:
        task = bar.add_task("layers measured", total=None)
        profile = calibrate_model(
            load(folder),
            texts,
            config,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return profile.to_bytes()


def _texts(files: list[Path]) -> list[str]:
    if files:
        from packkv.demo.document import text_file

        return [text_file(file).text for file in files]
    import tarfile

    from packkv.demo.document import python_reference

    # two kinds of text: prose from the end of the reference, and code
    return [python_reference().text[-40_000:], Path(tarfile.__file__).read_text("utf-8")[3000:]]


def _token_ids(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[torch.Tensor]:
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    for text, found in zip(texts, ids, strict=True):
        if found.shape[1] < count:
            raise ConfigError(
                f"the text {text[:40]!r}… has {found.shape[1]} tokens; calibration needs {count}"
            )
    return ids

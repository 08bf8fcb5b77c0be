"""Options that every command over a real model has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["CodecOption", "ModelOption"]

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model", help="transformers folder or GGUF file  [default: SmolLM2-135M-Instruct]"
    ),
]
CodecOption = Annotated[
    str, typer.Option("--codec", help="hybrid, packkv or raw, with or without parameters")
]

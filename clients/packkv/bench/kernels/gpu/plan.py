"""Plan: what a run of benchmarks/gpu.py measures, from its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packkv_kernels.config import BLOCK_TOKENS

__all__ = ["Plan", "parse"]

# K and V of a case in fp16 stay below 4 GiB.
_MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class Plan:
    """Sizes and limits of a run.

    Attributes:
        contexts, batches, groups: of decode attention: tokens, sequences, queries per KV head.
        heads, head_dim: of K and V.
        suffix: tokens of suffix prefill.
        kvcomp_tokens: of the KVComp cases.
        cold_layers, cold_tokens: of the cold payloads that are decoded.
        model_layers, model_tokens, model_steps: of the model that decodes end to end.
        seconds: nothing is started after this long.
        rehearsed: every check and every row's code runs once at these sizes, and nothing is timed.
        check_only: stop after the checks.
        json, csv, plot: files to write, None for none.
    """

    contexts: tuple[int, ...] = (4096, 32768, 131072)
    batches: tuple[int, ...] = (1, 8, 32)
    groups: tuple[int, ...] = (1, 4, 8)
    heads: int = 8
    head_dim: int = 128
    suffix: int = 256
    kvcomp_tokens: int = 32768
    cold_layers: int = 8
    cold_tokens: int = 4096
    model_layers: int = 8
    model_tokens: int = 8192
    model_steps: int = 32
    seconds: float = 480
    rehearsed: bool = False
    check_only: bool = False
    json: Path | None = None
    csv: Path | None = None
    plot: Path | None = None

    def cases(self) -> list[tuple[int, int]]:
        """(context, batch), small batches first, without those whose K and V are too large."""
        return [
            (context, batch)
            for batch in self.batches
            for context in self.contexts
            if batch * context <= _MOST_TOKENS
        ]


def parse(arguments: Sequence[str]) -> Plan:
    """The plan of a command line; argparse ends the process where it says nonsense."""
    parser = argparse.ArgumentParser(
        description="Check every Triton kernel against the reference, then time them."
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--csv", type=Path, help="append a line per figure to this file")
    parser.add_argument("--plot", type=Path, help="draw decode attention to this SVG file")
    parser.add_argument("--seconds", type=float, default=480, help="start nothing after this long")
    parser.add_argument("--check-only", action="store_true", help="check, and time nothing")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run every check and every row's code once, tiny, in Triton's interpreter or on a "
        "GPU, and time nothing",
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=list(Plan.contexts))
    parser.add_argument("--batches", type=int, nargs="+", default=list(Plan.batches))
    parser.add_argument("--groups", type=int, nargs="+", default=list(Plan.groups))
    options = parser.parse_args(arguments)
    for context in options.contexts:
        if context <= 0 or context % BLOCK_TOKENS:
            parser.error(f"context {context} is not a multiple of {BLOCK_TOKENS}")
    if any(group not in range(1, 17) for group in options.groups):
        parser.error(f"groups {options.groups} are not all in 1 … 16")
    if any(batch < 1 for batch in options.batches):
        parser.error(f"batches {options.batches} are not all positive")
    files = {"json": options.json, "csv": options.csv, "plot": options.plot}
    if options.dry_run:
        return Plan(
            contexts=(64,), batches=(1,), groups=(2,), heads=1, head_dim=64, suffix=16,
            kvcomp_tokens=64, cold_layers=4, cold_tokens=64,
            model_layers=1, model_tokens=64, model_steps=1,
            seconds=options.seconds, rehearsed=True, check_only=options.check_only, **files,
        )  # fmt: skip
    return Plan(
        contexts=tuple(options.contexts),
        batches=tuple(options.batches),
        groups=tuple(options.groups),
        seconds=options.seconds,
        check_only=options.check_only,
        **files,
    )

"""What was found, as JSON, as rows of results.csv, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from packkv.bench.route.experiment import Row
from packkv.bench.route.plan import Plan

__all__ = ["as_json", "csv_rows", "show"]


def as_json(rows: Sequence[Row], plan: Plan, about: Mapping[str, object]) -> dict[str, Any]:
    """The contract of `packkv bench route`: `hit_rate` is the part of all prompts' tokens that was
    not computed, `possible_rate` that of one worker which keeps everything."""
    return {**about, **asdict(plan), "rows": [_as_dict(row) for row in rows]}


def csv_rows(figures: Mapping[str, Any]) -> list[dict[str, object]]:
    """A line per policy."""
    first = {key: value for key, value in figures.items() if not isinstance(value, list | dict)}
    return [
        {**first, "bench": "route", **row, "requests": " ".join(map(str, row["requests"]))}
        for row in figures["rows"]
    ]


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Prints a row per policy."""
    table = Table(title="Conversations by policy", title_justify="left")
    for name in ("policy", "hit rate", "computed", "first token, s", "p90, s", "requests"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in figures["rows"]:
        table.add_row(
            row["policy"],
            f"{row['hit_rate']:.3f}",
            f"{row['prompt_tokens'] - row['cached_tokens']:,}",
            f"{row['first_token_s']:.3f}",
            f"{row['first_token_p90_s']:.3f}",
            " ".join(map(str, row["requests"])),
        )
    console.print(table)
    possible = max(row["possible_rate"] for row in figures["rows"])
    console.print(f"one worker that keeps everything: hit rate {possible:.3f}", style="dim")


def _as_dict(row: Row) -> dict[str, Any]:
    return {
        **asdict(row),
        "requests": list(row.requests),
        "hit_rate": row.cached_tokens / row.prompt_tokens,
        "possible_rate": row.possible_tokens / row.prompt_tokens,
    }

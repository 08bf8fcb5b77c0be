"""What was found, as JSON, as rows of results.csv, and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from packkv.bench.ttft.experiment import MEASURED, Found, Row

__all__ = ["as_json", "csv_rows", "show"]


def as_json(found: Found, about: Mapping[str, object]) -> dict[str, Any]:
    """The contract of `packkv bench ttft`.

    `rows`: seconds to compute and to load, what the prefix cache chose, and the prefill rate above
    which computing is faster over that link. `crossover`: for each prefix the bandwidth below which
    this machine computes faster than it loads; None when it always loads, or never, faster.
    `first_token`: seconds to the first token of a prompt, its prefix whole and layer by layer.
    """
    return {
        **about,
        "rows": [_as_dict(row) for row in found.rows],
        "crossover": _crossovers(found.rows),
        "first_token": [asdict(one) for one in found.first_tokens],
    }


def csv_rows(figures: Mapping[str, Any], about: Mapping[str, object]) -> list[dict[str, object]]:
    """A line per row."""
    first = {key: value for key, value in about.items() if not isinstance(value, list | dict)}
    loads = [{**first, "bench": "ttft", **row} for row in figures["rows"]]
    return loads + [{**first, "bench": "ttft first token", **row} for row in figures["first_token"]]


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Prints the rows and where the choice turns."""
    table = Table(title="Load or compute a prefix", title_justify="left")
    for name in (
        "tokens",
        "MiB",
        "link, Gb/s",
        "load, s",
        "compute, s",
        "chosen",
        "turns at tok/s",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in figures["rows"]:
        mark = "" if row["prefill"] == MEASURED else "*"
        table.add_row(
            f"{row['prefix_tokens']:,}",
            f"{row['moved_bytes'] / (1 << 20):.2f}",
            _bandwidth(row["gbps"]),
            f"{row['load_s']:.4f}",
            f"{mark}{row['recompute_s']:.4f}",
            row["chosen"],
            f"{row['crossover_tokens_per_s']:,.0f}",
        )
    console.print(table)
    if any(row["prefill"] != MEASURED for row in figures["rows"]):
        console.print("* a worker that is imagined: the rate of --prefill-rate", style="dim")
    console.print(
        "turns at tok/s: over this link, workers that compute faster should not load", style="dim"
    )
    for at in figures["crossover"]:
        if at["gbps"] is not None:
            console.print(
                f"{at['prefix_tokens']:,} tokens: this machine should load above {at['gbps']:.3g} "
                "Gb/s and compute below"
            )
    _show_first_tokens(figures, console)


def _show_first_tokens(figures: Mapping[str, Any], console: Console) -> None:
    table = Table(title="From a prompt to its first token", title_justify="left")
    columns = ("prefix + question", "link, Gb/s", "prefix whole, s", "layer by layer, s", "saved")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in figures["first_token"]:
        table.add_row(
            f"{row['prefix_tokens']:,} + {row['question_tokens']}",
            _bandwidth(row["gbps"]),
            f"{row['whole_s']:.4f}",
            f"{row['layerwise_s']:.4f}",
            f"{1 - row['layerwise_s'] / row['whole_s']:.0%}",
        )
    console.print(table)


def _bandwidth(gbps: float | None) -> str:
    return "unlimited" if gbps is None else f"{gbps:g}"


def _as_dict(row: Row) -> dict[str, Any]:
    choice = row.choice
    return {
        "prefix_tokens": row.prefix_tokens,
        "gbps": row.gbps,
        "path": row.path,
        "prefill": choice.prefill,
        "recompute_s": choice.recompute_s,
        "load_s": row.load_s,
        "chosen": _spelled(choice.loaded_tokens, row.prefix_tokens),
        "loaded_tokens": choice.loaded_tokens,
        "moved_bytes": row.moved_bytes,
        "reached_gbps": row.moved_bytes * 8e-9 / row.load_s,
        "crossover_tokens_per_s": row.prefix_tokens / row.load_s,
    }


def _spelled(loaded: int, tokens: int) -> str:
    if loaded == 0:
        return "recompute"
    return "load" if loaded == tokens else "part"


def _crossovers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for tokens in dict.fromkeys(row.prefix_tokens for row in rows):
        measured = [
            row for row in rows if row.prefix_tokens == tokens and row.choice.prefill == MEASURED
        ]
        fastest = min(measured, key=lambda row: row.load_s)
        # what a load takes beside the bytes on the wire; nothing of it is known without such a row
        fixed_s = min((row.load_s for row in measured if row.gbps is None), default=0.0)
        left_s = fastest.choice.recompute_s - fixed_s
        gbps = fastest.moved_bytes * 8e-9 / left_s if left_s > 0 else None
        found.append({"prefix_tokens": tokens, "gbps": gbps})
    return found

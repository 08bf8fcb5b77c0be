"""Where figures go: JSON for one run; results.csv for all, each row with the columns it has."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["append_rows", "write_json"]


def write_json(path: Path, figures: Mapping[str, object]) -> None:
    """All figures of a run."""
    path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", "utf-8")


def append_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Appends a line per row. Columns that the file lacks are added behind those that it has."""
    columns, lines = _read(path)
    wanted = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    is_wider = len(wanted) > len(columns)
    with path.open("w" if is_wider else "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(wanted), lineterminator="\n")
        if is_wider:
            writer.writeheader()
            writer.writerows(lines)
        for row in rows:
            writer.writerow({name: _rounded(value) for name, value in row.items()})


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not path.exists():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
        return list(reader.fieldnames or ()), lines


def _rounded(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value

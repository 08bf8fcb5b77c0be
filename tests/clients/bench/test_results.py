"""results.csv: rows of different benchmarks in one file."""

from __future__ import annotations

import csv
from pathlib import Path

from packkv.bench.results import append_rows


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_new_file_gets_a_heading_and_rounded_figures(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append_rows(path, [{"date": "2030-01-01", "gbs": 1.23456789}])
    assert path.read_text() == "date,gbs\n2030-01-01,1.2346\n"


def test_rows_with_the_same_columns_are_only_appended(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append_rows(path, [{"a": 1, "b": 2}])
    before = path.read_text()
    append_rows(path, [{"b": 4, "a": 3}])
    assert path.read_text() == before + "3,4\n"


def test_new_columns_come_last_and_old_rows_keep_their_values(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append_rows(path, [{"codec": "hybrid", "setting": "a, b", "bits": None}])
    append_rows(path, [{"codec": "", "gbs": 2}])
    append_rows(path, [{"codec": "kivi", "setting": "c"}])
    assert path.read_text().splitlines()[0] == "codec,setting,bits,gbs"
    assert read(path) == [
        {"codec": "hybrid", "setting": "a, b", "bits": "", "gbs": ""},
        {"codec": "", "setting": "", "bits": "", "gbs": "2"},
        {"codec": "kivi", "setting": "c", "bits": "", "gbs": ""},
    ]


def test_an_empty_file_is_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.touch()
    append_rows(path, [{"a": 1}])
    assert read(path) == [{"a": "1"}]

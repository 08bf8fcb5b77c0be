"""What the experiment found, as JSON, as rows of a CSV file, and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from packkv.bench.codec.curve import Crossing, crossing, interval, nearest
from packkv.bench.codec.experiment import COMPARED_KLS, Findings
from packkv.bench.codec.row import Row
from packkv.bench.results import append_rows

__all__ = ["append_csv", "as_json", "show"]

_KLS = (0.001, *COMPARED_KLS)

# a KL that few codecs reach is reported where measured points enclose it, and nowhere else
_MEASURED_ONLY = (0.001,)

_OURS = "hybrid"


def as_json(
    findings: Findings, about: Mapping[str, object], about_long: Mapping[str, object]
) -> dict[str, Any]:
    """The contract of `packkv bench codec`, with what it was measured on.

    `rows` and `bits_at_kl` hold means over texts. `extrapolated` names the bits that no measured
    points enclose; `bits_ratio` has (codec / hybrid) at equal KL with a 95 % interval over texts;
    `greedy_at_kl` the setting nearest each KL, and how many greedy tokens each text has in common
    with the exact cache. `long_prefix` has the same of the long prefix, if it was measured.

    Args:
        findings: on the reported texts.
        about: what is true of everything.
        about_long: what is true of the long prefix alone.
    """
    figures: dict[str, Any] = {**about, **_figures(findings.rows)}
    if findings.long_rows:
        figures["long_prefix"] = {**about_long, **_figures(findings.long_rows)}
    figures["notes"] = list(findings.notes)
    return figures


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    curves = _curves(rows)
    crossings = _crossings(curves)
    return {
        "rows": [_as_dict(row) for row in rows],
        "bits_at_kl": {
            codec: {key: found.bits for key, found in at.items()} for codec, at in crossings.items()
        },
        "extrapolated": {
            codec: [key for key, found in at.items() if found.extrapolated]
            for codec, at in crossings.items()
            if any(found.extrapolated for found in at.values())
        },
        "bits_ratio": _ratios(curves, crossings),
        "greedy_at_kl": {codec: _greedy(curve) for codec, curve in curves.items()},
    }


def append_csv(path: Path, rows: Sequence[Row], about: Mapping[str, object]) -> None:
    """Appends a line per row."""
    append_rows(path, [{**about, **_as_dict(row)} for row in rows])


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Prints the operating points, the bits at equal KL, greedy generation, and the notes."""
    sections = [figures, *filter(None, [figures.get("long_prefix")])]
    for section in sections:
        console.print(_points_table(section))
    for section in sections:
        console.print(_bits_table(section))
        if section["extrapolated"]:
            console.print("~ extrapolated: no measured settings on both sides", style="dim")
    if figures["greedy_tokens"]:
        for section in sections:
            console.print(_greedy_table(section, figures["greedy_tokens"]))
    for note in figures["notes"]:
        console.print(note, style="dim")


def _curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {codec: list(group) for codec, group in groupby(rows, key=lambda row: row.codec)}


def _crossings(curves: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, Crossing]]:
    found: dict[str, dict[str, Crossing]] = {}
    for codec, rows in curves.items():
        for kl in _KLS:
            at = crossing([row.point for row in rows], kl)
            if at is not None and not (at.extrapolated and kl in _MEASURED_ONLY):
                found.setdefault(codec, {})[f"{kl:g}"] = at
    return found


def _ratios(
    curves: Mapping[str, Sequence[Row]], crossings: Mapping[str, Mapping[str, Crossing]]
) -> dict[str, dict[str, dict[str, float | None]]]:
    ours = crossings.get(_OURS, {})
    ratios: dict[str, dict[str, dict[str, float | None]]] = {}
    for codec, theirs in crossings.items():
        for key in sorted(set(ours) & set(theirs)) if codec != _OURS else ():
            our, their = ([row.points for row in curves[name]] for name in (_OURS, codec))
            low, high = interval(our, their, float(key)) or (None, None)
            ratio = theirs[key].bits / ours[key].bits
            ratios.setdefault(codec, {})[key] = {"ratio": ratio, "low": low, "high": high}
    return ratios


def _greedy(curve: Sequence[Row]) -> dict[str, dict[str, Any]]:
    found = {}
    for kl in COMPARED_KLS:
        row = curve[nearest([row.point for row in curve], kl)]
        found[f"{kl:g}"] = {
            "setting": row.setting.label,
            "kl": row.point.kl,
            "equal_tokens": [measured.greedy_equal_tokens for measured in row.texts],
        }
    return found


def _as_dict(row: Row) -> dict[str, Any]:
    texts = row.texts
    halves = 2e-9 * sum(measured.values for measured in texts)
    kl = np.concatenate([measured.score.kl for measured in texts])
    return {
        "codec": row.codec,
        "setting": row.setting.label,
        "bits": row.point.bits,
        "kl": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "top1": float(np.mean([measured.score.top1 for measured in texts])),
        "dnll": float(np.mean([measured.score.dnll for measured in texts])),
        "encode_gbs": halves / sum(measured.encode_s for measured in texts),
        "decode_gbs": halves / sum(measured.decode_s for measured in texts),
        "greedy_equal_tokens": float(np.mean([m.greedy_equal_tokens for m in texts])),
        # PackKV alone: the same integers by the paper's count, without sinks and most metadata
        "published_bits": float(np.mean(row.published_bits)) if row.published_bits else None,
    }


def _codec_column() -> Column:
    """Names are told apart by their ends: narrow terminals shorten figures first."""
    return Column("codec", no_wrap=True)


def _points_table(section: Mapping[str, Any]) -> Table:
    title = f"Operating points, {section['prefix_tokens']:,} tokens"
    table = Table(_codec_column(), "setting", title=title, title_justify="left")
    for name in ("bits", "KL", "KL p99", "top-1", "ΔNLL", "greedy", "encode GB/s", "decode GB/s"):
        table.add_column(name, justify="right")
    for row in section["rows"]:
        table.add_row(
            row["codec"],
            row["setting"],
            f"{row['bits']:.2f}",
            f"{row['kl']:.5f}",
            f"{row['kl_p99']:.4f}",
            f"{row['top1']:.1%}",
            f"{row['dnll']:+.4f}",
            f"{row['greedy_equal_tokens']:.0f}",
            f"{row['encode_gbs']:.2f}",
            f"{row['decode_gbs']:.2f}",
        )
    return table


def _bits_table(figures: Mapping[str, Any]) -> Table:
    title = f"Bits per value at equal KL, {figures['prefix_tokens']:,} tokens"
    table = Table(_codec_column(), title=title, title_justify="left")
    for kl in _KLS:
        table.add_column(f"KL {kl:g}", justify="right")
        table.add_column(f"× {_OURS}", justify="right", style="dim")
    for codec, bits in figures["bits_at_kl"].items():
        cells = []
        for kl in _KLS:
            key = f"{kl:g}"
            mark = "~" if key in figures["extrapolated"].get(codec, ()) else ""
            cells.append(f"{mark}{bits[key]:.2f}" if key in bits else "–")
            cells.append(_spelled(figures["bits_ratio"].get(codec, {}).get(key)))
        table.add_row(codec, *cells)
    return table


def _greedy_table(section: Mapping[str, Any], greedy_tokens: int) -> Table:
    title = f"Greedy tokens before the first that differs, of {greedy_tokens}, by text"
    title = f"{title}; {section['prefix_tokens']:,} tokens"
    table = Table(_codec_column(), title=title, title_justify="left")
    for kl in COMPARED_KLS:
        table.add_column(f"nearest KL {kl:g}")
    for codec, at in section["greedy_at_kl"].items():
        cells = [
            f"{' '.join(map(str, found['equal_tokens']))}  (KL {found['kl']:.4f})"
            for found in at.values()
        ]
        table.add_row(codec, *cells)
    return table


def _spelled(ratio: Mapping[str, float | None] | None) -> str:
    if ratio is None:
        return ""
    bounds = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return f"{ratio['ratio']:.2f}{bounds}"

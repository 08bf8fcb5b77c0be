"""What the experiment found, as JSON, as rows of a CSV file, and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from packkv.bench.codec.curve import Crossing, crossing, interval
from packkv.bench.codec.experiment import Row
from packkv.bench.results import append_rows

__all__ = ["NOTES", "append_csv", "as_json", "show"]

_KLS = (0.001, 0.005, 0.018)

# a KL that few codecs reach is reported where measured points enclose it, and nowhere else
_MEASURED_ONLY = (0.001,)

_OURS = "hybrid"

NOTES = (
    "no row for transformers' QuantizedCache: it needs optimum-quanto or hqq, which PackKV does "
    "not depend on",
)


def as_json(rows: Sequence[Row], about: Mapping[str, object]) -> dict[str, Any]:
    """The contract of `packkv bench codec`, with what it was measured on.

    `rows` and `bits_at_kl` hold means over texts. `extrapolated` names the bits that no measured
    points enclose; `bits_ratio` has (codec / hybrid) at equal KL with a 95 % interval over texts.
    """
    curves = _curves(rows)
    crossings = _crossings(curves)
    return {
        **about,
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
        "notes": list(NOTES),
    }


def append_csv(path: Path, rows: Sequence[Row], about: Mapping[str, object]) -> None:
    """Appends a line per row."""
    append_rows(path, [{**about, **_as_dict(row)} for row in rows])


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Prints the operating points, the bits at equal KL, and the notes."""
    console.print(_points_table(figures["rows"]))
    console.print(_bits_table(figures))
    if figures["extrapolated"]:
        console.print("~ extrapolated: no measured settings on both sides", style="dim")
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
        # PackKV alone: the same integers by the paper's count, without sinks and most metadata
        "published_bits": float(np.mean(row.published_bits)) if row.published_bits else None,
    }


def _points_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("codec", "setting", title="Operating points", title_justify="left")
    for name in ("bits", "KL", "KL p99", "top-1", "ΔNLL", "encode GB/s", "decode GB/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["codec"],
            row["setting"],
            f"{row['bits']:.2f}",
            f"{row['kl']:.5f}",
            f"{row['kl_p99']:.4f}",
            f"{row['top1']:.1%}",
            f"{row['dnll']:+.4f}",
            f"{row['encode_gbs']:.2f}",
            f"{row['decode_gbs']:.2f}",
        )
    return table


def _bits_table(figures: Mapping[str, Any]) -> Table:
    table = Table("codec", title="Bits per value at equal KL", title_justify="left")
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


def _spelled(ratio: Mapping[str, float | None] | None) -> str:
    if ratio is None:
        return ""
    bounds = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return f"{ratio['ratio']:.2f}{bounds}"

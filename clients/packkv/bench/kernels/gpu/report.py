"""Rows of a run to JSON, CSV and SVG, with the device and the day that they are of."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

import torch

from packkv.bench.kernels.gpu.packed import CODEC
from packkv.bench.kernels.gpu.plan import Plan
from packkv.bench.kernels.gpu.row import Bench, Row
from packkv.bench.results import append_rows

__all__ = ["line", "svg", "write"]

_WIDTH, _ROW, _LEFT, _TOP = 860, 18, 380, 50
_COLOURS = {"packed": "#D55E00", "kvcomp": "#0072B2"}


def write(plan: Plan, bench: Bench, rows: Sequence[Row], skipped: Sequence[str]) -> None:
    """Writes the files that are asked for."""
    named = torch.cuda.get_device_name() if bench.device.type == "cuda" else "Triton's interpreter"
    origin = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": named,
        "torch": torch.__version__,
        "codec": str(CODEC),
        "timed": not plan.rehearsed,
    }
    figures = [{**origin, **row.as_dict()} for row in rows]
    if plan.json is not None:
        document = {"copy_gbs": bench.copy_gbs, "rows": figures, "skipped": list(skipped)}
        plan.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if plan.csv is not None:
        append_rows(plan.csv, [{"bench": "gpu", **figure} for figure in figures])
    if plan.plot is not None:
        plan.plot.write_text(svg(rows, f"Decode attention on {named}"), encoding="utf-8")


def line(row: Row) -> str:
    """A row for the eye."""
    where = f"{row.context:>7} × {row.batch:<3} G {row.group:<2}" if row.context else " " * 18
    figures = "not timed" if row.us is None else f"{row.us:11.1f} µs"
    if row.gbs is not None:
        figures += f" {row.gbs:8.0f} GB/s"
    if row.speedup_vs_sdpa_fp16 is not None:
        figures += f" {row.speedup_vs_sdpa_fp16:6.2f} × fp16"
    if row.rel_error is not None:
        figures += f"  error {row.rel_error:.1e}"
    named = f"{row.experiment}: {row.kernel}" if row.experiment else row.kernel
    return f"{named:48} {where} {row.detail:24} {figures}"


def svg(rows: Sequence[Row], title: str) -> str:
    """Bars of µs, on a logarithmic scale, of all plain attention rows that were timed."""
    bars = [
        (row, row.us)
        for row in rows
        if "attention" in row.kernel and not row.experiment and row.us is not None
    ]
    height = _TOP + _ROW * len(bars) + 30
    low, high = _decades([us for _, us in bars])
    body = []
    for decade in range(low, high + 1):
        x = _x(10.0**decade, low, high)
        body.append(f'<path d="M{x:.1f} {_TOP}V{height - 26}" stroke="#ddd"/>')
        body.append(
            f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">1e{decade} µs</text>'
        )
    for number, (row, us) in enumerate(bars):
        y = _TOP + _ROW * number
        colour = _COLOURS.get(row.kernel.partition("_")[0], "#7F7F7F")
        label = f"{row.kernel} {row.detail}  {row.context} × {row.batch}, G {row.group}"
        width = _x(us, low, high) - _LEFT
        body.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>')
        body.append(
            f'<rect x="{_LEFT}" y="{y + 2}" width="{width:.1f}" height="12" fill="{colour}"/>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            'font-family="system-ui, sans-serif" font-size="11">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            f'<text x="12" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    if not values:
        return 0, 1
    low = math.floor(math.log10(min(values)) - 1e-9)
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def _x(us: float, low: int, high: int) -> float:
    return _LEFT + (math.log10(us) - low) / (high - low) * (_WIDTH - _LEFT - 40)

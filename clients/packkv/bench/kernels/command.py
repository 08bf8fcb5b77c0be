"""The command `packkv bench kernels`. Importing it loads neither torch nor triton."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from packkv.errors import ConfigError

if TYPE_CHECKING:
    from packkv_kernels.offline import KernelRow


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("kernels")(kernels)


def kernels(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures to this file")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="sm_80, sm_90 or gfx942; repeatable  [default: all of them]"),
    ] = None,
    only: Annotated[str, typer.Option(help="kernels whose name contains this")] = "",
) -> None:
    """Compile every GPU kernel and count its instructions per value; no GPU is needed.

    Times are not in it: benchmarks/gpu.py measures those, where a GPU is.
    """
    rows = _rows(target or [], only)
    _table(rows)
    if json_file is not None:
        document = {"rows": [row.as_dict() for row in rows]}
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _rows(targets: list[str], only: str) -> list[KernelRow]:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ConfigError("TRITON_INTERPRET=1 is set: interpreted kernels have no machine code")
    try:
        from packkv_kernels.offline import TARGETS, kernel_rows
    except ImportError as error:
        raise ConfigError(f"needs packkv[kernels]: {error}") from error
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown:
        raise ConfigError(f"no target is called {unknown[0]!r}: {', '.join(TARGETS)}")
    console = Console(stderr=True)
    rows = []
    with console.status("compiling") as status:
        for row in kernel_rows(targets or TARGETS, only):
            status.update(f"compiled {row.kernel} for {row.target}")
            rows.append(row)
    if not rows:
        raise ConfigError(f"no kernel's name contains {only!r}")
    return rows


def _table(rows: list[KernelRow]) -> None:
    table = Table()
    table.add_column("kernel", no_wrap=True, min_width=max(len(row.kernel) for row in rows))
    table.add_column("target")
    for name in ("registers", "spilled", "shared", "alu / value", "issue / value"):
        table.add_column(name, justify="right")
    for row in rows:
        counts = (row.registers, row.spill_bytes, row.shared_bytes)
        shares = (f"{row.alu_per_element:.2f}", f"{row.issue_per_element:.2f}")
        table.add_row(row.kernel, row.target, *map(str, counts), *shares)
    Console().print(table)

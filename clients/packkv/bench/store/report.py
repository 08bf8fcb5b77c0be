"""What was found, as JSON, as rows of results.csv, and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from packkv.bench.store.experiment import EMBEDDED, REDIS, Found
from packkv.bench.store.plan import Plan
from packkv.bench.store.transfers import MEMCPY, Transfer

__all__ = ["as_json", "csv_rows", "show"]

_REMOTE = ("bulk", "grpc")
_SHARED = "shared-memory"


def as_json(found: Found, plan: Plan, about: Mapping[str, object]) -> dict[str, Any]:
    """The contract of `packkv bench store`: medians over rounds, in 10⁹ bytes a second.

    `get_gbs` and `put_gbs` are of the best remote path. `rows` has every transfer, with the best
    round and ratios to raw TCP (the same call) and memcpy; `scaling` many clients.
    """
    table = _Table(found)
    best = {call: table.best_remote(call) for call in ("put", "get")}
    return {
        **about,
        "blocks": plan.blocks,
        "block_bytes": plan.block_bytes,
        "rounds": plan.rounds,
        "foreign_cores": found.foreign_cores,
        "memcpy_gbs": table.gbs(MEMCPY, "get"),
        "tcp_gbs": table.gbs("tcp", "get"),
        "tcp_put_gbs": table.gbs("tcp", "put"),
        "remote_path": best["get"],
        "put_gbs": table.gbs(best["put"], "put"),
        "get_gbs": table.gbs(best["get"], "get"),
        "get_grpc_gbs": table.gbs("grpc", "get"),
        "put_grpc_gbs": table.gbs("grpc", "put"),
        "get_shm_gbs": table.gbs(_SHARED, "get"),
        "put_shm_gbs": table.gbs(_SHARED, "put"),
        "gil_busy_ratio_remote": table.busy_ratio(best["get"], "get"),
        "gil_busy_ratio_shm": table.busy_ratio(_SHARED, "get"),
        "redis_set_gbs": table.gbs("redis", "put"),
        "redis_get_gbs": table.gbs("redis", "get"),
        "cpu_s_per_gb": table.cpu(best["get"], "get"),
        "cpu_is_of": "both ends" if found.both_ends else "the client",
        **_matches(found),
        "rows": [table.row(transfer) for transfer in found.transfers],
        "scaling": [vars(scaling) for scaling in found.scaling],
        "notes": found.notes,
    }


def csv_rows(figures: Mapping[str, Any], about: Mapping[str, object]) -> list[dict[str, object]]:
    """A line for each transfer, each number of clients and each kind of Match."""
    sizes = {name: figures[name] for name in ("blocks", "block_bytes", "rounds", "foreign_cores")}
    first = {**about, "bench": "store", **sizes}
    rows = [{**first, **row} for row in figures["rows"]]
    for scaling in figures["scaling"]:
        rows.append({**first, **scaling, "call": "get"})
    for kind, key in ((EMBEDDED, "match_2048"), (REDIS, "match_2048_redis")):
        if f"{key}_p50_ms" in figures:
            times = {name: figures[f"{key}_{name}"] for name in ("p50_ms", "p99_ms")}
            rows.append({**first, "call": "match", "path": kind, **times})
    return rows


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Prints transfers, many clients, and the notes."""
    console.print(_transfer_table(figures))
    if figures["scaling"]:
        console.print(_scaling_table(figures))
    for kind, key in ((EMBEDDED, "match_2048"), (REDIS, "match_2048_redis")):
        if f"{key}_p50_ms" in figures:
            p50, p99 = figures[f"{key}_p50_ms"], figures[f"{key}_p99_ms"]
            console.print(f"Match of 2,048 blocks, {kind}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    if figures["foreign_cores"] is not None:
        console.print(
            f"others kept {figures['foreign_cores']:.2f} cores busy meanwhile", style="dim"
        )
    for note in figures["notes"]:
        console.print(note, style="dim")


class _Table:
    """Transfers by mover, call and whether a thread was busy."""

    def __init__(self, found: Found) -> None:
        self._of = {(one.mover, one.call, one.is_busy): one for one in found.transfers}

    def gbs(self, mover: str, call: str) -> float | None:
        """Idle; None when it was not measured."""
        transfer = self._of.get((mover, call, False))
        return None if transfer is None else transfer.gbs

    def cpu(self, mover: str, call: str) -> float:
        return self._of[mover, call, False].cpu_s_per_gb

    def busy_ratio(self, mover: str, call: str) -> float | None:
        """Time beside a busy thread ÷ idle time."""
        idle, busy = (self._of.get((mover, call, is_busy)) for is_busy in (False, True))
        return None if idle is None or busy is None else idle.gbs / busy.gbs

    def best_remote(self, call: str) -> str:
        there = [name for name in _REMOTE if (name, call, False) in self._of]
        return max(there, key=lambda name: self._of[name, call, False].gbs)

    def row(self, transfer: Transfer) -> dict[str, Any]:
        tcp, memcpy = self.gbs("tcp", transfer.call), self.gbs(MEMCPY, "get")
        is_idle = not transfer.is_busy
        return {
            "path": transfer.mover,
            "call": transfer.call,
            "busy_thread": transfer.is_busy,
            "gbs": transfer.gbs,
            "best_gbs": transfer.best_gbs,
            "to_tcp": transfer.gbs / tcp if tcp else None,
            "to_memcpy": transfer.gbs / memcpy if memcpy else None,
            "cpu_s_per_gb": transfer.cpu_s_per_gb if is_idle else None,
            "busy_ratio": None if is_idle else self.busy_ratio(transfer.mover, transfer.call),
        }


def _matches(found: Found) -> dict[str, float]:
    embedded, redis = found.matches[EMBEDDED], found.matches.get(REDIS)
    times = {"match_2048_p50_ms": embedded.p50_ms, "match_2048_p99_ms": embedded.p99_ms}
    if redis is not None:
        times |= {
            "match_2048_redis_p50_ms": redis.p50_ms,
            "match_2048_redis_p99_ms": redis.p99_ms,
        }
    return times


def _transfer_table(figures: Mapping[str, Any]) -> Table:
    title = f"{figures['blocks']} blocks of {figures['block_bytes']:,} bytes"
    table = Table(title=title, title_justify="left")
    for name in ("path", "call"):
        table.add_column(name, no_wrap=True)
    for name in ("GB/s", "× tcp", "× memcpy", "CPU s/GB", "busy", "slower"):
        table.add_column(name, justify="right", no_wrap=True)
    busy = {(row["path"], row["call"]): row for row in figures["rows"] if row["busy_thread"]}
    for row in figures["rows"]:
        if row["busy_thread"]:
            continue
        beside = busy.get((row["path"], row["call"]))
        table.add_row(
            row["path"],
            row["call"],
            f"{row['gbs']:.2f}",
            f"{row['to_tcp']:.2f}",
            f"{row['to_memcpy']:.2f}",
            f"{row['cpu_s_per_gb']:.2f}",
            "" if beside is None else f"{beside['gbs']:.2f}",
            "" if beside is None else f"{beside['busy_ratio']:.1f} ×",
        )
    return table


def _scaling_table(figures: Mapping[str, Any]) -> Table:
    table = Table("path", title="Get by many client processes", title_justify="left")
    for name in ("clients", "GB/s together", "Get p50, ms", "slowest, ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in figures["scaling"]:
        times = (f"{row['get_p50_ms']:.0f}", f"{row['get_max_ms']:.0f}")
        table.add_row(row["path"], str(row["clients"]), f"{row['gbs']:.2f}", *times)
    return table

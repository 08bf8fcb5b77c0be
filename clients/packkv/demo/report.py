"""How a demo run is shown: steps as they happen, then one table and the answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from packkv.demo.outcome import Outcome


class Progress:
    """Shows each step while it runs, and how long it took once it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One step; an exception marks it as failed and goes on."""
        started = time.perf_counter()
        mark = "[red]✗[/]"
        try:
            with self._console.status(text):
                yield
            mark = "[green]✓[/]"
        finally:
            took = time.perf_counter() - started
            self._console.print(f"{mark} {text} [dim]{took:.1f} s[/]", highlight=False)


def show(outcome: Outcome, console: Console) -> None:
    """Print the figures and the answers."""
    console.print(_table(outcome))
    exact = "the same" if outcome.warm.tokens == outcome.exact.tokens else outcome.texts[2]
    first, second = outcome.questions
    for who, question, answer in (
        ("Worker A", first, outcome.texts[0]),
        ("Worker B", second, outcome.texts[1]),
        ("Without PackKV", second, exact),
    ):
        console.print(Text(f"{who}: {question}", style="bold"))
        # the model's words are text, whatever brackets they have
        console.print(Text(f"  {' '.join(answer.split())}"))


def _table(outcome: Outcome) -> Table:
    table = Table(title=f"{outcome.codec} · {outcome.document}", title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("meaning", style="dim")
    for row in _rows(outcome):
        table.add_row(*row)
    return table


def _rows(outcome: Outcome) -> list[tuple[str, str, str]]:
    exact, warm = outcome.exact, outcome.warm
    return [
        (
            "tokens matched",
            f"{warm.matched_tokens:,} of {outcome.prefix_tokens:,}",
            f"full blocks hold {outcome.full_tokens:,}",
        ),
        ("first token, cold", f"{outcome.cold.ttft_s:.2f} s", "worker A, nothing stored"),
        ("first token, warm", f"{warm.ttft_s:.2f} s", "worker B: fetch, verify, compute"),
        ("", f"{outcome.ttft_speedup:.1f} ×", f"without PackKV: {exact.ttft_s:.2f} s"),
        ("K and V as fp16", _size(outcome.raw_bytes), "of the published blocks"),
        ("stored", _size(outcome.cold.published_bytes), "all metadata included"),
        ("moved to worker B", _size(warm.fetched_bytes), "payload bytes"),
        ("", f"{outcome.ratio:.2f} ×", "smaller than fp16"),
        ("KL to the exact run", f"{exact.kl_mean:.4f}", f"mean of {exact.scored_tokens} tokens"),
        ("top-1 agreement", f"{exact.top1_agreement:.1%}", "same most likely token"),
        (
            "greedy tokens equal",
            f"{outcome.greedy_equal_tokens} of {len(exact.tokens)}",
            "until the first that differs",
        ),
    ]


def _size(count: int) -> str:
    return f"{count / (1 << 20):.2f} MiB"

"""How a benchmark shows what it is doing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Bars", "bars"]


class Bars:
    """Shows the parts of an experiment, one bar after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, visible=False)

    def begin(self, what: str, steps: int) -> None:
        """A part that takes some steps."""
        self._task = self._progress.add_task(what, total=steps)

    def step(self) -> None:
        """One of them is done."""
        self._progress.advance(self._task)


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Redrawn seldom: drawing takes the time of the interpreter that is measured."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, refresh_per_second=1) as progress:
        yield Bars(progress)

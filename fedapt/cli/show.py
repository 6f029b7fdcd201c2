"""Output of the commands: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from fedapt.core.report import Reporter
from fedapt_runtime.printable import printable, printable_json

# without a terminal, these tasks print a line per step, and all others one line at their end
_STEPS = ("rounds", "cells")


class ConsoleReporter(Reporter):
    """Progress bars on a terminal; elsewhere a line per round or cell, and per finished task."""

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def message(self, text: str) -> None:
        """Print one line above the bars."""
        self._progress.console.print(printable(text, lines=True), markup=False, highlight=False)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Move a bar."""
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, note=note)
        self._progress.update(self._tasks[task], completed=done, total=total, note=note)
        if self._progress.console.is_terminal:
            return
        if done == total or task in _STEPS:
            count = f"{done} of {total}" if task in _STEPS else f"{total}"
            self.message(f"{task}: {count}" + (f", {note}" if note else ""))


class Interrupted(Exception):
    """Ctrl-C as an exception that Typer does not handle: Typer would change the exit code.

    Its text says how to continue; empty if the command cannot.
    """


@contextmanager
def console_reporter(to_continue: str = "") -> Iterator[Reporter]:
    """Progress bars on stderr while the block runs.

    Args:
        to_continue: advice after Ctrl-C on how to continue; empty if the command starts again.

    Raises:
        Interrupted: Ctrl-C was pressed inside the block.
    """
    console = Console(file=sys.stderr, soft_wrap=True)
    bars = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
    try:
        with bars:
            yield ConsoleReporter(bars)
    except KeyboardInterrupt as stop:
        raise Interrupted(to_continue) from stop


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(printable_json(value, indent=2))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, figures: bool = True
) -> None:
    """A table on stdout; the first column is text, the others are text unless `figures`.

    A table of figures that is wider than the terminal continues below, with its first column.
    """
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    console.print(printable(title), style="bold", markup=False)
    parts = _split_columns(columns, rows, console.width) if figures else [range(len(columns))]
    for part in parts:
        table = Table()
        for i in part:
            justify: Literal["left", "right"] = "right" if figures and i else "left"
            table.add_column(columns[i], justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(shown(row[i]) for i in part))
        console.print(table)


def _split_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[list[int]]:
    """The columns of each part: the first column, and as many others as the width allows."""
    border = 3  # a column has a line and two spaces; the table one line more
    widths = [
        max(cell_len(printable(cell)) for cell in cells) + border
        for cells in zip(columns, *rows, strict=True)
    ]
    parts = [[0]]
    for i in range(1, len(columns)):
        if len(parts[-1]) > 1 and sum(widths[j] for j in parts[-1]) + widths[i] + 1 > width:
            parts.append([0])
        parts[-1].append(i)
    return parts


def shown(text: str) -> str:
    """Text for a table's cell, without control characters and markup."""
    return escape(printable(text))


def percent(share: float) -> str:
    """0.9714 -> "97.1"."""
    return f"{100 * share:.1f}"

"""What a person sees: headings, plain sentences, progress, tables."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Protocol

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from device_runtime.shown import printable

WIDEST = 10_000  # cells that a table may take
PLAIN_EVERY_S = 10.0  # between two plain lines of one progress
for size in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
    told = os.environ.get(size, "1")
    if not (told.isascii() and told.isdigit() and len(told) <= 5 and 0 < int(told) <= WIDEST):
        del os.environ[size]  # Rich and Typer would take it as it is: it is no size

# what is printed is text and never markup: a path or a name may hold brackets and colons
out = Console(highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)


class Advance(Protocol):
    """Says how far something is."""

    def __call__(self, done: int, note: str = "") -> None:
        """done of the total, and what is worth saying beside it."""


def quiet() -> None:
    """Say nothing but results (for --json)."""
    out.quiet = True


def text(line: str | Text, style: str = "") -> Text:
    """A line as it is shown: as it is, with what a terminal would obey written as an escape."""
    return line if isinstance(line, Text) else Text(printable(line), style)


def heading(line: str) -> None:
    """A line that stands out, after an empty one."""
    out.print()
    out.print(text(line, "bold cyan"), soft_wrap=True)


def say(*lines: str | Text, style: str = "") -> None:
    """Sentences, each on a line of its own, however long: the terminal breaks it, we do not."""
    for line in lines:
        out.print(text(line, style), soft_wrap=True)


def note(line: str, style: str = "") -> None:
    """A sentence on standard error, beside the results."""
    errors.print(text(line, style), soft_wrap=True)


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """A function `advance(done, note)` that moves a bar, or prints a line where no terminal is."""
    if out.is_terminal and not out.is_dumb_terminal and not out.quiet:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        beside = TextColumn("{task.fields[note]}", markup=False)
        with Progress(*columns, beside, console=out) as bar:
            task = bar.add_task(printable(label), total=total, note="")

            def move(done: int, note: str = "") -> None:
                bar.update(task, completed=done, note=printable(note))

            yield move
        return
    started = shown = time.monotonic()
    ended = False

    def line(done: int, note: str = "") -> None:
        nonlocal shown, ended
        now = time.monotonic()
        if now - shown >= PLAIN_EVERY_S or (done == total and not ended):  # the end is said once
            shown, ended = now, done == total
            say(f"{label}: {done}/{total} after {now - started:.0f} s {note}")

    yield line


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table whose first column is text and whose others are numbers. A line end in the head of a
    column is kept. Where the terminal is too narrow, its lines are broken, and nothing is cut off.
    """
    say(title)
    shown = Table(box=box.SIMPLE)  # fits 80 columns
    for i, column in enumerate(columns):
        head = Text("\n").join(map(text, column.split("\n")))
        shown.add_column(head, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*map(text, row))
    whole = Measurement.get(out, out.options.update(max_width=WIDEST), shown).maximum
    wide = out.options.update(width=max(out.width, whole))
    out.print(Segments(out.render(shown, wide)), crop=False, end="")

"""What a person sees: headings, plain sentences, progress, tables."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

out = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
PLAIN_EVERY_S = 10.0  # between two plain lines of one progress


class Advance(Protocol):
    """Says how far something is."""

    def __call__(self, done: int, note: str = "") -> None:
        """done of the total, and what is worth saying beside it."""


def quiet() -> None:
    """Say nothing but results (for --json)."""
    out.quiet = True


def heading(text: str) -> None:
    """A line that stands out, after an empty one."""
    out.print(f"\n[bold cyan]{text}[/]")


def say(text: str) -> None:
    """A sentence, however long: the terminal breaks it, we do not."""
    out.print(text, soft_wrap=True)


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """A function `advance(done, note)` that moves a bar, or prints a line where no terminal is."""
    if out.is_terminal and not out.quiet:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=out) as bar:
            task = bar.add_task(label, total=total, note="")

            def move(done: int, note: str = "") -> None:
                bar.update(task, completed=done, note=note)

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
    """A table whose first column is text and whose others are numbers."""
    say(title)
    shown = Table(box=box.SIMPLE)  # fits 80 columns
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    out.print(shown)

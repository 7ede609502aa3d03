"""Sorting: more rows than memory holds, as sorted runs on disk that are merged on reading."""

import heapq
import marshal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# A row is a tuple of plain values that compare, the last of them bytes; rows are compared as
# tuples, so those before the last must tell any two rows apart.
Row = tuple[Any, ...]

RUN = 24 << 20  # bytes of rows that are sorted in memory, and then written as one run
BLOCK = 64 << 10  # bytes of rows of a run that are in memory while runs are merged
RUNS = 64  # runs merged at once: each is an open file
_TUPLE = 300  # bytes a row takes in memory beyond its last value


class Sorter:
    """Takes rows in any order and gives them back in theirs, with memory that does not grow.

    Its files stand in a folder of their own, which is made when the first is needed.
    """

    def __init__(self, folder: Path, run: int = RUN):
        """`folder` may be missing; `run` bytes of rows are held in memory."""
        self._folder, self._run = folder, run
        self._rows: list[Row] = []
        self._size = 0  # bytes of the rows in memory
        self._files: list[Path] = []
        self._written = 0  # runs so far, which names the next

    def add(self, row: Row) -> None:
        """Raises OSError if the disk is full."""
        self._rows.append(row)
        self._size += len(row[-1]) + _TUPLE
        if self._size >= self._run:
            self._rows.sort()
            self._spill(self._rows)
            self._rows, self._size = [], 0
            if len(self._files) == RUNS:
                self._spill(_merged(self._taken()))

    def drain(self) -> Iterator[Row]:
        """Every row, in order; afterwards the sorter is empty and its files are removed."""
        self._rows.sort()
        rows, self._rows, self._size = self._rows, [], 0
        yield from heapq.merge(_merged(self._taken()), rows)

    def remove(self) -> None:
        """Remove its files and its folder."""
        self._files = []
        for path in self._folder.glob("run*"):  # a reader that stopped midway left some
            path.unlink()
        if self._folder.is_dir():
            self._folder.rmdir()

    def _taken(self) -> list[Path]:
        files, self._files = self._files, []
        return files

    def _spill(self, rows: Iterable[Row]) -> None:
        """Write sorted rows as one more run."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"run{self._written}"
        self._written += 1
        with open(path, "wb") as file:
            for block in _blocks(rows):
                data = marshal.dumps(block)
                file.write(len(data).to_bytes(8, "little") + data)
        self._files.append(path)


def _merged(files: list[Path]) -> Iterator[Row]:
    """The rows of sorted runs in order. Each file is removed when all are read."""
    yield from heapq.merge(*map(_read, files))
    for path in files:
        path.unlink()


def _read(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        while size := file.read(8):
            yield from marshal.loads(file.read(int.from_bytes(size, "little")))


def _blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    block: list[Row] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row[-1]) + _TUPLE
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block

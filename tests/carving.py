"""What a thief of a server's disk reads out of its files.

Every state of a table that a database file, its log or its dead rows still hold.
"""

import shutil
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WAL_HEADER, FRAME_HEADER = 32, 24  # bytes; https://www.sqlite.org/fileformat2.html#walformat
PAGE_HEADER, PAGE = 24, 8192  # bytes, of PostgreSQL


def states_of_sqlite(database: Path, scratch: Path) -> set[bytes]:
    """The sums in every state that the database had when one of the transactions in its log ended,
    and in the database file alone.
    """
    wal = database.with_name(f"{database.name}-wal")
    log = wal.read_bytes() if wal.exists() else b""
    ends = [0]
    if log:
        size = struct.unpack(">I", log[8:12])[0] + FRAME_HEADER
        starts = range(WAL_HEADER, len(log) - size + 1, size)
        ends += [
            start + size for start in starts if struct.unpack(">I", log[start + 4 : start + 8])[0]
        ]
    return {
        state for end in ends for state in _sums_in(database, log[:end], scratch / database.name)
    }


def _sums_in(database: Path, log: bytes, copy: Path) -> list[bytes]:
    copy.parent.mkdir(exist_ok=True)
    for name in (f"{copy.name}-wal", f"{copy.name}-shm"):
        copy.with_name(name).unlink(missing_ok=True)
    shutil.copy(database, copy)
    copy.with_name(f"{copy.name}-wal").write_bytes(log)
    connection = sqlite3.connect(copy)
    try:
        return [bytes(total) for (total,) in connection.execute("SELECT total FROM sums")]
    except sqlite3.OperationalError:  # before there was such a table
        return []
    finally:
        connection.close()


def states_of_postgres(data: Path) -> set[bytes]:
    """Every large value that stands in the pages of any table, rows that were replaced included:
    one is kept in pieces, each with the value's number and its own.
    """
    pieces: dict[tuple[str, int], dict[int, bytes]] = {}
    for path in (data / "base").rglob("*"):
        if path.is_file() and path.name.isdecimal():
            for value, number, piece in _pieces(path.read_bytes()):
                pieces.setdefault((path.name, value), {})[number] = piece
    return {
        b"".join(piece for _, piece in sorted(parts.items()))
        for parts in pieces.values()
        if sorted(parts) == list(range(len(parts))) and len(parts) > 1
    }


def _pieces(table: bytes) -> Iterator[tuple[int, int, bytes]]:
    for start in range(0, len(table) - PAGE + 1, PAGE):
        page = table[start : start + PAGE]
        for pointer in range(PAGE_HEADER, struct.unpack("<H", page[12:14])[0], 4):
            (packed,) = struct.unpack("<I", page[pointer : pointer + 4])
            at, length = packed & 0x7FFF, packed >> 17
            row = page[at : at + length]
            if length < 40 or row[22] + 12 > length:
                continue
            value, number, header = struct.unpack("<IiI", row[row[22] : row[22] + 12])
            if header & 3 == 0 and (header >> 2) - 4 == length - row[22] - 12 and number >= 0:
                yield value, number, row[row[22] + 12 :]


def correlation(states: set[bytes], update: np.ndarray) -> float:
    """The largest correlation between an update, in the numbers of a sum, and any state of one or
    difference of two, wherever in the state it begins.
    """
    size, step = update.nbytes, update.itemsize
    read = [np.zeros(len(update))]
    for state in states:
        for start in range(0, len(state) - size + 1, step):
            read.append(np.frombuffer(state[start : start + size], update.dtype).astype(np.float64))
    mine = update - update.mean()
    mine /= np.linalg.norm(mine)
    return max(
        abs(float(mine @ (difference - difference.mean()))) / float(np.linalg.norm(difference))
        for k, one in enumerate(read)
        for other in read[:k]
        if (difference := one - other).any()
    )

"""Typed: what people type on the devices of a fleet, as it arrives, in rows of token ids.

A user of a corpus types on one device, or in a large fleet on several. A device has the first
messages of its user, more of them every day; which are held back from training is decided by their
numbers, as a phone's typing log decides it. No text is here: rows are what a train step reads.
"""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.errors import RunError
from device_runtime.examples import messages as message_of
from device_runtime.text import FIRST_WORD, OOV
from device_runtime.typing_log import HELD_ONE_IN
from device_runtime.wire import DAY_S


@dataclass(frozen=True)
class Typed:
    """All users' messages, oldest first."""

    rows: NDArray[np.int32]  # [rows, length + 1], user after user
    first_row: NDArray[np.int64]  # [users + 1]: where a user's rows begin, and the next one's
    # [rows]: which message of its user a row is of, from 1 on
    message: NDArray[np.int32]
    messages: NDArray[np.int32]  # [users]: how many each has

    @classmethod
    def of(cls, users: list[NDArray[np.int32]]) -> "Typed":
        """Of each user's rows, int32 [rows, length + 1], in the order of `examples.rows`."""
        counts = [message_of(rows).astype(np.int32) for rows in users]
        first = np.cumsum([0, *(len(rows) for rows in users)])
        return cls(
            np.concatenate(users),
            first.astype(np.int64),
            np.concatenate(counts),
            np.array([int(count[-1]) if len(count) else 0 for count in counts], np.int32),
        )

    @classmethod
    def made_up(cls, messages: int, words: int, length: int) -> "Typed":
        """One user whose messages are all alike, of so many words: for training that is not real
        either.
        """
        row = np.zeros(length + 1, np.int32)
        row[0], row[1 : 1 + min(words, length)] = 1, FIRST_WORD
        return cls.of([np.tile(row, (messages, 1))])

    @classmethod
    def load(cls, folder: Path) -> "Typed":
        """What `save` has left in a folder, read from the disk as it is needed. Raises RunError for
        what does not fit together.
        """
        try:
            arrays = {
                each.name: np.load(folder / f"{each.name}.npy", mmap_mode="r", allow_pickle=False)
                for each in fields(cls)
            }
        except (OSError, ValueError, EOFError) as error:
            problem = f"cannot be read ({type(error).__name__})"
            raise RunError(folder, problem, "begin the fleet anew") from None
        typed = cls(**arrays)
        if not typed._fits():
            problem = "expected arrays of one length that name users one after the other"
            raise RunError(folder, f"{problem}, found others", "begin the fleet anew")
        return typed

    def save(self, folder: Path) -> None:
        """Write the arrays to a folder, a file each, for `load`."""
        folder.mkdir(exist_ok=True)
        for each in fields(self):
            np.save(folder / f"{each.name}.npy", getattr(self, each.name), allow_pickle=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that was typed."""
        hashed = hashlib.sha256()
        for each in fields(self):
            array = np.ascontiguousarray(getattr(self, each.name))
            hashed.update(f"{each.name} {array.dtype} {array.shape}\n".encode())
            hashed.update(array.data)
        return hashed.hexdigest()

    def _fits(self) -> bool:
        rows, first, message, messages = (getattr(self, each.name) for each in fields(self))
        ends = [("i4", 2), ("i8", 1), ("i4", 1), ("i4", 1)]
        shaped = [
            (array.dtype.str[1:], array.ndim) for array in (rows, first, message, messages)
        ] == ends
        return (
            shaped
            and len(message) == len(rows)
            and len(first) == len(messages) + 1
            and first[0] == 0
            and first[-1] == len(rows)
            and bool((np.diff(first) >= 0).all())
        )

    def arrived(self, users: Any, first: Any, per_day: Any, at: Any) -> NDArray[np.int64]:
        """How many messages devices have at `at` seconds, that began with `first` and get so many a
        day. All are columns, [k].
        """
        have = np.asarray(first) + np.floor(np.asarray(per_day) * np.asarray(at) / DAY_S)
        return np.minimum(have.astype(np.int64), self.messages[users])

    def trainable(self, users: Any, have: Any, most: int) -> tuple[Any, Any]:
        """Of how many messages, and of how many target words, the newest `most` rows are of the
        first `have` messages that are not held back: columns, [k], of devices that have used none
        up.
        """
        rows, words, begun = self._sums
        last = self._row_end[self._first_message[users] + have]
        first = self.first_row[users]
        least = np.maximum(rows[first], rows[last] - most)
        # the first row that is chosen: after it so many trainable ones are left
        start = np.searchsorted(rows, least, side="right") - 1
        start = np.maximum(start, first)
        inside = (start < last) & (rows[last] > least)
        cut = inside & ~self._begins[np.minimum(start, len(self.message) - 1)]
        return begun[last] - begun[start] + cut, words[last] - words[start]

    def newest(
        self, user: int, have: int, used_up: frozenset[int], most: int
    ) -> tuple[tuple[int, ...], NDArray[np.int32]]:
        """The newest rows to train on, at most `most`, of the first `have` messages that are not
        held back nor used up: the messages they come from, and int32 [rows, length + 1].
        """
        return self._chosen(user, have, used_up, most, is_held=False)

    def held(
        self, user: int, have: int, used_up: frozenset[int], most: int
    ) -> tuple[tuple[int, ...], NDArray[np.int32]]:
        """The same of those held back from training."""
        return self._chosen(user, have, used_up, most, is_held=True)

    def rows_of(self, user: int, records: tuple[int, ...], most: int) -> NDArray[np.int32]:
        """The rows of these messages, at most the last `most`."""
        first, last = int(self.first_row[user]), int(self.first_row[user + 1])
        chosen = np.flatnonzero(np.isin(self.message[first:last], records))[-most:]
        return np.asarray(self.rows[first + chosen])

    def _chosen(
        self, user: int, have: int, used_up: frozenset[int], most: int, is_held: bool
    ) -> tuple[tuple[int, ...], NDArray[np.int32]]:
        first = int(self.first_row[user])
        last = int(self._row_end[self._first_message[user] + have])
        numbers = self.message[first:last]
        usable = (numbers % HELD_ONE_IN == 0) == is_held
        if used_up:
            usable &= ~np.isin(numbers, list(used_up))
        chosen = np.flatnonzero(usable)[-most:]
        of = tuple(int(number) for number in np.unique(numbers[chosen]))
        return of, np.asarray(self.rows[first + chosen])

    @cached_property
    def _first_message(self) -> NDArray[np.int64]:
        """[users]: where a user's place in `_row_end` begins."""
        return np.cumsum([0, *(self.messages[:-1] + 1)]).astype(np.int64)

    @cached_property
    def _row_end(self) -> NDArray[np.int64]:
        """[messages + users]: of each user, where the rows of its first 0, 1, 2... messages end."""
        ends = [
            first + np.searchsorted(self.message[first:last], np.arange(count + 1), side="right")
            for first, last, count in zip(
                self.first_row[:-1], self.first_row[1:], self.messages, strict=True
            )
        ]
        return np.concatenate(ends).astype(np.int64)

    @cached_property
    def _begins(self) -> NDArray[np.bool_]:
        """[rows]: whether a message begins with the row."""
        before = np.concatenate([[0], self.message[:-1]])
        begins = self.message != before
        begins[self.first_row[:-1][self.first_row[:-1] < len(begins)]] = True
        return begins

    @cached_property
    def _sums(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows, target words and messages that are not held back, before each row, [rows + 1]."""
        trains = self.message % HELD_ONE_IN != 0
        targets = self.rows[:, 1:]
        words = ((targets >= FIRST_WORD) | (targets == OOV)).sum(axis=1)
        columns = (trains, words * trains, self._begins & trains)
        rows, said, begun = (
            np.concatenate([[0], np.cumsum(column, dtype=np.int64)]) for column in columns
        )
        return rows, said, begun

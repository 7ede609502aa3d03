"""Differences: what a device that holds an older checkpoint may fetch in the place of a newer one.

A difference is a blob like others. Which checkpoint it makes stands in the blob, so any replica,
and this one after a restart, counts its download rightly without having worked it out.
"""

import threading
from collections.abc import Callable, Sequence

from cachetools import LRUCache

from device_runtime import difference
from server.blobs import Blobs

NEWEST = 8  # checkpoints of a task a newer one is also offered as a difference from
KEPT = 256  # pairs of checkpoints whose difference is remembered
SMALLER = 0.75  # a difference is offered if it has at most this share of the checkpoint's bytes


class Differences:
    """Works a difference out once a pair of checkpoints. Thread-safe: of many that ask for the same
    one, one works and the others wait for it.
    """

    def __init__(self, blobs: Blobs, kept: int = KEPT):
        self._blobs = blobs
        self._between: LRUCache[tuple[str, str], str] = LRUCache(kept)
        self._makes: LRUCache[str, str] = LRUCache(kept)
        # by the checkpoint that is wanted: the newest of its task when it first was
        self._newest: LRUCache[str, frozenset[str]] = LRUCache(NEWEST)
        self._reading = threading.Lock()
        self._working_out = threading.Lock()

    def between(self, held: str, wanted: str, newest: Callable[[], Sequence[str]]) -> str | None:
        """The blob that makes the float16 checkpoint `wanted` of `held`; None if that is not among
        the `newest` of its task, or it would save too little.

        Raises RunError if a blob cannot be read or kept.
        """
        name = self._worked_out(held, wanted)
        if name is None:
            with self._working_out:
                name = self._worked_out(held, wanted)
                if name is None:
                    if wanted not in self._newest:
                        self._newest[wanted] = frozenset(newest())
                    if held not in self._newest[wanted]:
                        return None
                    name = self._work_out(held, wanted)
        return name or None

    def makes(self, name: str) -> str:
        """The checkpoint that the blob `name` makes of an older one; empty for a blob that is no
        difference. Raises RunError if there is no such blob, or it cannot be read.
        """
        with self._reading:
            sha = self._makes.get(name)
        if sha is None:
            sha = difference.makes(bytes(self._blobs.part(name, 0, difference.HEAD_BYTES)))
            with self._reading:
                self._makes[name] = sha
        return sha

    def _worked_out(self, held: str, wanted: str) -> str | None:
        with self._reading:
            return self._between.get((held, wanted))

    def _work_out(self, held: str, wanted: str) -> str:
        """The name of the blob, kept before this returns; empty if it saves too little."""
        new = self._blobs.get(wanted)
        change = difference.encode(self._blobs.get(held), new)
        name = self._blobs.put(change) if len(change) <= SMALLER * len(new) else ""
        with self._reading:
            self._between[held, wanted] = name
        return name

"""Open sums: what this replica has counted of open rounds, in memory and, sealed, in the store.

of, save   inside a transaction: the sum so far; the new one, sealed with a key of its own
stored     the transaction has held: the key of the sum before is written over
doubted    it has not, or nobody knows: all is read again from the store
ended      the round is over: its keys are gone, and what was stored of it is noise
"""

import logging
from collections.abc import Iterable

from device_runtime.errors import FedboardError
from server.masks import PLAIN, At, Lost, Masks
from server.slots import Slots
from server.store import Rows, Store, StoredSum
from server.sums import Sum

log = logging.getLogger("fedboard.server")


class OpenSums:
    """Whoever uses it holds the coordinator's lock."""

    def __init__(self, slots: Slots, replica: str):
        """`replica` is this server's name among those that share the store."""
        self._masks, self._replica = Masks(slots, replica), replica
        self._stored: dict[At, Sum] = {}
        self._saved: dict[At, Sum] = {}  # in the transaction under way

    def of(self, rows: Rows, at: At) -> Sum | None:
        """This replica's sum of a round; None before its first report. Raises Lost."""
        if at not in self._stored:
            for kept in rows.sums(*at, self._replica):
                self._stored[at] = self._read(at, kept)
                self._masks.goes_on(at, kept.generation)
        return self._stored.get(at)

    def save(self, rows: Rows, at: At, sum: Sum) -> None:
        """Put a sum in the place of what `of` gave. Raises RunError if its key cannot be kept."""
        generation, body = self._masks.seal(at, *sum.parts())
        rows.save_sum(*at, StoredSum(self._replica, generation, body))
        self._saved[at] = sum

    def stored(self) -> None:
        """The transaction has ended well. What cannot be done now is done with the next one."""
        saved, self._saved = self._saved, {}
        self._stored |= saved
        for at in saved:
            try:
                self._masks.stored(at)
            except FedboardError as error:
                log.warning("a key was not replaced", extra={"error": type(error).__name__})

    def doubted(self) -> None:
        """The transaction has failed, or nobody knows whether it held."""
        self._saved.clear()
        self._stored.clear()
        self._masks.doubt()

    def of_all(self, rows: Rows, at: At) -> list[Sum]:
        """What the replicas have counted of a round. Raises Lost if one of their sums cannot be
        read any more.
        """
        return [self._read(at, kept) for kept in rows.sums(*at)]

    def ended(self, at: At) -> None:
        """A round has been closed. Keys that cannot be removed now are removed at the next
        start.
        """
        self._stored.pop(at, None)
        try:
            self._masks.end(at)
        except FedboardError as error:
            log.warning("a key was not removed", extra={"error": type(error).__name__})

    def keep_only(self, still_open: Iterable[At]) -> None:
        """Let go of rounds that another replica has closed."""
        for at in self._masks.ends(still_open):
            self.ended(at)

    def require_room(self) -> None:
        """Raises RunError if no sum could be sealed, for want of a place for its key."""
        self._masks.require_room()

    def begin(self, store: Store) -> list[Lost]:
        """After a start: remove the keys of rounds that have ended, write over those that are of no
        stored sum, and seal what a version without keys has stored. The sums of this replica that
        cannot be read any more.
        """
        left = self._masks.begun()  # before the open rounds: what is opened now is not left over
        with store.reading() as rows:
            still_open = {(name, each.state.round) for name, each in rows.open_rounds().items()}
            for at in sorted(left - still_open):
                self.ended(at)
            lost = []
            for at in sorted(still_open):
                try:
                    if self.of(rows, at) is not None:
                        self._masks.renew(at)
                except Lost as error:
                    lost.append(error)
            plain = [
                at
                for at in sorted(still_open)
                if any(each.generation == PLAIN for each in rows.sums(*at, self._replica))
            ]
        if plain:
            with store.transaction(durable=True) as rows:
                for at in plain:
                    self.save(rows, at, self._stored[at])
            self.stored()
            store.forget()
        return lost

    def _read(self, at: At, kept: StoredSum) -> Sum:
        return Sum.from_bytes(self._masks.unseal(at, kept.replica, kept.generation, kept.body))

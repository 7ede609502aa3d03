"""Seal rows: what a server keeps to have masked sums opened, read and written inside a transaction.

Seal keys of rounds to come, which the helper signed; of each counted report its seal, which only
the helper reads; and of the sum that was opened last, whose reports were in it, as hashes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from device_runtime import config
from device_runtime.wire import Signed
from server.tables import devices, last_sums, seal_keys, seals


@dataclass(frozen=True)
class StoredSeal:
    """Of a counted report, what its helper is told."""

    assignment: str
    device: str
    assigned: int  # the round it was assigned in
    seal: bytes
    signature: bytes  # the device's


@dataclass(frozen=True)
class SealOf(StoredSeal):
    """The same, with what is known of its device."""

    public_key: str  # hexadecimal
    enrolment: str  # the enrolment key's signature of it, hexadecimal; empty: there is none


class SealRows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    # keys

    def key(self, task: str, round: int) -> Signed | None:
        """The helper's key of a round; None if it has not been fetched."""
        query = sa.select(seal_keys.c.key).where(_at(seal_keys, task, round))
        text = self._connection.execute(query).scalar_one_or_none()
        return None if text is None else config.from_json(Signed, text.encode(), "signed")

    def key_rounds(self, task: str) -> set[int]:
        """The rounds of a task whose keys are here."""
        query = sa.select(seal_keys.c.round).where(seal_keys.c.task == task)
        return set(self._connection.execute(query).scalars())

    def put_keys(self, task: str, keys: Mapping[int, Signed]) -> None:
        """Keep keys by their rounds; one that is kept already stays as it is."""
        kept = self.key_rounds(task)
        rows = [
            {"task": task, "round": round, "key": config.to_json(key).decode()}
            for round, key in keys.items()
            if round not in kept
        ]
        if rows:
            self._connection.execute(seal_keys.insert(), rows)

    def forget_keys(self, task: str, before: int) -> None:
        """Forget the keys of rounds before one."""
        gone = (seal_keys.c.task == task) & (seal_keys.c.round < before)
        self._connection.execute(seal_keys.delete().where(gone))

    def drop_keys(self, task: str, first: int) -> None:
        """Forget the keys of rounds from one on: nobody can open what would be sealed to them."""
        gone = (seal_keys.c.task == task) & (seal_keys.c.round >= first)
        self._connection.execute(seal_keys.delete().where(gone))

    # seals of an open round

    def add(self, task: str, round: int, counted: Iterable[StoredSeal]) -> None:
        """Keep the seals of reports that a round has counted."""
        rows = [{"task": task, "round": round, **vars(each)} for each in counted]
        if rows:
            self._connection.execute(seals.insert(), rows)

    def of(self, task: str, round: int) -> list[SealOf]:
        """Those of all reports that a round has counted, by their assignments."""
        columns = ("assignment", "device", "assigned", "seal", "signature")
        query = (
            sa.select(*(seals.c[name] for name in columns))
            .add_columns(devices.c.public_key, devices.c.enrolment)
            .join(devices, devices.c.device == seals.c.device)
            .where(_at(seals, task, round))
            .order_by(seals.c.assignment)
        )
        return [
            SealOf(name, device, assigned, bytes(seal), bytes(signature), key, enrolment)
            for name, device, assigned, seal, signature, key, enrolment in (
                self._connection.execute(query)
            )
        ]

    # the sum that was opened last

    def last(self, task: str) -> bytes:
        """What was kept of the reports of the sum that was opened last; empty before the first."""
        query = sa.select(last_sums.c.members).where(last_sums.c.task == task)
        return bytes(self._connection.execute(query).scalar_one_or_none() or b"")

    def set_last(self, task: str, members: bytes) -> None:
        """Keep it, in the place of the one before."""
        self._connection.execute(last_sums.delete().where(last_sums.c.task == task))
        self._connection.execute(last_sums.insert(), {"task": task, "members": members})


def _at(table: sa.Table, task: str, round: int) -> sa.ColumnElement[bool]:
    return (table.c.task == task) & (table.c.round == round)

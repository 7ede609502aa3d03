"""SecAgg+ rows: how far the steps of a round are and what its devices sent, inside a transaction.

What devices sent is kept until the round ends, and nothing of it afterwards but how many came to
each step. Nothing here is secret to a server: it has been sent it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from device_runtime import config
from device_runtime.secagg_wire import Advertised, Box, Consent, Revealed, Shares
from device_runtime.weights import digest
from server.tables import assignments, devices, secagg_boxes, secagg_devices, secagg_rounds


class Step(StrEnum):
    """What the devices of a round are asked for, in order. The masked words are their reports."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    CONSENT = "consent"  # where the server may lie
    REVEALED = "revealed"


COUNTED = {
    Step.KEYS: "keys",
    Step.SHARES: "shares",
    Step.CONSENT: "consents",
    Step.REVEALED: "unmasked",
}


@dataclass(frozen=True)
class StoredSteps:
    """How far a round is. Sets of places are as they travel, empty before they are fixed."""

    step: Step = Step.KEYS
    order: str = ""
    shared: str = ""
    masked: str = ""


@dataclass(frozen=True)
class StoredPeer:
    """What a device has sent in an open round. Of what is long, its SHA-256."""

    device: str
    keys: Advertised
    place: int | None  # once the order is drawn
    # each empty before it came
    shares: str = ""  # SHA-256
    commitment: str = ""
    consent: str = ""
    unmasked: str = ""  # SHA-256


class SecaggRows:
    """Reading and writing inside one transaction."""

    def __init__(self, connection: sa.Connection):
        self._connection = connection

    # rounds

    def steps(self, task: str, round: int) -> StoredSteps:
        """How far a round is: nobody need have sent anything."""
        row = self._connection.execute(_STEPS, _named(task, round)).one_or_none()
        return StoredSteps() if row is None else StoredSteps(Step(row[0]), *row[1:])

    def save(self, task: str, round: int, steps: StoredSteps) -> None:
        """Keep how far a round is."""
        self._begun(task, round)
        values = {**vars(steps), "step": steps.step.value}
        at = _at(secagg_rounds, task, round)
        self._connection.execute(secagg_rounds.update().where(at).values(values))

    def counts(self, task: str, first: int, last: int) -> dict[int, dict[str, int]]:
        """By round, of those from first to last: how many devices came to each step."""
        columns = secagg_rounds.c
        query = sa.select(columns.round, *(columns[name] for name in COUNTED.values())).where(
            columns.task == task, columns.round >= first, columns.round <= last
        )
        return {
            number: dict(zip(COUNTED.values(), counts, strict=True))
            for number, *counts in self._connection.execute(query)
        }

    def forget(self, task: str, round: int) -> None:
        """Forget what the devices of a round have sent."""
        for table in (secagg_boxes, secagg_devices):
            self._connection.execute(table.delete().where(_at(table, task, round)))

    # devices

    def peer(self, task: str, round: int, device: str) -> StoredPeer | None:
        """What a device has sent; None before its keys."""
        named = _named(task, round) | {"of_device": device}
        row = self._connection.execute(_PEER_OF_DEVICE, named).one_or_none()
        return None if row is None else _peer(row)

    def peers(self, task: str, round: int) -> list[StoredPeer]:
        """What all devices have sent whose keys have come, by their places."""
        query = _PEER.where(_at(secagg_devices, task, round))
        query = query.order_by(secagg_devices.c.place, secagg_devices.c.device)
        return [_peer(row) for row in self._connection.execute(query)]

    def with_key(self, task: str, round: int, keys: Advertised) -> list[Advertised]:
        """What devices have advertised that has one of the keys in it."""
        names, columns = (keys.mask_key, keys.box_key), secagg_devices.c
        alike = columns.mask_key.in_(names) | columns.box_key.in_(names)
        query = _PEER.where(_at(secagg_devices, task, round), alike)
        return [_peer(row).keys for row in self._connection.execute(query)]

    def add_keys(self, task: str, round: int, device: str, keys: Advertised) -> None:
        """Keep the keys of a device that has sent none before."""
        self._came(task, round, Step.KEYS)
        row = {"task": task, "round": round, "device": device, "mask_key": keys.mask_key}
        row |= {"box_key": keys.box_key, "signature": keys.signature}
        self._connection.execute(secagg_devices.insert(), row)

    def arrange(self, task: str, round: int, places: Mapping[str, int]) -> None:
        """Keep where devices stand; those whose place is not among them are out of the round."""
        mine = _at(secagg_devices, task, round)
        changed = secagg_devices.update().where(
            mine, secagg_devices.c.device == sa.bindparam("of_device")
        )
        rows = [{"of_device": device, "place": place} for device, place in places.items()]
        self._connection.execute(changed.values(place=sa.bindparam("place")), rows)
        left = mine & secagg_devices.c.place.is_(None)
        self._connection.execute(secagg_devices.delete().where(left))

    def add_shares(self, task: str, round: int, place: int, shares: Shares) -> None:
        """Keep the shares of the device at a place, which has sent none before."""
        self._came(task, round, Step.SHARES)
        name = digest(config.to_json(shares))
        self._change(task, round, place, shares=name, commitment=shares.commitment)
        rows = [
            {
                "task": task,
                "round": round,
                "receiver": box.place,
                "sender": place,
                "box": bytes.fromhex(box.box),
            }
            for box in shares.boxes
        ]
        self._connection.execute(secagg_boxes.insert(), rows)

    def boxes(self, task: str, round: int, receiver: int) -> list[Box]:
        """The boxes for the device at a place, by their senders'."""
        query = sa.select(secagg_boxes.c.sender, secagg_boxes.c.box).where(
            _at(secagg_boxes, task, round), secagg_boxes.c.receiver == receiver
        )
        rows = self._connection.execute(query.order_by(secagg_boxes.c.sender))
        return [Box(sender, bytes(box).hex()) for sender, box in rows]

    def add_consent(self, task: str, round: int, place: int, consent: Consent) -> None:
        """Keep the consent of the device at a place, which has sent none before."""
        self._came(task, round, Step.CONSENT)
        self._change(task, round, place, consent=consent.signature)

    def add_revealed(self, task: str, round: int, place: int, revealed: Revealed) -> None:
        """Keep what the device at a place reveals, which has sent nothing of it before."""
        self._came(task, round, Step.REVEALED)
        body = config.to_json(revealed)
        self._change(task, round, place, revealed=body.decode(), unmasked=digest(body))

    def revealed(self, task: str, round: int) -> dict[int, Revealed]:
        """What devices have revealed, by their places."""
        query = sa.select(secagg_devices.c.place, secagg_devices.c.revealed).where(
            _at(secagg_devices, task, round), secagg_devices.c.unmasked != ""
        )
        return {
            place: config.from_json(Revealed, body.encode(), "revealed")
            for place, body in self._connection.execute(query)
        }

    # who is waited for

    def waited_for(
        self, task: str, round: int, step: Step, consented: bool = True, most: int | None = None
    ) -> list[str]:
        """Devices at work whose message of a step has not come, at most so many of them. Of the
        last two steps they are those whose masked words are counted; of the last, if `consented`,
        those alone that have.
        """
        query = _WAITED_FOR[step, step is Step.REVEALED and consented]
        return list(
            self._connection.execute(
                query if most is None else query.limit(most), _named(task, round)
            ).scalars()
        )

    def _came(self, task: str, round: int, step: Step) -> None:
        """Count one message more of a step."""
        self._begun(task, round)
        column = secagg_rounds.c[COUNTED[step]]
        changed = secagg_rounds.update().where(_at(secagg_rounds, task, round))
        self._connection.execute(changed.values({column: column + 1}))

    def _begun(self, task: str, round: int) -> None:
        at = _at(secagg_rounds, task, round)
        if self._connection.execute(sa.select(secagg_rounds.c.step).where(at)).first() is None:
            row = {"task": task, "round": round, "step": Step.KEYS.value}
            self._connection.execute(secagg_rounds.insert(), row)

    def _change(self, task: str, round: int, place: int, **values: str) -> None:
        at = _at(secagg_devices, task, round) & (secagg_devices.c.place == place)
        self._connection.execute(secagg_devices.update().where(at).values(values))


# built once: building a statement takes longer than running it
_STEPS = sa.select(
    *(secagg_rounds.c[name] for name in ("step", "order", "shared", "masked"))
).where(
    secagg_rounds.c.task == sa.bindparam("of_task"),
    secagg_rounds.c.round == sa.bindparam("of_round"),
)
_PEER = sa.select(
    secagg_devices.c.device,
    devices.c.public_key,
    *(secagg_devices.c[name] for name in ("mask_key", "box_key", "signature", "place")),
    *(secagg_devices.c[name] for name in ("shares", "commitment", "consent", "unmasked")),
).select_from(secagg_devices.join(devices, devices.c.device == secagg_devices.c.device))


_PEER_OF_DEVICE = _PEER.where(
    secagg_devices.c.task == sa.bindparam("of_task"),
    secagg_devices.c.round == sa.bindparam("of_round"),
    secagg_devices.c.device == sa.bindparam("of_device"),
)


def _waiting(step: Step, consented: bool) -> Any:
    of, status = secagg_devices.c, assignments.c.status
    is_open, is_counted = status == "open", status == "counted"
    lacks = {
        Step.KEYS: is_open & of.device.is_(None),
        Step.SHARES: is_open & (sa.func.coalesce(of.shares, "") == ""),
        Step.MASKED: is_open,
        Step.CONSENT: is_counted & (of.consent == ""),
        Step.REVEALED: is_counted & (of.unmasked == ""),
    }
    same = (of.task == assignments.c.task) & (of.round == assignments.c.round)
    same &= of.device == assignments.c.device
    query = (
        sa.select(assignments.c.device)
        .select_from(assignments.outerjoin(secagg_devices, same))
        .where(assignments.c.task == sa.bindparam("of_task"))
        .where(assignments.c.round == sa.bindparam("of_round"))
        .where(lacks[step])
    )
    return query.where(of.consent != "") if consented else query


_WAITED_FOR = {(step, False): _waiting(step, False) for step in Step} | {
    (Step.REVEALED, True): _waiting(Step.REVEALED, True)
}


def _named(task: str, round: int) -> dict[str, Any]:
    return {"of_task": task, "of_round": round}


def _at(table: sa.Table, task: str, round: int) -> Any:
    return (table.c.task == task) & (table.c.round == round)


def _peer(row: Any) -> StoredPeer:
    device, public_key, mask_key, box_key, signature, *rest = row
    return StoredPeer(device, Advertised(public_key, mask_key, box_key, signature), *rest)

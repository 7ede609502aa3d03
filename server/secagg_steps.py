"""SecAgg+ steps: how a round of SecAgg+ goes from one message of its devices to the next.

    keys ----> shares ----> masked ----> consent ----> revealed ----> the mask of the sum
     |  order    |   shared    |  masked    (semi-malicious class)
     v  drawn    v   fixed     v  fixed
    whoever has not sent the message by its time has dropped out

A step ends once all have sent its message, or when its share of the reporting window is over; the
round goes on while as many are left as open each secret, and else is abandoned. What a step ends
with is fixed in the transaction that ends it, so every device is told the same, by every replica
and after every crash. The cryptography is `secagg.py`'s; which messages a device may send and hear
is decided here. Times are those of the round: seconds of its clock, after the last admission.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from cachetools import LRUCache

from device_runtime import config
from device_runtime.causes import MEANING, Cause
from device_runtime.errors import RunError
from device_runtime.neighbours import Impossible
from device_runtime.secagg import Distrust, Session
from device_runtime.secagg_wire import (
    Advertised,
    Announced,
    Consent,
    Consents,
    Heard,
    Inbox,
    Revealed,
    Roster,
    Sent,
    Shares,
    from_bits,
    to_bits,
)
from device_runtime.weights import digest
from device_runtime.wire import Ack, Phase, Reject
from server import secagg
from server.ledger import Ledger
from server.mechanism import layout_of
from server.opening import Frozen, Mask, Never, Opener, Waiting
from server.requests import Hearing, Refused, Telling
from server.rounds import Dropped, RoundState, Rules
from server.secagg import Circle, Counted
from server.secagg_rows import Step, StoredPeer, StoredSteps
from server.store import AssignmentStatus, Rows, Store, StoredAssignment
from server.task import Task, opens_itself, task_id, terms

log = logging.getLogger("fedboard.server")

ORDER = tuple(Step)
# of the reporting window, from its begin: devices train before they send keys, so that one which
# is lost while it trains costs the others nothing
SHARE: Mapping[Step, float] = {
    Step.KEYS: 0.6,
    Step.SHARES: 0.7,
    Step.MASKED: 0.8,
    Step.CONSENT: 0.9,
    Step.REVEALED: 1.0,
}
ASKS = 120  # of a device in a reporting window that it waits through
LONGEST_S = 30.0  # until it asks again
LEAST_S = 1.0
CIRCLES = 8  # in memory
# the step whose message a device sends, and that from which on it hears
SENT_IN: Mapping[type[Sent], Step] = {
    Advertised: Step.KEYS,
    Shares: Step.SHARES,
    Consent: Step.CONSENT,
    Revealed: Step.REVEALED,
}
HEARD_FROM: Mapping[type[Heard], Step] = {
    Roster: Step.SHARES,
    Inbox: Step.MASKED,
    Announced: Step.CONSENT,
    Consents: Step.REVEALED,
}


def ends_at(step: Step, state: RoundState, rules: Rules) -> float:
    """When a step is over, whoever is missing."""
    began = state.last_admitted
    return np.inf if began is None else began + SHARE[step] * rules.reporting_s


def promised_s(task: Task) -> float:
    """Seconds from its admission in which a device is waited for: where devices wait for one
    another, until the last step is over of those who came last.
    """
    return task.rules.reporting_s + (task.rules.claim if opens_itself(task) else 0.0)


def is_past(step: Step, other: Step) -> bool:
    """Whether a step comes after another."""
    return ORDER.index(step) > ORDER.index(other)


@dataclass
class Steps:
    """The steps of all tasks of a server whose devices open their sums themselves. Remembers no
    more than what it can read again.
    """

    store: Store
    server: str  # random name of the database
    rng: np.random.Generator
    draw: Callable[[], str] = lambda: secrets.token_hex(32)  # an order that nobody can foretell

    def __post_init__(self) -> None:
        self._circles: LRUCache[tuple[str, int, str], Circle] = LRUCache(CIRCLES)
        self._lock = threading.Lock()

    @property
    def opener(self) -> Opener:
        """How sums are opened by the devices' own shares."""
        return Opener(self.freeze, self.ask, ended=lambda frozen: None)

    # time

    def is_due(self, rows: Rows, task: Task, state: RoundState, now: float) -> bool:
        """Whether a step of an open round has ended."""
        if not opens_itself(task) or state.phase not in (Phase.REPORTING, Phase.UNMASKING):
            return False
        step = rows.secagg.steps(task.name, state.round).step
        if step is Step.REVEALED or (step is Step.MASKED and state.phase is Phase.UNMASKING):
            return False  # the opener sees to it
        return self._is_over(rows, task, state, step, now)

    def settle(self, rows: Rows, ledger: Ledger) -> None:
        """End the steps that are over."""
        for name, round in list(ledger.rounds.items()):
            task = ledger.tasks[name].task
            step: Step | None = None
            while self.is_due(rows, task, ledger.rounds[name].state, ledger.now):
                before, step = step, rows.secagg.steps(name, round.state.round).step
                if step is before:
                    break
                self._end(rows, ledger, task, step)

    def _is_over(self, rows: Rows, task: Task, state: RoundState, step: Step, now: float) -> bool:
        if now >= ends_at(step, state, task.rules):
            return True
        consented = terms(task).semi_malicious
        return not rows.secagg.waited_for(task.name, state.round, step, consented, most=1)

    def _end(self, rows: Rows, ledger: Ledger, task: Task, step: Step) -> None:
        number = ledger.rounds[task.name].state.round
        before = rows.secagg.steps(task.name, number)
        if step is Step.CONSENT:
            rows.secagg.save(task.name, number, replace(before, step=Step.REVEALED))
            return
        self._drop(rows, ledger, task, step)
        state = ledger.rounds[task.name].state
        if state.phase is Phase.ABANDONED:
            rows.say_of_round(task.name, number, _too_few_left(state.staying, step))
        if state.phase is not Phase.REPORTING or step is Step.MASKED:
            return  # too few are left, or the round has its reports
        at_work = {each.device for each in self._at_work(rows, ledger, task.name)}
        peers = [each for each in rows.secagg.peers(task.name, number) if each.device in at_work]
        if step is Step.KEYS:
            self._arrange(rows, ledger, task, peers)
        else:
            self._fix_shared(rows, ledger, task, before, peers)

    def _drop(self, rows: Rows, ledger: Ledger, task: Task, step: Step) -> None:
        """Let go of devices whose message of a step has not come in time."""
        number = ledger.rounds[task.name].state.round
        late = set(rows.secagg.waited_for(task.name, number, step))
        for work in self._at_work(rows, ledger, task.name):
            if work.device in late:
                ledger.settle(work, status=AssignmentStatus.CLOSED, cause=Cause.TIMED_OUT)
                ledger.tell(task.name, Dropped(ledger.now))

    def _at_work(self, rows: Rows, ledger: Ledger, task: str) -> list[StoredAssignment]:
        """Work of the open round that is not done, as the ledger has it by now."""
        stored = rows.open_work(task, ledger.rounds[task].state.round)
        works = [ledger.assignments.get(each.assignment, each) for each in stored]
        return [each for each in works if each.status is AssignmentStatus.OPEN]

    def _arrange(self, rows: Rows, ledger: Ledger, task: Task, peers: list[StoredPeer]) -> None:
        number, order = ledger.rounds[task.name].state.round, self.draw()
        session = self.session(task, number)
        circle = secagg.arranged(session, [each.keys for each in peers], order)
        if isinstance(circle, Impossible):
            _abandon(rows, ledger, task, f"keys of {len(peers)} devices came: {circle.value}")
            return
        places = {each.device: circle.places[each.keys.public_key] for each in peers}
        rows.secagg.arrange(task.name, number, places)
        rows.secagg.save(task.name, number, StoredSteps(Step.SHARES, order))

    def _fix_shared(
        self,
        rows: Rows,
        ledger: Ledger,
        task: Task,
        before: StoredSteps,
        peers: list[StoredPeer],
    ) -> None:
        number = ledger.rounds[task.name].state.round
        circle = self._circle(rows, task, number, before)
        shared = frozenset(place for place, each in _placed(peers).items() if each.shares)
        if lacking := secagg.lacking(circle, Counted(shared, shared), shared):
            _abandon(rows, ledger, task, _too_few(len(lacking), "shares"))
            return
        bits = to_bits(shared, len(circle.keys))
        rows.secagg.save(task.name, number, replace(before, step=Step.MASKED, shared=bits))

    # what devices send and hear

    def answer(
        self, asked: Telling | Hearing, work: StoredAssignment, ledger: Ledger, rows: Rows
    ) -> Ack | Reject | Heard | Refused:
        """The answer to a message of a device about its work."""
        task = ledger.tasks[work.task].task
        if not opens_itself(task):
            return Refused(Cause.MALFORMED, "the devices of this task do not open its sums")
        round = ledger.rounds.get(task.name)
        over = self._why_over(work, round is not None and round.state.round == work.round)
        if over is not None or round is None:
            return over or Reject(Cause.ROUND_CLOSED, 0.0)
        stored = rows.secagg.steps(task.name, work.round)
        peer = rows.secagg.peer(task.name, work.round, work.device)
        if isinstance(asked, Hearing):
            return self._heard(asked.kind, task, peer, work, stored, rows)
        distrust = self._told(asked.message, task, peer, work, stored, rows)
        if isinstance(distrust, Distrust):
            cause = Cause.BAD_SHARES
            if work.status is AssignmentStatus.OPEN:
                ledger.settle(work, status=AssignmentStatus.REFUSED, cause=cause)
                ledger.tell(task.name, Dropped(ledger.now))
            return Refused(cause, f"{MEANING[cause].sentence}: {distrust.value}")
        return distrust

    def why_not_masked(self, work: StoredAssignment, task: Task, rows: Rows) -> Refused | None:
        """Why the masked words of a device at work are not taken now."""
        if not opens_itself(task):
            return None
        step = rows.secagg.steps(task.name, work.round).step
        return None if step is Step.MASKED else _out_of_turn(Step.MASKED, step)

    def _why_over(self, work: StoredAssignment, is_open: bool) -> Reject | Refused | None:
        """Why a device has nothing to send or hear any more."""
        match work.status:
            case AssignmentStatus.REFUSED if work.cause is not None:
                return Refused(work.cause)
            case AssignmentStatus.ABANDONED:
                return Refused(Cause.ABANDONED, "the device has abandoned this assignment")
            case AssignmentStatus.CLOSED:
                cause = MEANING[work.cause].told_late if work.cause else Cause.ROUND_CLOSED
                return Reject(cause, 0.0)
        return None if is_open else Reject(Cause.ROUND_CLOSED, 0.0)

    def _heard(
        self,
        kind: type[Heard],
        task: Task,
        peer: StoredPeer | None,
        work: StoredAssignment,
        stored: StoredSteps,
        rows: Rows,
    ) -> Heard | Reject | Refused:
        at, is_counted = (task.name, work.round), work.status is AssignmentStatus.COUNTED
        if peer is None or (kind in (Announced, Consents) and not is_counted):
            return Refused(Cause.MALFORMED, "the device has not sent what comes before")
        if is_past(_from(kind, terms(task).semi_malicious), stored.step):
            return self._wait(task.rules)
        circle = self._circle(rows, task, work.round, stored)
        place = circle.places[peer.keys.public_key]
        if kind is Roster:
            return secagg.roster(circle, place)
        if kind is Inbox:
            shared = from_bits(stored.shared, len(circle.keys), "shared")
            boxes = (box for box in rows.secagg.boxes(*at, place) if box.place in shared)
            return Inbox(stored.shared, tuple(boxes))
        if kind is Announced:
            return Announced(stored.masked)
        peers = _placed(rows.secagg.peers(*at)).items()
        given = {at: Consent(each.consent) for at, each in peers if each.consent}
        return secagg.consents(circle, place, given)

    def _told(
        self,
        message: Sent,
        task: Task,
        peer: StoredPeer | None,
        work: StoredAssignment,
        stored: StoredSteps,
        rows: Rows,
    ) -> Ack | Reject | Refused | Distrust:
        """Keep a message, unless it may not be."""
        step, number = SENT_IN[type(message)], work.round
        if peer is None and not isinstance(message, Advertised):
            return Refused(Cause.MALFORMED, "the device has not sent its keys")
        if peer is not None and (sent := _sent(peer, message)):
            same = sent == _name(message)
            detail = "this step has another message of the device already"
            return Ack(True) if same else Refused(Cause.DIFFERENT_UPDATE, detail)
        if is_past(stored.step, step):
            return Reject(Cause.LATE, 0.0)
        if stored.step is not step:
            return _out_of_turn(step, stored.step)
        session = self.session(task, number)
        if isinstance(message, Advertised):
            public = rows.public_key(work.device) or ""
            alike = rows.secagg.with_key(task.name, number, message)
            distrust = secagg.why_not_keys(session, public, message, alike)
            if distrust is None:
                rows.secagg.add_keys(task.name, number, work.device, message)
            return distrust or Ack(True)
        circle = self._circle(rows, task, number, stored)
        place = circle.places[peer.keys.public_key] if peer is not None else 0
        if isinstance(message, Shares):
            distrust = secagg.why_not_shares(circle, place, message)
            if distrust is None:
                rows.secagg.add_shares(task.name, number, place, message)
            return distrust or Ack(True)
        counted = _counted(stored, len(circle.keys))
        if isinstance(message, Consent):
            distrust = secagg.why_not_consent(circle, place, counted, message)
            if distrust is None:
                rows.secagg.add_consent(task.name, number, place, message)
        else:
            distrust = secagg.why_not_revealed(circle, place, counted, message)
            if distrust is None:
                rows.secagg.add_revealed(task.name, number, place, message)
        return distrust or Ack(True)

    def _wait(self, rules: Rules) -> Reject:
        """When to ask again for what is not there yet."""
        seconds = min(LONGEST_S, max(LEAST_S, rules.reporting_s / ASKS))
        return Reject(Cause.WAITING, round(seconds * float(self.rng.uniform(0.8, 1.2)), 3))

    # the sum

    def freeze(self, rows: Rows, frozen: Frozen, now: float) -> None:
        """Fix whose masked words are counted: from now on devices hear of them."""
        name, number = frozen.task.name, frozen.round
        before = rows.secagg.steps(name, number)
        devices = set(rows.counted_in(name, number, number))
        peers = _placed(rows.secagg.peers(name, number))
        masked = (place for place, each in peers.items() if each.device in devices)
        step = Step.CONSENT if terms(frozen.task).semi_malicious else Step.REVEALED
        bits = to_bits(masked, len(peers))
        rows.secagg.save(name, number, replace(before, step=step, masked=bits))

    def ask(self, frozen: Frozen, now: float) -> Mask | Waiting | Never:
        """The mask of a frozen round's sum, once its devices have revealed what opens it."""
        task, number = frozen.task, frozen.round
        with self.store.reading() as rows:
            round = rows.open_rounds().get(task.name)
            if round is None or round.state.round != number:
                return Waiting("another server has ended the round")
            stored = rows.secagg.steps(task.name, number)
            circle = self._circle(rows, task, number, stored)
            peers = _placed(rows.secagg.peers(task.name, number))
            opens = stored.step is Step.REVEALED
            opens = opens and self._is_over(rows, task, round.state, stored.step, now)
            revealed = rows.secagg.revealed(task.name, number) if opens else {}
        counted = _counted(stored, len(circle.keys))
        alive = counted.masked
        if stored.step is Step.REVEALED and terms(task).semi_malicious:
            alive = frozenset(place for place in alive if peers[place].consent)
        if lacking := secagg.lacking(circle, counted, alive):
            return Never(_too_few(len(lacking), stored.step.value))
        if not opens:
            return Waiting(f"what its devices {_SENDING[stored.step]}")
        opened = secagg.mask_sum(
            circle,
            counted,
            {place: each.commitment for place, each in peers.items() if each.commitment},
            revealed,
            layout_of(task),
        )
        if opened.wrong:
            about = {"task": task.name, "round": number, "count": len(opened.wrong)}
            log.warning("wrong shares came", extra=about)
        return Mask(opened.mask) if isinstance(opened, secagg.Opened) else Never(opened.reason)

    # what is read again

    def session(self, task: Task, round: int) -> Session:
        """What all messages of a round are bound to."""
        return Session(self.server, task_id(self.server, task.name), round, terms(task))

    def _circle(self, rows: Rows, task: Task, round: int, stored: StoredSteps) -> Circle:
        """Who stands where, once the order has been drawn."""
        at = task.name, round, stored.order
        with self._lock:
            known = self._circles.get(at)
        if known is not None:
            return known
        keys = [each.keys for each in rows.secagg.peers(task.name, round)]
        circle = secagg.arranged(self.session(task, round), keys, stored.order)
        if isinstance(circle, Impossible):
            raise RunError(
                f"task {task.name}",
                f"round {round} has keys of {len(keys)} devices, of which no circle can be made",
                "restore the database from a backup",
            )
        with self._lock:
            self._circles[at] = circle
        return circle


_SENDING = {Step.CONSENT: "were told of each other", Step.REVEALED: "reveal of each other"}


def _abandon(rows: Rows, ledger: Ledger, task: Task, reason: str) -> None:
    round = ledger.rounds[task.name]
    rows.say_of_round(task.name, round.state.round, reason)
    ledger.save(replace(round, state=replace(round.state, phase=Phase.ABANDONED)))


def _too_few(devices: int, step: str) -> str:
    return f"after the step of {step} too few neighbours of {devices} devices are left"


def _too_few_left(devices: int, step: Step) -> str:
    return f"after the step of {step.value} {devices} devices are left, which are too few"


def _out_of_turn(wanted: Step, step: Step) -> Refused:
    detail = f"the round is at the step of {step.value}, not of {wanted.value}"
    return Refused(Cause.MALFORMED, detail)


def _from(kind: type[Heard], semi_malicious: bool) -> Step:
    """From which step on a message is heard: in the semi-honest class nobody consents."""
    step = HEARD_FROM[kind]
    return Step.REVEALED if step is Step.CONSENT and not semi_malicious else step


def _placed(peers: Iterable[StoredPeer]) -> dict[int, StoredPeer]:
    """By their places."""
    return {each.place: each for each in peers if each.place is not None}


def _counted(stored: StoredSteps, devices: int) -> Counted:
    return Counted(
        from_bits(stored.shared, devices, "shared"), from_bits(stored.masked, devices, "masked")
    )


def _sent(peer: StoredPeer, message: Sent) -> str:
    """The name of what a device has sent in a message's step; empty if it has not."""
    match message:
        case Advertised():
            return _name(peer.keys)
        case Shares():
            return peer.shares
        case Consent():
            return peer.consent and _name(Consent(peer.consent))
    return peer.unmasked


def _name(message: Sent) -> str:
    return digest(config.to_json(message))

"""The ledger of one group: what its requests read of the store and write to it, each at once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from device_runtime.causes import Cause
from device_runtime.update import Sealed
from device_runtime.wire import UNDER_WAY, Ack, Phase, Reject, Signed
from server import pacing, places
from server.budget import Spending
from server.chain import Given
from server.eligibility import History
from server.pacing import Told
from server.places import Ticket
from server.records import changed
from server.requests import Answer, Nonce
from server.rounds import Asked, Event, RoundState, Tick, Withdrawn, advance, frozen, happened
from server.seal_rows import StoredSeal
from server.store import (
    ASSIGNED,
    DROPPED,
    REFUSED,
    AssignmentStatus,
    Known,
    Participation,
    Rows,
    StoredAssignment,
    StoredCheckIn,
    StoredRound,
)
from server.task import assignment_name, is_masked, round_rules

# of a check-in that is not the last word about the device in this round
_PROVISIONAL = (Cause.SELECTING.value, Cause.TOO_EARLY.value)

_TELLS = (Ack, Reject)  # answers that say when to come again


class Ledger:
    """Reads on construction; `write` puts down the changes in the same transaction. A request sees
    what those before it in the group did.
    """

    def __init__(
        self,
        rows: Rows,
        now: float,
        devices: Iterable[str] = (),
        assignments: Iterable[str] = (),
        nonces: Iterable[tuple[str, Nonce]] = (),
    ):
        self._rows, self.now = rows, now
        names, used = sorted(set(devices)), {(device, nonce.text) for device, nonce in nonces}
        self.tasks = {stored.task.name: stored for stored in rows.tasks()}
        self.rounds = rows.open_rounds()
        # by task, round and checkpoint: who signed it, as far as it was asked for
        self.proofs: dict[tuple[str, int, str], Given | None] = {}
        self._settled: dict[str, RoundState] = {}  # as an event of now has left them
        self.frozen: list[str] = []  # tasks whose rounds have got enough, and have masked sums
        self._changed_rounds: dict[str, StoredRound] = {}
        for task, round in list(self.rounds.items()):
            if (round.state.last_admitted or now) > now + pacing.SKEW_S:
                rows.admitted_by(task, now)
            self.tell(task, Tick(now))
            self._drawn(round)
        self._known = rows.known(names) if names else {}
        if ahead := [
            device for device, each in self._known.items() if each.enrolled_at > now + pacing.SKEW_S
        ]:
            rows.enrolled_by(ahead, now)
        self._published: dict[str, frozenset[int]] = {}
        self._spending: Mapping[str, Spending] | None = None
        self.seen = rows.seen(used) if used else set()
        self.assignments = rows.assignments(sorted(set(assignments))) if assignments else {}
        if names:
            self.assignments |= {each.assignment: each for each in rows.work_of(names)}
            self._participations = rows.participations(names)
            self._check_ins = rows.check_ins_of(names)
        # names of assignments by device and task
        self._works: dict[tuple[str, str], list[str]] = {}
        for each in self.assignments.values():
            self._works.setdefault((each.device, each.task), []).append(each.assignment)
        self._new_nonces: list[tuple[str, Nonce]] = []
        self._changed_told: dict[str, Told] = {}
        self._changed_assignments: dict[str, StoredAssignment] = {}
        self._changed_participations: dict[tuple[str, str], Participation] = {}
        self._changed_check_ins: dict[tuple[str, str], StoredCheckIn] = {}
        self._new_seals: dict[tuple[str, int], list[StoredSeal]] = {}
        self._seal_keys: dict[tuple[str, int], Signed | None] = {}
        self._counts: dict[tuple[str, int], Counter[str]] = {}
        self._causes: Counter[tuple[str, int, str, str]] = Counter()
        self._named: Mapping[str, str] | None = None

    def index(self, population: str) -> str:
        """SHA-256 of the index of a population's releases; empty if it has none."""
        if self._named is None:
            self._named = self._rows.releases.named()
        return self._named.get(population, "")

    def _drawn(self, before: StoredRound) -> None:
        """Draw the tickets of a window that has just come to its end."""
        task, after = self.tasks[before.task].task, self.rounds[before.task].state
        if before.state.places.asking and after.places.claiming:
            asked = self._rows.tickets(task.name, after.places.window)
            secret = f"{task.seed} {task.name} {after.round} {after.places.window}"
            places_of = places.draw(asked, after.places.seats, secret)
            self._rows.place_tickets(task.name, places_of)

    @property
    def over(self) -> list[StoredRound]:
        """Rounds that have come to their end and are not closed, nor wait for what opens their
        sums.
        """
        return [each for each in self.rounds.values() if each.state.phase not in UNDER_WAY]

    def is_new(self, device: str, nonce: Nonce) -> bool:
        """Note a nonce; False if the device used it before."""
        if (device, nonce.text) in self.seen:
            return False
        self.seen.add((device, nonce.text))
        self._new_nonces.append((device, nonce))
        return True

    def is_enrolled(self, device: str) -> bool:
        """Whether the device has a name here."""
        return device in self._known

    def told(self, device: str) -> Told | None:
        """When the device was told to come again, if that is known."""
        return self._known[device].told

    def tell_when(self, device: str, answer: Answer) -> None:
        """Remember when an answer lets the device come again. What says that it came too early
        lets it wait as long as before.
        """
        if isinstance(answer, _TELLS) and device in self._known:
            if isinstance(answer, Reject) and answer.cause is Cause.TOO_EARLY:
                return
            told = Told(self.now, self.now + answer.retry_in_s)
            self._known[device] = Known(self._known[device].enrolled_at, told)
            self._changed_told[device] = told

    def ticket(self, device: str, task: str) -> Ticket | None:
        """The device's ticket of the newest window of a task."""
        kept, round = self._check_ins.get((device, task)), self.rounds[task].state
        ticket = None if kept is None else kept.ticket
        return ticket if ticket is not None and ticket.window == round.places.window else None

    def ask(self, device: str, task: str) -> None:
        """Give a device a ticket: of the open window, or of one that it opens."""
        self.tell(task, Asked(self.now))
        window = self.rounds[task].state.places.window
        self.note_check_in(device, task, Cause.SELECTING.value, Ticket(window))

    def withdraw(self, device: str, task: str) -> None:
        """Take a device's ticket from it, because it came too early."""
        if self.ticket(device, task) is not None:
            self.tell(task, Withdrawn(self.now))
        self.note_check_in(device, task, Cause.TOO_EARLY.value)

    def published(self, population: str) -> frozenset[int]:
        """The numbers of all releases that a population ever had."""
        if population not in self._published:
            self._published[population] = self._rows.release_scores.published(population)
        return self._published[population]

    def history(self, device: str, task: str) -> History:
        """What eligibility needs to know of an enrolled device."""
        counted = self._participations.get((device, task))
        return History(
            self._known[device].enrolled_at,
            None if counted is None else counted.last_counted,
            0 if counted is None else counted.counted,
            counted is not None and counted.barred,
            None if counted is None else counted.last_sum,
            0 if counted is None else counted.in_sums,
        )

    def next_sum(self, task: str) -> int:
        """The number that the next sum of a task with noise will have."""
        if self._spending is None:
            self._spending = self._rows.spending.all()
        kept = self._spending.get(task)
        return 1 if kept is None else kept.happened.sums + 1

    def work(self, device: str, task: str) -> StoredAssignment | None:
        """The device's open assignment in a task; else, of a task whose rounds have a device once,
        the one it had in the open round.
        """
        mine = self.works(device, task)
        if not mine:
            return None
        still_open = next((each for each in mine if each.status is AssignmentStatus.OPEN), None)
        if still_open is not None or self.tasks[task].task.rules.buffered:
            return still_open
        return next((each for each in mine if each.round == self.rounds[task].state.round), None)

    def works(self, device: str, task: str) -> list[StoredAssignment]:
        """Those of a device's assignments in a task that were read or given."""
        return [self.assignments[name] for name in self._works.get((device, task), ())]

    def tell(self, task: str, event: Event) -> bool:
        """Let an event happen to the open round of a task; whether more than time has passed."""
        before = self.rounds[task].state
        rules = round_rules(self.tasks[task].task)
        is_settled = self._settled.get(task) is before and event.at == self.now and rules.claim > 0
        after = (happened if is_settled else advance)(before, event, rules)
        if event.at == self.now:
            self._settled[task] = after
        if after.phase is not before.phase and is_masked(self.tasks[task].task):
            after = frozen(after)
            if after.phase is Phase.UNMASKING:
                self.frozen.append(task)
        if after is not before and after != before:
            self.save(changed(self.rounds[task], state=after))
        return (after.admitted, after.reported, after.dropped) != (
            before.admitted,
            before.reported,
            before.dropped,
        )

    def save(self, round: StoredRound) -> None:
        """Keep how far the open round of a task is."""
        self.rounds[round.task] = self._changed_rounds[round.task] = round

    def assign(self, device: str, task: str, holds: bool) -> StoredAssignment:
        """Give an admitted device work. `holds`: it has the round's checkpoint already, and counts
        as having downloaded it.
        """
        number = self.rounds[task].state.round
        before = sum(each.round == number for each in self.works(device, task))
        name = assignment_name(self.tasks[task].task, number, device, before)
        work = StoredAssignment(name, task, number, device, self.now, downloaded=holds)
        self.count(work, assigned=1, downloaded=int(holds))
        self.note_check_in(device, task, ASSIGNED)
        self._works.setdefault((device, task), []).append(name)
        self.settle(work)
        return work

    def settle(self, work: StoredAssignment, **changes: Any) -> None:
        """Keep an assignment with changes; a new cause moves it from the old one's column of the
        funnel to the new one's.
        """
        after = changed(work, **changes) if changes else work
        if after.status is not AssignmentStatus.OPEN:  # when it asked is nobody's business then
            after = changed(after, admitted_at=0.0)
        if after.cause != work.cause:
            for cause, more in ((work.cause, -1), (after.cause, 1)):
                if cause is not None:
                    self._causes[after.task, after.round, DROPPED, cause.value] += more
        self.assignments[work.assignment] = self._changed_assignments[work.assignment] = after

    def count(self, work: StoredAssignment, at_round: int | None = None, **more: int) -> None:
        """Add to the counts of an assignment's round, or of the round it is counted in."""
        self._counts.setdefault(
            (work.task, work.round if at_round is None else at_round), Counter()
        ).update(more)

    def note_check_in(
        self, device: str, task: str, outcome: str, ticket: Ticket | None = None
    ) -> None:
        """One outcome for each device and open round: the first refusal that is its last word, or
        ASSIGNED once it is assigned. `ticket` takes the place of the one it had.
        """
        before, number = self._check_ins.get((device, task)), self.rounds[task].state.round
        stays = before is not None and before.outcome not in _PROVISIONAL and outcome != ASSIGNED
        after = StoredCheckIn(before.outcome if before and stays else outcome, ticket)
        if after == before:
            return
        was = None if before is None else before.outcome
        if after.outcome != was:
            for cause, more in ((was, -1), (after.outcome, 1)):
                if cause not in (None, ASSIGNED):
                    self._causes[task, number, REFUSED, cause] += more
        self._check_ins[device, task] = self._changed_check_ins[device, task] = after

    def seal_key(self, task: str, round: int) -> Signed | None:
        """The helper's key of a round; None if it has not been fetched."""
        at = task, round
        if at not in self._seal_keys:
            self._seal_keys[at] = self._rows.seals.key(task, round)
        return self._seal_keys[at]

    def keep_seal(self, work: StoredAssignment, sealed: Sealed) -> None:
        """Keep what only the helper reads of a report that the open round counts."""
        kept = StoredSeal(work.assignment, work.device, work.round, sealed.seal, sealed.signature)
        at = work.task, self.rounds[work.task].state.round
        self._new_seals.setdefault(at, []).append(kept)

    def participated(self, device: str, task: str) -> None:
        """The open round of the task has counted the device."""
        number, before = self.rounds[task].state.round, self._participations.get((device, task))
        if before is None:
            after = Participation(number, 1)
        else:
            apart = number - before.last_counted
            smallest = (
                apart
                if before.smallest_separation is None
                else min(apart, before.smallest_separation)
            )
            after = changed(
                before,
                last_counted=number,
                counted=before.counted + 1,
                smallest_separation=smallest,
            )
        self._participations[device, task] = self._changed_participations[device, task] = after

    def write(self) -> None:
        """Put down everything that has changed. The last thing done with a ledger."""
        rows = self._rows
        if self._new_nonces:
            rows.note_nonces(self._new_nonces)
        rows.save_rounds(self._changed_rounds.values())
        rows.save_assignments(self._changed_assignments.values())
        rows.note_check_ins(self._changed_check_ins)
        rows.tell(self._changed_told)
        rows.save_participations(self._changed_participations)
        for (task, number), counted in self._new_seals.items():
            rows.seals.add(task, number, counted)
        rows.add_counts(self._counts)
        rows.add_outcomes(self._causes)

"""The ledger of one group: what its requests read of the store and write to it, each at once."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from device_runtime.wire import OPEN
from server.eligibility import History
from server.requests import Nonce
from server.rounds import Event, Tick, advance
from server.store import (
    ASSIGNED,
    DROPPED,
    REFUSED,
    AssignmentStatus,
    Participation,
    Rows,
    StoredAssignment,
    StoredRound,
)
from server.task import assignment_name


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
        self.enrolled_at = rows.enrolled_at(names) if names else {}
        self.seen = rows.seen(used) if used else set()
        self.assignments = rows.assignments(sorted(set(assignments))) if assignments else {}
        if names:
            self.assignments |= {each.assignment: each for each in rows.work_of(names)}
            self._participations = rows.participations(names)
            self._outcomes = rows.outcomes_of(names)
        # names of assignments by device and task
        self._works: dict[tuple[str, str], list[str]] = {}
        for each in self.assignments.values():
            self._works.setdefault((each.device, each.task), []).append(each.assignment)
        self._new_nonces: list[tuple[str, Nonce]] = []
        self._changed_rounds: dict[str, StoredRound] = {}
        self._changed_assignments: dict[str, StoredAssignment] = {}
        self._changed_participations: dict[tuple[str, str], Participation] = {}
        self._changed_outcomes: dict[tuple[str, str], str] = {}
        self._counts: dict[tuple[str, int], Counter[str]] = {}
        self._causes: Counter[tuple[str, int, str, str]] = Counter()
        for task in self.rounds:
            self.tell(task, Tick(now))

    @property
    def over(self) -> list[StoredRound]:
        """Rounds that have come to their end and are not closed."""
        return [each for each in self.rounds.values() if each.state.phase not in OPEN]

    def is_new(self, device: str, nonce: Nonce) -> bool:
        """Note a nonce; False if the device used it before."""
        if (device, nonce.text) in self.seen:
            return False
        self.seen.add((device, nonce.text))
        self._new_nonces.append((device, nonce))
        return True

    def history(self, device: str, task: str) -> History:
        """What eligibility needs to know of an enrolled device."""
        counted = self._participations.get((device, task))
        return History(
            self.enrolled_at[device],
            None if counted is None else counted.last_counted,
            0 if counted is None else counted.counted,
        )

    def work(self, device: str, task: str) -> StoredAssignment | None:
        """The device's assignment in the open round of a task, or an open one of a round
        before it.
        """
        mine = self.works(device, task)
        still_open = next((each for each in mine if each.status is AssignmentStatus.OPEN), None)
        return still_open or next(
            (each for each in mine if each.round == self.rounds[task].state.round), None
        )

    def works(self, device: str, task: str) -> list[StoredAssignment]:
        """Those of a device's assignments in a task that were read or given."""
        return [self.assignments[name] for name in self._works.get((device, task), ())]

    def tell(self, task: str, event: Event) -> bool:
        """Let an event happen to the open round of a task; whether more than time has passed."""
        before = self.rounds[task].state
        after = advance(before, event, self.tasks[task].task.rules)
        if after != before:
            self.save(replace(self.rounds[task], state=after))
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
        name = assignment_name(self.tasks[task].task, number, device)
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
        after = replace(work, **changes)
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

    def note_check_in(self, device: str, task: str, outcome: str) -> None:
        """One outcome for each device and open round: the first refusal, or ASSIGNED once it is
        assigned.
        """
        before, number = self._outcomes.get((device, task)), self.rounds[task].state.round
        if before is not None and (outcome != ASSIGNED or before == ASSIGNED):
            return
        for cause, more in ((before, -1), (outcome, 1)):
            if cause not in (None, ASSIGNED):
                self._causes[task, number, REFUSED, cause] += more
        self._outcomes[device, task] = self._changed_outcomes[device, task] = outcome

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
            after = Participation(number, before.counted + 1, smallest)
        self._participations[device, task] = self._changed_participations[device, task] = after

    def write(self) -> None:
        """Put down everything that has changed. The last thing done with a ledger."""
        rows = self._rows
        if self._new_nonces:
            rows.note_nonces(self._new_nonces)
        rows.save_rounds(self._changed_rounds.values())
        rows.save_assignments(self._changed_assignments.values())
        rows.note_check_ins(self._changed_outcomes)
        rows.save_participations(self._changed_participations)
        rows.add_counts(self._counts)
        rows.add_outcomes(self._causes)

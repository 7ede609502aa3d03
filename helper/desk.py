"""The desk: what a leader asks and the time -> an answer, once a round, or why there is none.

    within the budget? -> open the seals -> sum of masks, less noise -> answer, and what the next
    noise needs, on disk -> ledger, set, digests and account in one transaction -> the keys of the
    round, and of what this noise needed, are written over -> the answer is given

Killed anywhere before the transaction, nothing has been answered and the keys are there: what was
drawn nobody has seen, and the next try draws anew. Killed anywhere after it, the same set gets the
same bytes, no other set gets any, and no sum has the same noise. The seeds are in memory only.
"""

import logging
import threading
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config, log_wire, masking, packing, signing
from device_runtime.helper_wire import (
    MOST_ROUNDS_AHEAD,
    SEAL_KEY,
    AnswerTaken,
    HeadAsked,
    HeadSeen,
    HelperProblem,
    HelperReport,
    KeysAsked,
    Named,
    Noised,
    Refusal,
    Registered,
    Registration,
    SealKey,
    SealKeys,
    to_answer,
)
from device_runtime.masking import Random
from device_runtime.strategy import Buffers
from device_runtime.weights import digest
from device_runtime.wire import Signed
from helper import answers, budget, keys, log
from helper.answers import History
from helper.budget import Spent
from helper.buffers import NONE, Kept
from helper.keys import Keys
from helper.store import Rows, Store, StoredAnswer, StoredNoise, StoredTask
from helper.tasks import Rules, Task, admitted
from server import noising
from server.slots import Folder, Slots

logger = logging.getLogger("fedboard.server.helper")


@dataclass(frozen=True)
class Places:
    """Where a helper keeps what must be gone one day."""

    keys: Slots  # private halves of seal keys
    answers: Slots
    noise: Slots  # keys of the buffers of noise
    buffers: Slots  # these, sealed


def places_in(folder: Path, flushes: bool = True) -> Places:
    """The places of a helper in its folder, each by its name. `flushes`: whether what is put there
    is on disk at once, as it must be but in a simulation.
    """
    return Places(*(Folder(folder / each.name, flushes) for each in fields(Places)))


@dataclass(frozen=True)
class _Step:
    """One more sum with noise."""

    spent: Spent  # with it
    buffers: Buffers  # that its noise is made of, beside what is drawn


class Desk:
    """One helper. Its methods may be called from any thread."""

    def __init__(
        self,
        store: Store,
        places: Places,
        identity: Ed25519PrivateKey,
        rules: Rules,
        random: Random,
    ):
        """Goes on with what the store and the places hold. Raises RunError if they cannot be
        used.
        """
        self._store, self._places, self._identity, self._rules = store, places, identity, rules
        self._random = random
        self._keys = Keys(places.keys, random)
        self._buffers = Kept(places.noise, places.buffers, random)
        self._changing, self._answering = threading.Lock(), threading.Lock()
        self.refusals: Counter[str] = Counter()  # since this process began
        with self._changing:
            self._forget()

    # each of these is one message of `helper_wire`

    def report(self) -> HelperReport:
        """What anybody may know of this helper."""
        with self._store.reading() as rows:
            count, _ = rows.count_answers()
        rules = self._rules
        return HelperReport(
            rules.helper, rules.least, rules.enrolment_key, count, dict(self.refusals)
        )

    def register(self, asked: Registration, now: float) -> Registered | HelperProblem:
        """Take a task on, or the newer certificate of one."""
        with self._changing, self._store.transaction() as rows:
            before = rows.task(asked.task_id)
            task = admitted(asked, self._rules, now, None if before is None else before.task)
            if isinstance(task, HelperProblem):
                return self._no(task)
            rows.save_task(task, asked.certificate)
            return self._standing(rows, asked.task_id)

    def seal_keys(self, asked: KeysAsked) -> SealKeys | HelperProblem:
        """The keys of rounds to come, which are made when they are first asked for. Asking for a
        round ends the keys of those so long ago that nobody can be at work for them any more.
        """
        last = asked.first + asked.rounds - 1
        with self._changing:
            with self._store.reading() as rows:
                stored = rows.task(asked.task_id)
                if stored is None:
                    return self._unknown_task(asked.task_id)
                known = rows.seal_keys(asked.task_id)
            problem = self._why_no_keys(asked, stored, known)
            if problem is not None:
                return self._no(problem)
            rounds = range(asked.first, last + 1)
            made = {
                round: self._keys.make((asked.task_id, round))
                for round in rounds
                if round not in known
            }
            dead = max(
                stored.dead_through, last - MOST_ROUNDS_AHEAD - stored.task.terms.max_staleness
            )
            if made or dead > stored.dead_through:
                with self._store.transaction() as rows:
                    rows.add_seal_keys(asked.task_id, made)
                    rows.end_keys(asked.task_id, dead)
            if dead > stored.dead_through:
                self._forget()
        public = known | made
        return SealKeys(tuple(self._signed(stored, round, public[round]) for round in rounds))

    def answer(self, asked: Named, now: float) -> bytes | HelperProblem:
        """The answer to a round's reports, as `to_answer`: to one set of them, and to that as
        often as it asks.
        """
        set_digest = answers.set_digest(asked)
        of = asked.task_id, asked.round
        with self._answering:
            with self._changing:
                with self._store.reading() as rows:
                    stored = rows.task(asked.task_id)
                    given = rows.answer(*of)
                    public = rows.seal_keys(asked.task_id)
                    last, history = rows.last_answered(asked.task_id), rows.history(asked)
                    noise = rows.noise(asked.task_id)
                if stored is None:
                    return self._unknown_task(asked.task_id)
                if given is not None:
                    return self._again(of, given, set_digest)
                if asked.round <= last:
                    return self._no(
                        HelperProblem(
                            Refusal.UNKNOWN_ROUND,
                            f"expected a round after {last}, which was answered, found "
                            f"{asked.round}",
                        )
                    )
                private = {
                    round: self._keys.private((asked.task_id, round), public[round])
                    for round in {each.round for each in asked.reports} & public.keys()
                }
            task, by = stored.task, answers.SealKeys(public, private)
            problem = answers.why_not(asked, task, self._rules, history, by)
            turns = task.terms.basis(asked.round) != task.terms.basis(max(last, 0))
            step = problem or self._step(asked, task, noise, history, turns)
            if isinstance(step, HelperProblem):
                return self._no(step)
            seeds = answers.seeds(asked, task, by)
            if isinstance(seeds, HelperProblem):
                return self._no(seeds)
            words = masking.mask_sum(seeds, task.layout)
            noised, after = Noised(), None
            if step is not None:
                codes, after = noising.noise(task.terms, step.buffers, self._random)
                words, noised = answers.finished(words, codes, task), step.spent.told
            body = to_answer(noised, packing.to_bytes(words, task.layout))
            with self._changing:
                self._places.answers.put(keys.name(of), body)
                kept = None if step is None or after is None else self._kept(task, step, after)
                with self._store.transaction() as rows:
                    now_stored = rows.task(asked.task_id) or stored
                    dead = asked.round - task.terms.max_staleness
                    given = StoredAnswer(set_digest, digest(body), False)
                    rows.add_answer(asked, given, now, noised.sums)
                    if kept is not None:
                        rows.put_noise(asked.task_id, kept)
                    rows.end_keys(asked.task_id, max(dead, now_stored.dead_through))
                self._forget()
            return body

    def taken(self, asked: AnswerTaken) -> Registered | HelperProblem:
        """A round is over: nobody gets its answer any more, nor one of the rounds before, and what
        was sealed for it alone is never opened if nothing came of it.
        """
        with self._changing:
            with self._store.reading() as rows:
                stored, waiting = rows.task(asked.task_id), rows.waiting()
            if stored is None:
                return self._unknown_task(asked.task_id)
            over = min(asked.round, stored.newest)  # none further is known here
            dead = max(over - stored.task.terms.max_staleness, stored.dead_through)
            is_waiting = any(id == asked.task_id and round <= over for id, round in waiting)
            if is_waiting or dead > stored.dead_through:
                with self._store.transaction() as rows:
                    rows.take(asked.task_id, over)
                    rows.end_keys(asked.task_id, dead)
                self._forget()
        return Registered(stored.task.terms.name)

    def countersign(self, asked: HeadAsked) -> HeadSeen | HelperProblem:
        """Sign a head of a leader's log, if it extends the one that was signed last; that is on
        disk before the signature is given. The same head gets the same signature.
        """
        with self._changing, self._store.transaction() as rows:
            size, root = rows.head(asked.head.signer)
            head = log.why_not(asked, size, root, rows.newest_log, rows.certificates)
            if isinstance(head, HelperProblem):
                return self._no(head)
            if head is None:
                return HeadSeen(size)
            if head.size != size:
                rows.put_head(asked.head.signer, head)
        text = asked.head.text.encode()
        return HeadSeen(head.size, signing.sign_text(self._identity, log_wire.SEEN, text))

    # beside the contract

    def task_name(self, task_id: str) -> str:
        """What its leader calls a task; empty for one that is not known."""
        with self._store.reading() as rows:
            stored = rows.task(task_id)
        return "" if stored is None else stored.task.task

    def counts(self) -> tuple[int, int]:
        """Rounds answered, and the reports in them."""
        with self._store.reading() as rows:
            return rows.count_answers()

    def budgets(self) -> list[tuple[Task, Spent]]:
        """The tasks whose sums carry noise, and what each has spent."""
        with self._store.reading() as rows:
            return rows.budgets()

    def require_usable(self) -> None:
        """Raises what keeping something would raise."""
        self._store.require_usable()

    def close(self) -> None:
        """Let go of the store. Nothing is lost without it."""
        self._store.close()

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal."""
        self.refusals[refusal.value] += 1

    def _standing(self, rows: Rows, task_id: str) -> Registered:
        stored, last = rows.task(task_id), rows.last_answered(task_id)
        assert stored is not None
        lost = [
            round
            for round, public in rows.seal_keys(task_id).items()
            if self._keys.private((task_id, round), public) is None
        ]
        return Registered(
            stored.task.terms.name,
            1 + max(last, stored.dead_through, *lost),
            1 + max(stored.newest, stored.dead_through),
        )

    def _step(
        self, asked: Named, task: Task, stored: StoredNoise, history: History, turns: bool
    ) -> _Step | HelperProblem | None:
        """What one more sum takes, or why it is not given; None if it carries no noise. Where it
        `turns` to another basis, or buffers are lost, the noise begins anew.
        """
        if task.noise is None:
            return None
        buffers = None
        if stored.generation != NONE and not turns:
            with self._changing:
                buffers = self._buffers.get(task.task_id, stored.generation, task.terms)
        spent = budget.after(stored.spent, asked, task.noise, history, buffers is None)
        if isinstance(spent, HelperProblem):
            return spent
        if buffers is not None:
            return _Step(spent, buffers)
        if spent.happened.sums > 1 and not turns:
            told = {"task": task.task, "round": asked.round, "count": len(spent.began)}
            logger.warning("the buffers of a task's noise are lost: it begins anew", extra=told)
        return _Step(spent, noising.begin(task.terms))

    def _kept(self, task: Task, step: _Step, buffers: Buffers) -> StoredNoise:
        """What is stored of noise with a sum, whose buffers for the next are on disk. After a
        task's last sum there are none.
        """
        number = step.spent.happened.sums
        if task.noise is not None and number == task.noise.rounds:
            return StoredNoise(step.spent)
        self._buffers.put(buffers, task.task_id, number)
        return StoredNoise(step.spent, number)

    def _why_no_keys(
        self, asked: KeysAsked, stored: StoredTask, known: dict[int, str]
    ) -> HelperProblem | None:
        last = asked.first + asked.rounds - 1
        if asked.first <= stored.dead_through:
            return HelperProblem(
                Refusal.UNKNOWN_ROUND,
                f"expected rounds after {stored.dead_through}, whose keys are gone, found "
                f"{asked.first}",
            )
        so_far = max(stored.newest, stored.dead_through)
        if so_far >= 0 and last > so_far + MOST_ROUNDS_AHEAD:
            return HelperProblem(
                Refusal.UNKNOWN_ROUND,
                f"expected rounds up to {so_far + MOST_ROUNDS_AHEAD}, {MOST_ROUNDS_AHEAD} after "
                f"those that have keys, found {last}",
            )
        for round in range(asked.first, last + 1):
            of = asked.task_id, round
            if round in known and self._keys.private(of, known[round]) is None:
                return HelperProblem(
                    Refusal.UNKNOWN_ROUND,
                    f"the key of round {round} is lost: nobody can open what was sealed to it",
                )
        return None

    def _again(
        self, of: tuple[str, int], given: StoredAnswer, set_digest: str
    ) -> bytes | HelperProblem:
        if given.set_digest != set_digest:
            return self._no(
                HelperProblem(Refusal.SECOND_SET, f"another set of round {of[1]} has been answered")
            )
        body = None if given.is_taken else self._places.answers.get(keys.name(of))
        if body is None or digest(body) != given.answer_digest:
            return self._no(
                HelperProblem(
                    Refusal.UNKNOWN_ROUND,
                    f"the answer of round {of[1]} "
                    + ("has been taken" if given.is_taken else "is lost, and so are its keys"),
                )
            )
        return body

    def _signed(self, stored: StoredTask, round: int, public: str) -> Signed:
        key = SealKey(public, stored.task.task_id, round, stored.task.terms.name)
        return signing.sign_text(self._identity, SEAL_KEY, config.to_json(key))

    def _forget(self) -> None:
        """Write over the keys that are dead and the answers that were taken, and what a killed
        process has left of others.
        """
        with self._store.reading() as rows:
            living, waiting, noised = rows.living(), rows.waiting(), rows.generations()
        keys.forget(self._places.keys, living)
        keys.forget(self._places.answers, waiting)
        self._buffers.forget(noised)

    def _unknown_task(self, task_id: str) -> HelperProblem:
        return self._no(
            HelperProblem(Refusal.UNKNOWN_TASK, f"task {task_id[:8]} has not been registered")
        )

    def _no(self, problem: HelperProblem) -> HelperProblem:
        self.refused(problem.refusal)
        return problem

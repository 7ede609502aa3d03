"""The log: what this server has done, where nobody can take it back.

    one transaction: what is done, its entry, the roots of its ranges, a signed head
                                                                        |
    others' thread: the newest head, and that it extends the last one -> helper -> countersigned
                                                                        |
    check-in: head, paths of policy and checkpoint, path from the size the device has seen

Work of a task with a helper is given under the newest head that the helper has countersigned, all
other work under the newest. The key lies in a slot, as round keys do. A server whose log
contradicts what its helper has signed was put back from a backup: it begins another, whose key the
operator certifies.
"""

import functools
import logging
import secrets
import threading
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import config, log_wire, merkle, signing
from device_runtime.log_wire import Begun, Entries, Entry, Head, LogHead, Path, Policy, RoundEntry
from device_runtime.masking import Random
from device_runtime.merkle import Place, Range
from device_runtime.terms import Aggregation
from device_runtime.wire import VERSION, Proof
from server.log_rows import StoredHead, StoredLog
from server.records import changed
from server.slots import Slots
from server.store import Rows, StoredCheckpoint
from server.task import Task, task_id, terms

log = logging.getLogger("fedboard.server")

PROOFS_KEPT = 256  # of checkpoints, and of paths from a size, in memory


class Log:
    """The log of one server. Whoever writes to it is in a transaction."""

    def __init__(self, slots: Slots, server: str, random: Random = secrets.token_bytes):
        """server: random name of the database; random: of its keys."""
        self._slots, self._server, self._random = slots, server, random
        self._lock = threading.Lock()  # of what is kept in memory
        self._proofs: dict[tuple[int, int, str, str], Proof] = {}
        self._paths: dict[tuple[str, int, int], str] = {}

    # what is entered

    def enter(self, rows: Rows, entries: Sequence[Entry]) -> None:
        """Append entries, and sign the head that comes of it."""
        if entries:
            self._append(rows, rows.log.current() or self._begun(rows, None), entries)

    def enter_checkpoint(
        self, rows: Rows, task: Task, checkpoint: StoredCheckpoint, count: int = 0
    ) -> None:
        """Append that devices may be given a checkpoint of a training task, in whose sum there were
        `count` reports; nothing if it is there.
        """
        self.enter(rows, self._missing_round(rows, task, checkpoint, count))

    def enter_lost_sum(self, rows: Rows, task: Task, round: int, count: int) -> None:
        """Append what a sum with noise has spent whose round came to nothing; nothing if there was
        none.
        """
        rho = rows.log.spent(task.name, round) if task.noise is not None else 0.0
        if rho:
            id = task_id(self._server, task.name)
            self.enter(rows, [RoundEntry(id, round, count, _sums(rows, task), rho, "")])

    def enter_task(self, rows: Rows, task: Task, checkpoint: StoredCheckpoint) -> None:
        """Append the policy of a training task and the checkpoint it goes on from, as far as they
        are not there.
        """
        policy, current = self.policy(rows, task), rows.log.current()
        is_new = current is None or rows.log.number_of(current.number, policy.about) is None
        self.enter(
            rows, [*([policy] if is_new else []), *self._missing_round(rows, task, checkpoint, 0)]
        )

    def policy(self, rows: Rows, task: Task) -> Policy:
        """What devices agree to that work for a training task: as it was entered first."""
        id = task_id(self._server, task.name)
        policy = Policy(
            id,
            task.name,
            task.population,
            task.plan_hash,
            terms(task),
            rows.log.first_checkpoint(task.name),
            VERSION,
        )
        entered = rows.log.newest_about(policy.about)
        if entered is not None:
            before = log_wire.read(entered)
            assert isinstance(before, Policy)
            return before
        return policy

    def key(self, rows: Rows) -> str:
        """The public key of the log for the operator to certify. A log that is over, or whose key
        is lost, is followed by another.
        """
        current = rows.log.current()
        if current is None or current.over or self._private(current) is None:
            current = self._begun(rows, current)
        return current.key

    # what is told

    def proof(self, rows: Rows, task: Task, half: str) -> Proof | None:
        """That the log holds the policy of a training task, or of the one that an evaluation
        belongs to, and a checkpoint (its float16 form); None while it does not.
        """
        current = rows.log.current()
        if current is None or current.over:
            return None
        asks = task.aggregation is Aggregation.HELPER
        stored = rows.log.head(current.number, is_countersigned=asks)
        if stored is None:
            return None
        if asks and (stored.countersigned is None or stored.countersigned.signer != task.helper):
            return None
        id = task_id(self._server, task.evaluates or task.name)
        at = current.number, stored.size, id, half
        kept = self._proofs.get(at)
        if kept is None:
            kept = self._proved(rows, current, stored, id, half)
            if kept is None:
                return None
            with self._lock:
                if len(self._proofs) >= PROOFS_KEPT:
                    self._proofs = {}
                self._proofs[at] = kept
        return kept

    def seen_from(self, rows: Rows, proof: Proof, seen: int) -> Proof:
        """The same for a device that has seen so many entries of the log."""
        size = _size(proof.head.text)
        if seen in (0, size):
            return proof
        # a key signs one log only
        at = proof.head.signer, min(seen, size), max(seen, size)
        path = self._paths.get(at)
        if path is None:
            current = rows.log.current()
            if current is None or at[2] > rows.log.size(current.number):
                return proof  # this log never had so many: the device will say so
            path = _path(rows, current.number, merkle.consistency(at[1], at[2]))
            with self._lock:
                if len(self._paths) >= PROOFS_KEPT:
                    self._paths = {}
                self._paths[at] = path
        return changed(proof, consistency=path)

    # what a helper signs

    def to_countersign(self, rows: Rows, is_again: bool = False) -> StoredHead | None:
        """The newest head, if no helper has signed it, or if it is shown again all the same."""
        current = rows.log.current()
        newest = None if current is None or current.over else rows.log.head(current.number)
        if newest is None or (newest.countersigned is not None and not is_again):
            return None
        return newest

    def path_to(self, rows: Rows, seen: int, head: StoredHead) -> str | None:
        """That a head extends the first `seen` entries; None if it has fewer."""
        current = rows.log.current()
        if current is None or seen > head.size:
            return None
        return _path(rows, current.number, merkle.consistency(seen, head.size))

    def end(self, rows: Rows, number: int, why: str) -> None:
        """Nobody will believe this log any more: its operator must certify another."""
        rows.log.end(number, why)
        log.error("%s", why)

    # what anybody may ask

    def head(self, rows: Rows) -> LogHead:
        """The newest heads."""
        current = rows.log.current()
        if current is None:
            return LogHead()
        newest = rows.log.head(current.number)
        signed = rows.log.head(current.number, is_countersigned=True)
        return LogHead(
            None if newest is None else newest.head,
            None if signed is None else signed.head,
            None if signed is None else signed.countersigned,
        )

    def entries(self, rows: Rows, first: int, most: int) -> Entries:
        """Some entries."""
        current = rows.log.current()
        if current is None:
            return Entries()
        return Entries(tuple(rows.log.bodies(current.number, first, most)))

    def consistency(self, rows: Rows, first: int, second: int) -> Path | None:
        """That the log of one size begins with that of another; None if there are no such."""
        current = rows.log.current()
        if current is None or not 0 <= first <= second <= rows.log.size(current.number):
            return None
        return Path(_path(rows, current.number, merkle.consistency(first, second)))

    # within

    def _missing_round(
        self, rows: Rows, task: Task, checkpoint: StoredCheckpoint, count: int
    ) -> list[Entry]:
        current = rows.log.current()
        parent = rows.checkpoint(task.name, checkpoint.parent) if checkpoint.parent else None
        entry = RoundEntry(
            task_id(self._server, task.name),
            checkpoint.round,
            count,
            _sums(rows, task),
            rows.log.spent(task.name, checkpoint.round),
            checkpoint.half,
            "" if parent is None else parent.half,
        )
        if current is not None and rows.log.number_of(current.number, entry.about) is not None:
            return []
        return [entry]

    def _append(self, rows: Rows, at: StoredLog, entries: Sequence[Entry]) -> None:
        frontier = rows.log.frontier(at.number)
        first, bodies = frontier.size, []
        nodes: dict[Place, bytes] = {}
        for entry in entries:
            body = log_wire.body(entry)
            frontier, whole = frontier.append(merkle.leaf(body))
            nodes |= whole
            bodies.append((entry.about, body))
        rows.log.add(at.number, first, bodies, nodes)
        key = self._private(at)
        if key is None:
            log.error("the log's key is missing: certify the tasks again: fedboard task certify")
            return
        head = Head(self._server, frontier.size, frontier.root.hex())
        signed = signing.sign_text(key, log_wire.HEAD, config.to_json(head))
        rows.log.put_head(at.number, frontier.size, signed)

    def _begun(self, rows: Rows, before: StoredLog | None) -> StoredLog:
        """A new log. Its key is in its slot before the database knows of it."""
        key = Ed25519PrivateKey.from_private_bytes(self._random(32))
        self._slots.put(_slot(1 if before is None else before.number + 1), key.private_bytes_raw())
        begun = rows.log.begin(signing.public_hex(key))
        if before is not None:
            left = rows.log.frontier(before.number)
            entry = Begun(before.key, left.size, left.root.hex())
            self._append(rows, begun, [entry])
        return begun

    def _private(self, at: StoredLog) -> Ed25519PrivateKey | None:
        kept = self._slots.get(_slot(at.number))
        if kept is None or len(kept) != 32:
            return None
        key = Ed25519PrivateKey.from_private_bytes(kept)
        return key if signing.public_hex(key) == at.key else None

    def _proved(
        self, rows: Rows, current: StoredLog, stored: StoredHead, id: str, half: str
    ) -> Proof | None:
        abouts = f"policy/{id}", f"round/{id}/{half}"
        policy, checkpoint = (rows.log.number_of(current.number, each) for each in abouts)
        if policy is None or checkpoint is None or max(policy, checkpoint) >= stored.size:
            return None
        policy_path, checkpoint_path = (
            _path(rows, current.number, merkle.inclusion(each, stored.size))
            for each in (policy, checkpoint)
        )
        (round,) = rows.log.bodies(current.number, checkpoint, 1)
        return Proof(
            stored.head,
            policy,
            policy_path,
            checkpoint,
            checkpoint_path,
            round,
            "" if stored.countersigned is None else stored.countersigned.signature,
        )


def _sums(rows: Rows, task: Task) -> int:
    """Sums of a task that were released so far: with noise, whatever became of their rounds."""
    if task.noise is not None:
        return rows.spending.of(task.name).happened.sums
    return rows.committed(task.name)


@functools.lru_cache(maxsize=64)
def _size(head: str) -> int:
    return config.from_json(Head, head.encode(), "head").size


def _slot(number: int) -> str:
    return f"log-key~{number}"


def _path(rows: Rows, number: int, ranges: Sequence[Range]) -> str:
    roots = rows.log.roots(number, ranges)
    return log_wire.to_path([merkle.root_of(each, roots) for each in ranges])

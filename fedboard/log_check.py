"""The log, checked: its entries and its heads -> what of it contradicts what.

Whoever looks needs nothing but what the server gives to anybody, and what was kept of an earlier
look. What cannot be seen from here: whether other people are shown the same. That is what the
helper's signature is for, and comparing heads with somebody else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from device_runtime import accountant, calls, config, durable, log_wire, merkle
from device_runtime.errors import ConfigError, RunError
from device_runtime.log_wire import (
    Begun,
    Entry,
    Head,
    KeptHead,
    LogHead,
    Policy,
    ReleaseEntry,
    RoundEntry,
)
from device_runtime.terms import Aggregation, Terms
from device_runtime.transport import Send

_ROUNDING = 1e-6  # of an epsilon that was worked out twice


@dataclass(frozen=True)
class Fetched:
    """A log as its server shows it."""

    head: LogHead
    entries: tuple[str, ...]  # at least as many as the head says


@dataclass(frozen=True)
class Checked:
    """What came of looking at a log."""

    contradictions: tuple[str, ...]  # sentences; none: it holds together
    log: str = ""  # its server's name
    key: str = ""  # that signed it
    size: int = 0
    root: str = ""
    countersigned: int = 0  # entries of the newest head that a helper has signed
    helper: str = ""  # whose signature that is
    policies: int = 0
    rounds: int = 0
    releases: int = 0
    rho: dict[str, float] = field(default_factory=dict)  # spent, by task id
    head: KeptHead | None = None  # to be kept for the next look


def fetch(send: Send) -> Fetched:
    """All of a server's log. Raises ServerError for an answer that is none."""
    head = calls.log_head(send)
    if head.newest is None:
        return Fetched(head, ())
    size = config.from_json(Head, head.newest.text.encode(), "head").size
    entries: list[str] = []
    while len(entries) < size:
        more = calls.log_entries(send, len(entries))
        if not more:
            break  # fewer than its head says: that is found below
        entries += more
    return Fetched(head, tuple(entries[:size]))


def save(path: Path, fetched: Fetched) -> None:
    """Keep a log as lines of JSON: its heads, and each entry as it was entered."""
    lines = [config.to_json(fetched.head), *(each.encode() for each in fetched.entries)]
    durable.write(path, b"\n".join(lines) + b"\n")


def load(path: Path) -> Fetched:
    """A log that was kept. Raises RunError for a file that is none."""
    try:
        first, *entries = path.read_text("ascii").splitlines()
        return Fetched(config.from_json(LogHead, first.encode(), "head"), tuple(entries))
    except (OSError, ValueError, ConfigError) as error:
        raise RunError(
            path, f"is no log that was kept ({error})", "make one: fedboard log verify URL --save"
        ) from None


def check(fetched: Fetched, before: KeptHead | None = None, helper: str = "") -> Checked:
    """What of a log contradicts itself, what was kept `before`, or what a helper (its public key,
    hexadecimal; empty: the one that has signed) is expected to have signed.
    """
    newest = fetched.head.newest
    if newest is None:
        gone = "expected a log that goes on from what was kept, found none"
        return Checked((gone,) if before is not None else ())
    head = log_wire.head_in(newest, newest.signer)
    if isinstance(head, str):
        return Checked((head,))
    roots = _roots(fetched.entries)
    entries, wrong = _read(fetched.entries)
    if len(fetched.entries) < head.size:
        wrong.append(f"expected {head.size:,} entries, found {len(fetched.entries):,}")
    elif roots[head.size].hex() != head.root:
        wrong.append(
            f"the entries have root {roots[head.size].hex()[:16]}, but the head that was signed "
            f"says {head.root[:16]}: an entry was changed"
        )
    signer, size, more = _countersigned(fetched.head, roots, head, helper, entries)
    wrong += more + _not_following(head, newest.signer, roots, before) + _inconsistent(entries)
    signature = fetched.head.countersignature
    is_newest = size == head.size and signature is not None
    return Checked(
        tuple(wrong),
        head.log,
        newest.signer,
        head.size,
        head.root,
        size,
        signer,
        _count(entries, Policy),
        _count(entries, RoundEntry),
        _count(entries, ReleaseEntry),
        rho={each.task_id: each.rho for each in entries if isinstance(each, RoundEntry)},
        head=KeptHead(
            newest, signature.signature if is_newest and signature else "", signer * is_newest
        ),
    )


def _count(entries: Sequence[Entry], kind: type[Entry]) -> int:
    return sum(isinstance(each, kind) for each in entries)


def described(entry: Entry) -> str:
    """An entry in a line for people."""
    match entry:
        case Policy():
            terms = entry.terms
            budget = "no noise"
            if terms.noise is not None:
                budget = f"noise to epsilon {terms.noise.epsilon:g}"
            return (
                f"policy {entry.name[:16]} of task {entry.task} ({entry.task_id[:8]}): "
                f"{terms.aggregation}, sums of {terms.fewest:,} to {terms.most:,}, clip "
                f"{terms.clipping_norm:g}, {terms.bits} bits, {budget}"
            )
        case RoundEntry():
            made = f"checkpoint {entry.checkpoint[:16]}" if entry.checkpoint else "no checkpoint"
            return (
                f"round {entry.round} of task {entry.task_id[:8]}: {entry.count:,} reports, "
                f"{made}, rho {entry.rho:.4g} after {entry.sums:,} sums"
            )
        case ReleaseEntry():
            how = "withdrawn" if entry.withdrawn else f"offered to {entry.share / 100:g} %"
            return f"release {entry.release} of population {entry.population}: {how}"
        case Begun():
            return (
                f"this log follows that of key {entry.log_key[:16]}, of which {entry.size:,} "
                f"entries were left ({entry.root[:16]})"
            )


def _roots(entries: Sequence[str]) -> list[bytes]:
    """The roots of all beginnings of a log."""
    frontier, roots = merkle.Frontier(), [merkle.EMPTY]
    for each in entries:
        frontier, _ = frontier.append(merkle.leaf(each.encode()))
        roots.append(frontier.root)
    return roots


def _read(texts: Sequence[str]) -> tuple[list[Entry], list[str]]:
    entries, wrong = [], []
    for number, text in enumerate(texts):
        try:
            entries.append(log_wire.read(text, f"entry {number}"))
        except ConfigError as error:
            wrong.append(str(error))
    return entries, wrong


def _countersigned(
    told: LogHead, roots: list[bytes], newest: Head, helper: str, entries: Sequence[Entry]
) -> tuple[str, int, list[str]]:
    """Who has countersigned how many entries, and what is wrong with that."""
    named = sorted(
        {
            each.terms.helper
            for each in entries
            if isinstance(each, Policy) and each.terms.aggregation is Aggregation.HELPER
        }
    )
    expected = [helper] if helper else named
    head, by = told.countersigned, told.countersignature
    if head is None or by is None:
        if not expected:
            return "", 0, []
        return "", 0, [f"no head has the signature of helper {expected[0][:16]}"]
    says = log_wire.head_in(head, head.signer)
    if isinstance(says, str):
        return "", 0, [f"countersigned {says}"]
    wrong = []
    if not log_wire.countersigned(head, by.signer, by.signature) or by.text != head.text:
        wrong.append(f"the signature of {by.signer[:16]} is none of the countersigned head")
    if expected and by.signer not in expected:
        wrong.append(f"expected the signature of helper {expected[0][:16]}, found {by.signer[:16]}")
    is_prefix = says.size < len(roots) and roots[says.size].hex() == says.root
    if not is_prefix or says.log != newest.log or head.signer != (told.newest or head).signer:
        wrong.append(
            f"the helper has signed {says.size:,} entries ({says.root[:16]}) that this log does "
            "not begin with: it forks"
        )
    return by.signer, says.size, wrong


def _not_following(head: Head, key: str, roots: list[bytes], before: KeptHead | None) -> list[str]:
    """Why a log does not go on from what was kept of it."""
    if before is None:
        return []
    old = before.says
    if old.log != head.log:
        return [f"expected the log of server {old.log[:8]}, found that of {head.log[:8]}"]
    if before.head.signer != key:
        return [
            f"expected log key {before.head.signer[:16]}, found {key[:16]}: it was begun anew; "
            "look at its first entry, and ask its operator why"
        ]
    if old.size >= len(roots) or roots[old.size].hex() != old.root:
        return [
            f"{old.size:,} entries ({old.root[:16]}) were signed before, and this log does not "
            "begin with them: it was rewritten"
        ]
    return []


def _inconsistent(entries: Sequence[Entry]) -> list[str]:
    """What entries say that cannot be true together."""
    wrong = []
    # one that follows another does not have what rounds were made from that were open then
    is_after_another = bool(entries) and isinstance(entries[0], Begun)
    policies: dict[str, Policy] = {}
    last: dict[str, RoundEntry] = {}
    made: dict[str, set[str]] = {}
    by_round: dict[str, dict[int, str]] = {}
    for each in entries:
        if isinstance(each, Policy) and policies.setdefault(each.task_id, each) != each:
            wrong.append(f"task {each.task_id[:8]} has two policies: it changed under devices")
        if not isinstance(each, RoundEntry):
            continue
        of = f"round {each.round} of task {each.task_id[:8]}"
        before = last.get(each.task_id)
        known, rounds = made.setdefault(each.task_id, set()), by_round.setdefault(each.task_id, {})
        if before is not None and each.rho < before.rho and each.count:
            wrong.append(f"{of}: spent {each.rho:.6g}, less than {before.rho:.6g} before it")
        if before is not None and each.sums < before.sums:
            wrong.append(f"{of}: {each.sums:,} sums, fewer than {before.sums:,} before it")
        if each.sums > each.round:
            wrong.append(f"{of}: {each.sums:,} sums, and no round has more than one")
        if each.count and before is not None and each.round <= before.round:
            wrong.append(f"{of}: comes after round {before.round}")
        is_made = bool(each.count and each.checkpoint)
        if is_made and each.parent not in known and (known or not is_after_another):
            wrong.append(f"{of}: was made from {each.parent[:16]}, which was never entered")
        if each.checkpoint:
            wrong += [f"{of}: {reason}" for reason in _unmade(each, rounds)]
            known.add(each.checkpoint)
            rounds.setdefault(each.round, each.checkpoint)
        if each.count and each.task_id in policies:
            wrong += [f"{of}: {reason}" for reason in _not_by(each, policies[each.task_id].terms)]
        if each.count or before is None:
            last[each.task_id] = each
    without = [task_id for task_id in last if task_id not in policies]
    return wrong + [f"task {task_id[:8]} has rounds and no policy" for task_id in without]


def _unmade(entry: RoundEntry, rounds: Mapping[int, str]) -> list[str]:
    """Why no round can have made a checkpoint, by those of the rounds before. What was there before
    the log is of no later round than the first that was entered.
    """
    wrong = []
    other = rounds.get(entry.round, entry.checkpoint)
    if other != entry.checkpoint:
        wrong.append(
            f"has two checkpoints, {other[:16]} and {entry.checkpoint[:16]}: one round makes one"
        )
    elif not entry.count and rounds and entry.round > next(iter(rounds)):
        wrong.append(
            f"checkpoint {entry.checkpoint[:16]} is made of no reports, and was not there before"
        )
    return wrong


def _not_by(entry: RoundEntry, terms: Terms) -> list[str]:
    """What an entry of a sum says that its task's terms do not allow."""
    wrong, noise = [], terms.noise
    if terms.aggregation is not Aggregation.PLAIN and entry.count < terms.fewest:
        wrong.append(
            f"{entry.count:,} reports, and no sum of fewer than {terms.fewest:,} is opened"
        )
    if noise is None:
        return wrong
    if not entry.rho:
        wrong.append("spent nothing, and every sum with noise spends something")
    elif accountant.epsilon(entry.rho, noise.delta) > noise.epsilon + _ROUNDING:
        wrong.append(
            f"spent {entry.rho:.6g}, more than the budget of epsilon {noise.epsilon:g} at delta "
            f"{noise.delta:g}"
        )
    return wrong

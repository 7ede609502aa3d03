"""What a device says of itself, in words: how it stands, and what it contributed. Never anything
typed.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from device_runtime import (
    causes,
    chain,
    daemon,
    exposure,
    log_wire,
    outgoing,
    personal,
    signing,
    spent,
    unfinished,
    upgrade,
)
from device_runtime.accountant import Account
from device_runtime.errors import BundleError
from device_runtime.home import (
    EVIDENCE,
    FORKS,
    OUTGOING,
    UNFINISHED,
    Contribution,
    Home,
    done_on,
    parts,
)
from device_runtime.limits import Limits
from device_runtime.local import limits_of
from device_runtime.noise import Noise
from device_runtime.shown import rounded_up
from device_runtime.terms import Terms
from device_runtime.turn import Status
from device_runtime.wire import DAY_S, MOST_WORDS, Conditions, Kind, forbidden_by

# what every figure of what was spent assumes
BELIEVED = (
    "spent is what others can learn of one person, if whoever adds the noise does; it counts "
    "updates: the sums of scores have no noise"
)


@dataclass(frozen=True)
class Cost:
    """What a device's updates of one task have spent of its owner's privacy. None: no bound."""

    server: str
    task: str
    task_id: str
    rounds: tuple[int, ...]  # that an update left for or may have
    separation: int | None  # fewest from one to the next, as a difference of round numbers
    noise: Noise | None
    rho: float | None  # at most
    epsilon: float | None  # the same, at the delta of the noise
    # the same by what the server's log says of its sums, if `by_log`; else had every round between
    # released one, which the device cannot see
    rho_if_apart: float | None
    epsilon_if_apart: float | None
    by_log: bool = False


@dataclass(frozen=True)
class Standing:
    """How a device stands."""

    folder: str
    name: str | None  # enrolled as
    bundle: str  # what it serves, or why it cannot
    messages: int
    used_up: int  # of them, those that contributed as often as they may
    max_age_days: float
    max_bytes: int
    conditions: Conditions
    forbidden: str | None  # the first condition that forbids training
    contributions: int  # lines of the ledger that counted
    bytes_up: int
    personal: personal.Verdict | None  # what became of the user's own weights
    # round and last second of work that waits for its next window
    half_done: tuple[int, float] | None
    check_in_in_s: float
    limits: Limits | None = None  # what it allows whoever asks; None without a usable bundle
    updates_today: int = 0  # that left, or may have
    withheld: bool = False  # work was refused, and its server has not heard of it yet
    personal_outdated: bool = False  # they were judged against another bundle
    releases: tuple[str, ...] = ()  # how its release came, what it refused and why, in sentences
    # pairs of checkpoints that were signed for one round, with the signatures that prove it
    contradictions: tuple[chain.Contradiction, ...] = ()
    # pairs of heads of one log that nobody has shown to agree, with their signatures
    forks: tuple[log_wire.Fork, ...] = ()
    outgoing: int | None = None  # round of a report that waits for its server's answer
    task: str = ""  # whose work it was given last; empty before the first
    seen: tuple[exposure.Sentence, ...] = ()  # who sees its updates, by the terms of that
    public_key: str = ""
    certified_by: str = ""  # public key of who says that it is a device; empty: nobody does
    spent: tuple["Cost", ...] = ()  # what its updates have spent of its owner's privacy, by task
    spent_in_all: Account | None = None  # by those with noise together; None: there is none
    altered: int = 0  # messages that were altered in the log: they are kept, and passed over


def status(home: Home, now: float) -> Standing:
    """Read a device at `now`, in seconds of its own clock."""
    own, last, outdated = None, personal.verdict(home), False
    release = -1
    try:
        installed = home.installed()
        release = installed.bundle.manifest.release
        manifest = installed.bundle.manifest
        bundle = (
            f"network `{manifest.network}`, release {manifest.release}, round "
            f"{manifest.lineage.round}"
        )
        own = limits_of(home, installed.bundle)
        outdated = last is not None and not personal.is_of(last, installed.bundle)
        if installed.problem:
            bundle += f", the last good one: {installed.problem}"
    except BundleError as error:
        bundle = f"none usable: {error}"
    with home.typing_log() as log:
        messages, used_up = log.count(), log.count() - log.count(usable=True)
        altered = log.altered()
        waiting = home.kept(UNFINISHED)
        half_done = None if waiting is None else unfinished.unseal(waiting, log)
        kept = home.kept(OUTGOING)
        report = None if kept is None else outgoing.unseal(kept, log)
    conditions = home.conditions(now)
    last_terms = home.terms
    lines = home.contributions()
    retention = home.config.typing_log
    return Standing(
        str(home.folder),
        home.name,
        bundle,
        messages,
        used_up,
        retention.max_age_s / DAY_S,
        retention.max_bytes,
        conditions,
        forbidden_by(conditions),
        sum(line.outcome == Status.COUNTED for line in lines),
        sum(line.bytes_up for line in lines),
        last,
        None if half_done is None else (half_done.work.round, half_done.work.until),
        daemon.read_schedule(home).due_in(now),
        own,
        done_on([line for line in lines if line.kind == Kind.TRAINING], now),
        home.withheld() is not None,
        outdated,
        tuple(release_lines(upgrade.remembered(home), release, now)),
        home.evidence(),
        home.forks(),
        None if report is None else report.label.round,
        "" if last_terms is None else last_terms.task,
        () if last_terms is None else _sentences(last_terms.terms),
        signing.public_hex(home.key),
        "" if home.certificate is None else home.certificate.signer,
        costs(lines),
        spent.total(parts(lines)),
        altered,
    )


def _sentences(terms: Terms) -> tuple[exposure.Sentence, ...]:
    return (*exposure.sentences(terms), exposure.Sentence(log_wire.sentence(terms)))


def status_lines(standing: Standing) -> list[str]:
    """The status as sentences."""
    signals = {
        "charging": standing.conditions.charging,
        "on an unmetered network": standing.conditions.unmetered,
        "idle": standing.conditions.idle,
    }
    said = ", ".join(
        f"{name}: {'unknown' if value is None else 'yes' if value else 'no'}"
        for name, value in signals.items()
    )
    trains = (
        "it may train now"
        if standing.forbidden is None
        else f"it does not train now ({causes.sentence(standing.forbidden)}; unknown counts as no)"
    )
    return [
        f"device {standing.folder}, "
        f"{f'enrolled as {standing.name}' if standing.name else 'not enrolled yet'}",
        f"public key {standing.public_key}, "
        + (
            f"certified by {standing.certified_by[:16]}" if standing.certified_by else "uncertified"
        ),
        f"bundle: {standing.bundle}",
        *standing.releases,
        f"typing log: {standing.messages:,} messages, encrypted, kept {standing.max_age_days:g} "
        f"days and at most {standing.max_bytes:,} bytes"
        + (f"; {standing.used_up:,} contributed as often as they may" if standing.used_up else "")
        + (f"; {standing.altered:,} altered ones are passed over" if standing.altered else ""),
        f"conditions: {said}; {trains}",
        f"contributed {standing.contributions} times, {standing.bytes_up:,} bytes sent in all",
        *([] if standing.limits is None else limits_lines(standing.limits, standing.updates_today)),
        *(
            ["work over a limit was refused; its server hears of it when the day is over"]
            if standing.withheld
            else []
        ),
        *(
            f"its server was caught: {chain.described(each)}; the proof is in {EVIDENCE}"
            for each in standing.contradictions
        ),
        *(
            f"its server was caught: {log_wire.described(each)}; the proof is in {FORKS}"
            for each in standing.forks
        ),
        personal_line(standing.personal, standing.personal_outdated),
        *(
            [
                f"half-done work for round {standing.half_done[0]} waits until "
                f"{moment(standing.half_done[1])}"
            ]
            if standing.half_done
            else []
        ),
        *(
            [
                f"a report of round {standing.outgoing} is kept until its server has answered: it "
                "is sent as it is, or not at all"
            ]
            if standing.outgoing is not None
            else []
        ),
        *(
            [f"may check in again in {standing.check_in_in_s:.0f} s"]
            if standing.check_in_in_s
            else []
        ),
    ]


def seen_lines(standing: Standing) -> list[exposure.Sentence]:
    """Who can see what leaves the device, in sentences; what warns is to be shown in red."""
    of = f"by the terms of task {standing.task}: "
    return [replace(each, text=of + each.text) for each in standing.seen]


def release_lines(past: upgrade.Remembered, runs: int, now: float) -> list[str]:
    """How the release that a device runs came to it, which ones it refused, and what it could not
    fetch, in sentences; `now` is in seconds of its clock.
    """
    lines = []
    if past.last is not None and past.last.release == runs:
        lines.append(f"upgraded {moment(past.last.at)}: {upgrade.sentence(past.last)}")
    lines += [f"refused: release {each.release}: {each.why}" for each in past.refused]
    if past.failed is not None:
        waits = past.failed.waits(now)
        lines.append(f"no other release yet: {past.failed.why}; it is tried again in {waits:.0f} s")
    return lines


def limits_lines(allowed: Limits, updates_today: int) -> list[str]:
    """What a device allows whoever asks it for work, in sentences."""
    most, own = allowed.most, allowed.own
    return [
        f"an update has at most {most.bits} bits a value, norm {most.clipping_norm:g}, rate "
        f"{most.learning_rate:g}, {most.epochs} passes over {most.max_rows:,} rows; at least "
        f"{own.least_messages:,} messages and {own.least_words:,} words; at most "
        f"{own.updates_a_day} a day ({updates_today} today), {own.min_separation} rounds apart",
        f"a score has at least {own.least_score_words:,} words "
        f"({own.least_private_score_words:,} where it is seen in large sums only) and at most "
        f"{MOST_WORDS:,}; at most {own.scores_a_day} a day",
    ]


def costs(lines: Sequence[Contribution]) -> tuple[Cost, ...]:
    """What the updates in a ledger have spent, task by task."""
    return tuple(_cost(spent.of(part)) for part in parts(lines))


def _cost(of: spent.Spent) -> Cost:
    part, spends, apart = of.part, of.account, of.if_apart
    about = part.server, part.task, part.task_id, part.rounds, part.separation, part.noise
    return Cost(
        *about,
        _finite(spends.rho),
        _finite(spends.epsilon),
        _finite(apart.rho),
        _finite(apart.epsilon),
        of.by_log,
    )


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def spent_lines(costs: Sequence[Cost], in_all: Account | None) -> list[exposure.Sentence]:
    """What a device's updates have spent of its owner's privacy, in sentences; what no noise hides
    is to be shown in red.
    """
    lines = [_spent(cost) for cost in costs]
    if in_all is not None and sum(cost.rho is not None for cost in costs) > 1:
        lines.append(
            exposure.Sentence(
                "spent, all tasks with noise together: epsilon at most "
                f"{rounded_up(in_all.epsilon)} at delta {in_all.delta:g} (rho {in_all.rho:.4f})"
            )
        )
    if in_all is not None:
        lines.append(exposure.Sentence(BELIEVED))
    return lines


def _spent(cost: Cost) -> exposure.Sentence:
    count = len(cost.rounds)
    left = f"{count:,} update{'s' if count != 1 else ''} left or may have"
    if cost.separation is not None:
        left += f", at least {cost.separation:,} apart by their rounds' numbers"
    of = f"spent, task {cost.task}" + (f" ({cost.task_id[:8]})" if cost.task_id else "")
    noise, epsilon = cost.noise, cost.epsilon
    if noise is None or epsilon is None or cost.epsilon_if_apart is None:
        return exposure.Sentence(f"{of}: {left}, without noise: nothing bounds it", warns=True)
    apart = ""
    if cost.epsilon_if_apart < epsilon:
        why = "by the server's log" if cost.by_log else "if every round between had its sum"
        apart = f"; {rounded_up(cost.epsilon_if_apart)} {why}"
    return exposure.Sentence(
        f"{of}: {left}; epsilon at most {rounded_up(epsilon)} at delta {noise.delta:g} (rho "
        f"{cost.rho:.4f}){apart}; the task may spend {noise.epsilon:g}"
    )


def personal_line(verdict: personal.Verdict | None, outdated: bool = False) -> str:
    """What became of the user's own weights, in a sentence; `outdated` if that was reached against
    another bundle.
    """
    if verdict is None:
        return (
            f"personal weights: none yet; they are tried from {personal.LEAST_MESSAGES} messages on"
        )
    judged = verdict.judged
    figures = (
        f"{judged.nats:+.1f} nats (±{judged.error:.1f}) and {judged.hits:+d} first suggestions on "
        f"{judged.words:,} held-back words"
    )
    became = (
        "not served until they are judged against this bundle"
        if outdated
        else "served"
        if verdict.serves
        else "rolled back: ahead no more"
        if verdict.rolled_back
        else "not served: not surely ahead"
    )
    return (
        f"personal weights: {became}; {figures}, trained on {verdict.messages:,} messages, judged "
        f"{moment(verdict.at)}"
    )


def ledger_lines(lines: Sequence[Contribution]) -> list[str]:
    """One sentence for each line of the ledger, and what they come to."""
    if not lines:
        return ["This device contributed nothing so far."]
    counted = [
        line for line in lines if line.outcome == Status.COUNTED and line.kind == Kind.TRAINING
    ]
    total = (
        f"In all {len(counted)} updates counted, of {sum(line.examples for line in counted):,} "
        "examples"
    )
    return [
        *map(_sentence, lines),
        f"{total}; {sum(line.bytes_up for line in lines):,} bytes sent, "
        f"{sum(line.bytes_down for line in lines):,} received.",
    ]


def _sentence(line: Contribution) -> str:
    if line.kind == Kind.COUNTS:
        return _words(line)
    if line.kind != Kind.TRAINING:
        return _scores(line)
    cause = _cause(line)
    words: Mapping[str, str] = {
        Status.COUNTED: f"an update of {line.examples:,} examples was counted",
        Status.SENDING: f"an update of {line.examples:,} examples may have left: no answer came",
        Status.JOINED: "the device went away while it waited for others, and no update was sent",
        Status.PAUSED: f"the work was interrupted and waits for the next window: {cause}",
        Status.ABANDONED: f"the work was given back and nothing learned was sent: {cause}",
        Status.NOT_COUNTED: (
            f"an update of {line.examples:,} examples was sent and not counted: {cause}"
        ),
    }
    became = words.get(line.outcome, line.outcome) + _seen_by(line)
    return (
        f"{moment(line.at)}, round {line.round}: {became} ({line.bytes_up:,} bytes sent, "
        f"{line.bytes_down:,} received)"
    )


def _seen_by(line: Contribution) -> str:
    """Who could see what left by itself; nothing of what did not leave."""
    return f"; {line.seen_by} could see it by itself" if line.left and line.seen_by else ""


def _cause(line: Contribution) -> str:
    why = causes.sentence(line.cause)
    return f"{why} ({line.detail})" if line.detail else why


def _words(line: Contribution) -> str:
    cause = _cause(line)
    answer = f"of a public list {line.examples:,} words were told that had been typed here"
    words: Mapping[str, str] = {
        Status.COUNTED: f"{answer}, and counted",
        Status.JOINED: "the device went away while it waited for others, and no word was told",
        Status.SENDING: f"{answer}, or may have been: no answer came",
        Status.ABANDONED: f"a public list of words was given back and nothing was told: {cause}",
        Status.NOT_COUNTED: f"{answer}, and not counted: {cause}",
    }
    became = words.get(line.outcome, line.outcome) + _seen_by(line)
    return (
        f"{moment(line.at)}, round {line.round} of {line.task}: {became} ({line.bytes_up:,} bytes "
        f"sent, {line.bytes_down:,} received)"
    )


def _scores(line: Contribution) -> str:
    cause = _cause(line)
    scored = "a checkpoint was scored"
    if line.kind == Kind.RELEASES:
        both = " " in line.scored
        scored = "this release" + (" and the one before were" if both else " was") + " scored"
    sums = f"{scored} on {line.examples:,} held-back words"
    asked = "a comparison of releases" if line.kind == Kind.RELEASES else "an evaluation"
    words: Mapping[str, str] = {
        Status.COUNTED: f"{sums}; only sums were sent, and counted",
        Status.JOINED: f"{sums}; the device went away while it waited for others, nothing was sent",
        Status.SENDING: f"{sums}, and the sums may have left: no answer came",
        Status.ABANDONED: f"{asked} was given back and nothing was sent: {cause}",
        Status.NOT_COUNTED: f"{sums}; only sums were sent, and not counted: {cause}",
    }
    became = words.get(line.outcome, line.outcome) + _seen_by(line)
    return (
        f"{moment(line.at)}, round {line.round} of {line.task}: {became} ({line.bytes_up:,} bytes "
        f"sent, {line.bytes_down:,} received)"
    )


def moment(at: float) -> str:
    """Local date and time; for the clock of a simulated device, which starts at 0, the day and hour
    of its trace.
    """
    if at < 1000 * DAY_S:
        return f"simulated day {int(at // DAY_S)}, {time.strftime('%H:%M', time.gmtime(at))}"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))

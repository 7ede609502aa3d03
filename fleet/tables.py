"""Tables: what became of a fleet, as columns with a name and as one summary of its figures.

turns, rounds, check-ins, population, availability (`Lived`) -> tables -> summary
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.turn import Status
from device_runtime.wire import DAY_S, Phase, RoundReport, Scores
from fleet import figures
from fleet.assignments import (
    COUNTED,
    DROPPED_OUT,
    REACHED,
    TURNED_AWAY,
    UNDER_WAY,
    Assignments,
    assignments,
    fates_of,
    is_any,
    most_first,
    sessions,
)
from fleet.availability import CHARGING, IDLE, NEEDED, UNMETERED
from fleet.figures import Summary, Table
from fleet.pocket import Shared
from fleet.population import Population
from fleet.settings import START, FleetSettings
from fleet.simulate import Fleet
from fleet.turns import FAILED, STATUSES, TURN

HOUR_S = 3600.0
SAMPLED = 20_000  # devices whose conditions are looked at, every so many of a larger population
WEEKDAYS = 5  # of seven, from a fleet's first day on


@dataclass(frozen=True)
class Measured:
    """How good one checkpoint is on messages that devices hold back from training."""

    round: int  # that made it; 0: what the fleet began with
    at_s: float  # since the fleet began
    who: str  # whose messages: EVERYBODY, TOOK_PART or NEVER
    devices: int
    scores: Scores


EVERYBODY, TOOK_PART, NEVER = "everybody", "took part", "never took part"


@dataclass(frozen=True)
class Lived:
    """What a fleet has lived through so far."""

    settings: FleetSettings
    shared: Shared = field(repr=False)
    seconds: float  # since it began
    rounds: tuple[RoundReport, ...] = ()  # of its task, oldest first
    turns: NDArray = field(default_factory=lambda: np.zeros(0, TURN), repr=False)  # as they ended
    # of each hour: check-ins by what came of them
    check_ins: Mapping[tuple[int, str], int] = field(default_factory=dict)
    at_work: int = 0  # turns under way
    measured: tuple[Measured, ...] = ()  # of training that is real


def lived(fleet: Fleet, turns: NDArray | None = None) -> Lived:
    """What a fleet has lived through; `turns` of one that has written them down: all of them."""
    ended = fleet.state.ended
    if turns is None:
        turns = np.concatenate(ended) if ended else np.zeros(0, TURN)
    return Lived(
        fleet.settings,
        fleet.shared,
        fleet.now - START,
        all_rounds(fleet),
        turns,
        dict(fleet.state.check_ins),
        len(fleet.state.turns),
    )


def all_rounds(fleet: Fleet) -> tuple[RoundReport, ...]:
    """Every round of a fleet's task, oldest first."""
    rounds: tuple[RoundReport, ...] = ()
    before: int | None = None
    while True:
        some = fleet.servers.coordinator.reports(
            fleet.now, fleet.settings.task.name, before=before
        ).rounds
        rounds = some + rounds
        if not some or some[0].round <= 1:
            return rounds
        before = some[0].round


# who could


def eligible(it: Lived) -> Table:
    """The share of devices that charge, are on WiFi, are idle and may train, in the middle of each
    hour, and the last of them also by the devices' own time of day.
    """
    who = sampled(len(it.shared.population))
    hours = np.arange(max(1, math.ceil(it.seconds / HOUR_S)))
    shares = np.zeros((len(hours), 4))
    for hour in hours:
        bits = it.shared.availability.signals(who, np.full(len(who), (hour + 0.5) * HOUR_S))
        for place, wanted in enumerate((CHARGING, UNMETERED, IDLE, NEEDED)):
            shares[hour, place] = np.mean((bits & wanted) == wanted)
    return {
        "hour": hours.tolist(),
        "day": (1 + hours // 24).tolist(),
        "hour_of_day_utc": (hours % 24).tolist(),
        "charging": shares[:, 0].tolist(),
        "unmetered": shares[:, 1].tolist(),
        "idle": shares[:, 2].tolist(),
        "all_three": shares[:, 3].tolist(),
    }


def sampled(devices: int) -> NDArray[np.int64]:
    """The numbers of devices that stand for so many."""
    return np.unique(np.linspace(0, devices - 1, min(devices, SAMPLED)).astype(np.int64))


def eligible_by_hour_of_day(by_hour: Table) -> Table:
    """The same by the hour of the day, as means over weekdays, or over all days where there is no
    whole weekday.
    """
    hour, day = np.array(by_hour["hour_of_day_utc"]), np.array(by_hour["day"])
    whole = np.isin(day, [each for each in np.unique(day) if np.sum(day == each) == 24])
    weekday = whole & ((day - 1) % 7 < WEEKDAYS)
    used = weekday if weekday.any() else np.ones(len(day), bool)
    hours = np.unique(hour[used])
    names = ("charging", "unmetered", "idle", "all_three")
    return {
        "hour_of_day_utc": hours.tolist(),
        "days": [int(np.sum(used & (hour == each))) for each in hours],
    } | {
        name: [float(np.array(by_hour[name])[used & (hour == each)].mean()) for each in hours]
        for name in names
    }


def swing(by_hour_of_day: Table) -> float | None:
    """The most eligible hour of the day over the least; None for less than a day, and where nobody
    is eligible in some hour.
    """
    shares = by_hour_of_day["all_three"]
    return max(shares) / min(shares) if len(shares) == 24 and min(shares) > 0 else None


# rounds


def rounds(it: Lived) -> Table:
    """One row a round; losses are means over the devices that counted, in nats a target."""
    before, after = _losses(it.turns)
    at = [each.opened_at - START for each in it.rounds]
    return {
        "round": [each.round for each in it.rounds],
        "day": [1 + int(time // DAY_S) for time in at],
        "opened_h": [time / HOUR_S for time in at],
        "duration_s": [each.seconds for each in it.rounds],
        "phase": [str(each.phase) for each in it.rounds],
        "goal": [each.goal for each in it.rounds],
        "asked": [each.checked_in for each in it.rounds],
        "refused": [sum(each.refused.values()) for each in it.rounds],
        "selected": [each.assigned for each in it.rounds],
        "fetched": [each.downloaded for each in it.rounds],
        "reported": [each.uploaded for each in it.rounds],
        "counted": [each.counted for each in it.rounds],
        "dropped": [sum(each.dropped.values()) for each in it.rounds],
        "bytes_up": [each.bytes_up for each in it.rounds],
        "bytes_down": [each.bytes_down for each in it.rounds],
        "loss_before": [before.get(each.round) for each in it.rounds],
        "loss_after": [after.get(each.round) for each in it.rounds],
        "rho": [each.rho for each in it.rounds],
        "epsilon": [each.epsilon for each in it.rounds],
        "checkpoint": [each.checkpoint for each in it.rounds],
        "reason": [each.reason for each in it.rounds],
    }


def _losses(turns: NDArray) -> tuple[dict[int, float], dict[int, float]]:
    """Mean losses by round; empty where training is a stand-in, whose losses are 0."""
    counted = turns[is_any(turns["status"], Status.COUNTED)]
    real = counted[np.isfinite(counted["loss_before"]) & (counted["loss_before"] > 0)]
    numbers, of = np.unique(real["round"], return_inverse=True)
    many = np.bincount(of, minlength=len(numbers))
    before, after = (
        np.bincount(of, real[name].astype(np.float64), len(numbers)) / np.maximum(many, 1)
        for name in ("loss_before", "loss_after")
    )
    names = numbers.tolist()
    return (
        dict(zip(names, before.tolist(), strict=True)),
        dict(zip(names, after.tolist(), strict=True)),
    )


def round_causes(it: Lived) -> Table:
    """Why devices got no work in a round, or their work did not count, by the server."""
    rows = [
        (each.round, step, str(cause), count)
        for each in it.rounds
        for step, causes in (("refused", each.refused), ("dropped", each.dropped))
        for cause, count in sorted(causes.items())
    ]
    return _table(("round", "step", "cause", "devices"), rows)


def of_round(it_turns: NDArray, population: Population, number: int) -> Table:
    """What each device did in one round, a row a turn, in the order in which turns ended. Times are
    seconds since the fleet began, None where it did not come so far.
    """
    turns = it_turns[it_turns["round"] == number]
    who = turns["device"]
    fate, cause = fates_of(turns)
    status = [
        "failed" if each == FAILED else str(STATUSES[each]) for each in turns["status"].tolist()
    ]
    times = {
        f"{name}_s": [float(each) if each > 0 else None for each in turns[name]]
        for name in ("assigned", "fetched", "trained", "ended")
    }
    return {
        "device": who.tolist(),
        "class": [population.classes[int(each)].name for each in population.kind[who]],
        "zone_h": population.zone_h[who].astype(float).tolist(),
        "language": [population.languages[int(each)] for each in population.language[who]],
        **times,
        "examples": turns["examples"].tolist(),
        "batches": turns["batches"].tolist(),
        "bytes_up": turns["bytes_up"].tolist(),
        "bytes_down": turns["bytes_down"].tolist(),
        "status": status,
        "fate": fate.tolist(),
        "cause": [str(each) for each in cause],
    }


# the funnel


def check_ins(it: Lived) -> Table:
    """Check-ins by hour and by what came of them: `assigned`, or a cause."""
    rows = [(hour, str(cause), count) for (hour, cause), count in sorted(it.check_ins.items())]
    return _table(("hour", "came_of_it", "check_ins"), rows)


def funnel(it: Lived, given: Assignments) -> Table:
    """From asking to counted. A row without a cause: how many came so far. With one: how many did
    not come further than the step before, and why. Steps from `assigned` on count assignments;
    `asked` counts check-ins.
    """
    by_cause: Counter[str] = Counter()
    for (_, cause), count in it.check_ins.items():
        by_cause[str(cause)] += count
    again = by_cause.pop("assigned", 0) - len(given) - it.at_work
    if again > 0:  # an assignment that is fetched once more
        by_cause["assigned_before"] = again
    rows: list[tuple[str, str, int]] = [("asked", "", sum(it.check_ins.values()))]
    rows += [("assigned", cause, count) for cause, count in most_first(by_cause)]
    left = len(given) + it.at_work
    rows.append(("assigned", "", left))
    for number, step in enumerate(REACHED[1:]):
        lost = Counter(given.cause[given.reached == number].tolist())
        if number == 0 and it.at_work:
            lost[UNDER_WAY] = it.at_work
        rows += [(step, str(cause), count) for cause, count in most_first(lost)]
        left -= sum(lost.values())
        rows.append((step, "", left))
    return _table(("step", "cause", "count"), rows)


def fates(given: Assignments) -> Table:
    """Assignments by what became of them, and why."""
    counts = Counter(zip(given.fate.tolist(), map(str, given.cause.tolist()), strict=True))
    rows = sorted(
        ((fate, cause, count) for (fate, cause), count in counts.items()),
        key=lambda row: (row[0], -row[2], row[1]),
    )
    return _table(("fate", "cause", "assignments"), rows)


def drop_out_by_hour(given: Assignments) -> Table:
    """How many drop out, by the hour of the day in which they got their work."""
    hour = (given.at // HOUR_S).astype(np.int64) % 24
    many = np.bincount(hour, minlength=24)
    lost = np.bincount(hour[given.fate == DROPPED_OUT], minlength=24)
    return {
        "hour_of_day_utc": list(range(24)),
        "assignments": many.tolist(),
        "dropped_out": lost.tolist(),
    }


# traffic and staleness


def traffic(it: Lived) -> Table:
    """Bytes of bodies by the hour in which a turn ended, as the devices count them."""
    hour = (it.turns["ended"] // HOUR_S).astype(np.int64)
    size = max(1, math.ceil(it.seconds / HOUR_S), int(hour.max(initial=0)) + 1)
    up, down = (
        np.bincount(hour, it.turns[name], size).astype(np.int64)
        for name in ("bytes_up", "bytes_down")
    )
    many = np.bincount(hour, minlength=size)
    return {
        "hour": list(range(size)),
        "turns": many.tolist(),
        "bytes_up": up.tolist(),
        "bytes_down": down.tolist(),
    }


def staleness(it: Lived, given: Assignments) -> Table:
    """Counted updates by how many rounds lay between the one they were begun in and the one that
    counted them. What came at the very moment at which a round closed is taken as of that round.
    """
    counted = given.fate == COUNTED
    closed = np.array([each.opened_at - START + each.seconds for each in it.rounds])
    numbers = np.array([each.round for each in it.rounds], np.int64)
    if not len(numbers) or not counted.any():
        return _table(("rounds_behind", "updates"), [])
    place = np.searchsorted(closed, given.ended[counted] - 1e-6, side="left")
    of = numbers[np.minimum(place, len(numbers) - 1)]
    behind = np.maximum(of - given.round[counted], 0)
    many = np.bincount(behind)
    return {"rounds_behind": list(range(len(many))), "updates": many.tolist()}


# who takes part


def counted_by_device(it: Lived, given: Assignments) -> NDArray[np.int64]:
    """How often each device counted, [devices]."""
    return np.bincount(given.device[given.fate == COUNTED], minlength=len(it.shared.population))


def participation(times: NDArray[np.int64]) -> Table:
    """Devices by how often they counted."""
    devices = np.bincount(times)
    used = np.flatnonzero(devices)
    return {
        "times_counted": used.tolist(),
        "devices": devices[used].tolist(),
        "share": (devices[used] / len(times)).tolist(),
    }


def groups(population: Population) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Kinds of devices: what they differ in, the value of it, and which devices have it."""
    parts: list[tuple[str, str, NDArray[np.bool_]]] = []
    for number, kind in enumerate(population.classes):
        parts.append(("class", kind.name, population.kind == number))
    for zone in np.unique(population.zone_h).tolist():
        parts.append(("time zone", f"UTC{zone:+g}", population.zone_h == np.float32(zone)))
    for number, language in enumerate(population.languages):
        parts.append(("language", language, population.language == number))
    return [part for part in parts if part[2].any()]


def bias(population: Population, times: NDArray[np.int64]) -> Table:
    """Who never takes part, and who is heard how often, by kinds of devices. `share_of_devices` and
    `share_of_never` and `share_of_updates` are of all devices, of those that never took part and of
    all counted updates.
    """
    never = times == 0
    rows = [
        (
            by,
            value,
            int(has.sum()),
            float(has.mean()),
            int((has & never).sum()),
            float(never[has].mean()),
            float((has & never).sum() / never.sum()) if never.any() else None,
            float(times[has].sum() / times.sum()) if times.any() else None,
        )
        for by, value, has in [("all", "all", np.ones(len(times), bool)), *groups(population)]
    ]
    names = ("by", "value", "devices", "share_of_devices", "never", "never_share")
    return _table((*names, "share_of_never", "share_of_updates"), rows)


def why_never(it: Lived, given: Assignments, times: NDArray[np.int64]) -> Table:
    """The devices that never took part, by the first thing that kept them from it."""
    who = np.flatnonzero(times == 0)
    shared, own = it.shared, it.shared.limits
    worked = np.isin(who, given.device)
    ready = shared.availability.ready_at(who, np.zeros(len(who)), shared.needed) < it.seconds
    users = shared.population.user[who]
    have = shared.typed.arrived(
        users,
        shared.population.first_messages[who],
        shared.population.messages_a_day[who],
        it.seconds,
    )
    messages, words = shared.typed.trainable(users, have, own.most.max_rows)
    enough = (messages >= own.own.least_messages) & (words >= own.own.least_words)
    reasons = np.select(
        [worked, ~ready, ~enough],
        ["got work, which never counted", "conditions never held", "typed too little"],
        "had no place in any round",
    )
    rows = most_first(Counter(reasons.tolist()))
    return _table(("why", "devices"), rows)


# how good


def accuracy(it: Lived) -> Table:
    """Scores of checkpoints on messages that devices hold back from training."""
    rows = [
        (
            each.round,
            each.at_s / HOUR_S,
            each.who,
            each.devices,
            each.scores.targets,
            _share(each.scores.top1, each.scores.targets),
            _share(each.scores.top3, each.scores.targets),
            _share(each.scores.loss, each.scores.in_vocabulary),
        )
        for each in it.measured
    ]
    names = ("round", "made_at_h", "messages_of", "devices", "words", "top1", "top3", "loss")
    return _table(names, rows)


# all of it


def tables(it: Lived) -> dict[str, Table]:
    """Every table of a fleet, by name."""
    given = assignments(it.turns)
    times = counted_by_device(it, given)
    by_hour = eligible(it)
    return {
        "eligible": by_hour,
        "eligible_by_hour_of_day": eligible_by_hour_of_day(by_hour),
        "rounds": rounds(it),
        "round_causes": round_causes(it),
        "check_ins": check_ins(it),
        "funnel": funnel(it, given),
        "fates": fates(given),
        "drop_out_by_hour": drop_out_by_hour(given),
        "sessions": _table(("shape", "turns"), sessions(it.turns)),
        "traffic": traffic(it),
        "staleness": staleness(it, given),
        "participation": participation(times),
        "bias": bias(it.shared.population, times),
        "why_never": why_never(it, given, times),
        "accuracy": accuracy(it),
    }


def summary(it: Lived, made: Mapping[str, Table]) -> Summary:
    """The figures that matter of a fleet with these tables."""
    task = it.settings.task
    over = [each for each in it.rounds if each.phase in (Phase.COMMITTED, Phase.ABANDONED)]
    committed = [each for each in over if each.phase is Phase.COMMITTED]
    empty = sum(each.assigned == 0 for each in over if each.phase is Phase.ABANDONED)
    durations = np.array([each.seconds for each in committed])
    fate = Counter[str]()
    for name, count in zip(made["fates"]["fate"], made["fates"]["assignments"], strict=True):
        fate[name] += count
    many = sum(fate.values())
    spent = [each for each in it.rounds if each.rho is not None]
    never, all_devices = made["bias"]["never"][0], made["bias"]["devices"][0]
    top1 = _top1(it)
    return Summary(
        seed=it.settings.seed,
        devices=all_devices,
        virtual_s=it.seconds,
        aggregation=str(task.aggregation),
        mode=str(task.rules.mode),
        training=Path(it.settings.training.bundle).name or "stand-in",
        report_goal=task.rules.report_goal,
        over_selection=task.rules.over_selection,
        check_ins=sum(it.check_ins.values()),
        turns=len(it.turns),
        assignments=many,
        updates_counted=fate[COUNTED],
        rounds_committed=len(committed),
        rounds_abandoned=len(over) - len(committed),
        rounds_empty=empty,
        rounds_closed_share=_share(len(committed), len(over) - empty),
        round_duration_median_s=float(np.median(durations)) if len(durations) else None,
        round_duration_p90_s=float(np.quantile(durations, 0.9)) if len(durations) else None,
        drop_out_share=_share(fate[DROPPED_OUT], many),
        turned_away_share=_share(fate[TURNED_AWAY], many),
        eligible_share_mean=float(np.mean(made["eligible"]["all_three"])),
        eligible_swing_ratio=swing(made["eligible_by_hour_of_day"]),
        bytes_up=sum(each.bytes_up for each in it.rounds),
        bytes_down=sum(each.bytes_down for each in it.rounds),
        bytes_up_per_update_counted=_share(sum(each.bytes_up for each in it.rounds), fate[COUNTED]),
        rho=spent[-1].rho if spent else None,
        epsilon=spent[-1].epsilon if spent else None,
        delta=task.noise.delta if task.noise is not None and spent else None,
        devices_never=never,
        devices_never_share=never / all_devices,
        top1_first=top1(EVERYBODY, 0),
        top1_last=top1(EVERYBODY, -1),
        top1_took_part=top1(TOOK_PART, -1),
        top1_never=top1(NEVER, -1),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _top1(it: Lived) -> Callable[[str, int], float | None]:
    """A function: whose messages, and which of their measurements -> top-1."""

    def of(who: str, which: int) -> float | None:
        theirs = [each.scores for each in it.measured if each.who == who]
        return _share(theirs[which].top1, theirs[which].targets) if theirs else None

    return of


def write(it: Lived, folder: Path) -> Summary:
    """Write the tables and the summary of a fleet into its run's folder. Raises OSError."""
    made = tables(it)
    told = summary(it, made)
    figures.write(folder, told, made)
    return told


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Rows as columns."""
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}

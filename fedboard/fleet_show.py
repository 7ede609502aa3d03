"""What `fedboard fleet show` says of a fleet and of one of its rounds: tables for a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass

from device_runtime import causes
from device_runtime.errors import RunError
from fedboard.fleet_report import moment, span
from fedboard.readable import MISSING, number, percent, size
from fleet.figures import Summary, Table, by_row

MOST_ROWS = 40  # of a terminal's table


@dataclass(frozen=True)
class Shown:
    """A table for a terminal."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def fleet(tables: Mapping[str, Table]) -> list[Shown]:
    """What became of the work of a fleet, of its rounds, and who never took part."""
    fates, bias, rounds = tables["fates"], tables["bias"], tables["rounds"]
    many = max(1, sum(fates["assignments"]))
    newest = [
        [
            str(rounds["round"][place]),
            moment(rounds["opened_h"][place] * 3600),
            span(rounds["duration_s"][place]),
            rounds["phase"][place],
            *(number(rounds[name][place]) for name in ("selected", "reported", "counted")),
            size(rounds["bytes_up"][place]),
        ]
        for place in range(len(rounds["round"]))
    ][-MOST_ROWS:]
    return [
        Shown(
            "what became of the work",
            ["", "why", "number", "%"],
            [
                [fate, causes.label(cause), number(count), percent(count / many)]
                for fate, cause, count in zip(*fates.values(), strict=True)
            ],
        ),
        Shown(
            "who never took part",
            ["devices", "number", "never", "%"],
            [
                [by if by == value else f"{by}: {value}", number(of), number(never), percent(share)]
                for by, value, of, never, share in zip(
                    *(bias[name] for name in ("by", "value", "devices", "never", "never_share")),
                    strict=True,
                )
            ],
        ),
        Shown(
            f"rounds, the last {len(newest)} of {len(rounds['round'])}",
            ["round", "opened", "took", "outcome", "got work", "reported", "counted", "up"],
            newest,
        ),
    ]


def heading(told: Summary) -> list[str]:
    """A fleet in a few lines."""
    closed = percent(told.rounds_closed_share)
    ratio = told.eligible_swing_ratio
    swing = "" if ratio is None else f", the best hour has {ratio:.1f} times those of the worst"
    return [
        f"{number(told.devices)} devices, {span(told.virtual_s)}, {number(told.check_ins)} "
        f"check-ins, {number(told.turns)} turns, {number(told.updates_counted)} updates counted",
        f"{number(told.rounds_committed)} rounds committed, {closed} % of those with devices; "
        f"the median one took {span(told.round_duration_median_s)}",
        f"{percent(told.drop_out_share)} % dropped out, {percent(told.devices_never_share)} % of "
        f"the devices never took part{swing}",
    ]


def round_of(tables: Mapping[str, Table], devices: Table, round: int) -> list[Shown]:
    """One round, and each turn of it (`fleet.tables.of_round`). Raises RunError for a round that
    was not.
    """
    rounds = tables["rounds"]
    if round not in rounds["round"]:
        was = f"{min(rounds['round'])} to {max(rounds['round'])}" if rounds["round"] else "none"
        raise RunError(
            "--round", f"expected a round of the fleet ({was}), found {round}", "name one"
        )
    place = rounds["round"].index(round)
    opened = rounds["opened_h"][place] * 3600
    of_it = {name: column[place] for name, column in rounds.items()}
    why = tables["round_causes"]
    lost = [
        [step, causes.label(cause), number(count)]
        for number_of, step, cause, count in zip(*why.values(), strict=True)
        if number_of == round
    ]
    return [
        Shown(
            f"round {round}: {of_it['phase']}, opened {moment(opened)}, took "
            f"{span(of_it['duration_s'])}",
            ["asked", "got work", "fetched", "reported", "counted", "goal", "up", "down"],
            [
                [
                    *(
                        number(of_it[name])
                        for name in ("asked", "selected", "fetched", "reported", "counted", "goal")
                    ),
                    *(size(of_it[name]) for name in ("bytes_up", "bytes_down")),
                ]
            ],
        ),
        *([Shown("by the server", ["", "why", "devices"], lost)] if lost else []),
        Shown(
            "each turn, with the time since the round was opened",
            [
                *("device", "class", "zone", "language", "work", "fetched", "trained", "ended"),
                *("up", "down", "came of it", "why"),
            ],
            [
                [
                    str(row["device"]),
                    row["class"],
                    f"{row['zone_h']:+g}",
                    row["language"],
                    *(
                        MISSING if row[name] is None else span(row[name] - opened)
                        for name in ("assigned_s", "fetched_s", "trained_s", "ended_s")
                    ),
                    size(row["bytes_up"]),
                    size(row["bytes_down"]),
                    row["status"].replace("_", " "),
                    causes.label(row["cause"]),
                ]
                for row in by_row(devices)
            ],
        ),
    ]

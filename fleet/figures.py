"""Figures: the tables and the summary of a fleet, as they lie in its run's folder.

tables/NAME.csv   one table each
summary.json      `Summary`
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_runtime import config, durable
from device_runtime.errors import ConfigError, RunError

SUMMARY, FOLDER = "summary.json", "tables"

Table = Mapping[str, Sequence[Any]]  # columns of one length

# the columns of each table
TABLES = {
    "eligible": "hour day hour_of_day_utc charging unmetered idle all_three",
    "eligible_by_hour_of_day": "hour_of_day_utc days charging unmetered idle all_three",
    "rounds": (
        "round day opened_h duration_s phase goal asked refused selected fetched reported counted "
        "dropped bytes_up bytes_down loss_before loss_after rho epsilon checkpoint reason"
    ),
    "round_causes": "round step cause devices",
    "check_ins": "hour came_of_it check_ins",
    "funnel": "step cause count",
    "fates": "fate cause assignments",
    "drop_out_by_hour": "hour_of_day_utc assignments dropped_out",
    "sessions": "shape turns",
    "traffic": "hour turns bytes_up bytes_down",
    "staleness": "rounds_behind updates",
    "participation": "times_counted devices share",
    "bias": ("by value devices share_of_devices never never_share share_of_never share_of_updates"),
    "why_never": "why devices",
    "accuracy": "round made_at_h messages_of devices words top1 top3 loss",
}
# those that hold words; all others hold numbers
_WORDS = {
    *("phase", "checkpoint", "reason", "step", "cause", "came_of_it", "fate", "shape"),
    *("by", "value", "why", "messages_of"),
}


@dataclass(frozen=True)
class Summary:
    """The figures that matter. Shares are 0..1; None: there was nothing to tell it from."""

    seed: int
    devices: int
    virtual_s: float
    aggregation: str
    mode: str
    training: str  # `stand-in`, or the name of a bundle
    report_goal: int
    over_selection: float
    check_ins: int
    turns: int
    assignments: int
    updates_counted: int
    rounds_committed: int
    rounds_abandoned: int
    rounds_empty: int  # of the abandoned: nobody had got work
    # committed of all that are over and in which somebody had got work
    rounds_closed_share: float | None
    round_duration_median_s: float | None  # of committed ones
    round_duration_p90_s: float | None
    drop_out_share: float | None  # of assignments
    turned_away_share: float | None
    eligible_share_mean: float
    eligible_swing_ratio: float | None  # most over least eligible hour of a weekday
    bytes_up: int
    bytes_down: int
    bytes_up_per_update_counted: float | None
    rho: float | None
    epsilon: float | None
    delta: float | None
    devices_never: int
    devices_never_share: float
    top1_first: float | None  # of what the fleet began with, and of its last checkpoint
    top1_last: float | None
    top1_took_part: float | None  # of the last one, on devices that took part and on others
    top1_never: float | None


# files


def write(folder: Path, told: Summary, tables: Mapping[str, Table]) -> None:
    """Write the figures of a fleet into its run's folder. Raises OSError."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for name, table in tables.items():
        durable.share(folder / FOLDER / f"{name}.csv", to_csv(table).encode())
    durable.share(folder / SUMMARY, config.to_json(told) + b"\n")


def to_csv(table: Table) -> str:
    """A table as RFC 4180 has it but for line ends; None is empty. Numbers are written in full.

    >>> to_csv({"round": [1, 2], "loss": [0.1, None]})
    'round,loss\\n1,0.1\\n2,\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue()


def from_csv(text: str, where: object) -> dict[str, list[Any]]:
    """The table in a CSV file. An empty field is None in a column of numbers.

    Raises RunError for rows of different lengths, and for a number that is none.

    >>> from_csv("round,phase,loss\\n1,open,0.5\\n2,,\\n", "rounds.csv")
    {'round': [1, 2], 'phase': ['open', ''], 'loss': [0.5, None]}
    """
    try:
        head, *rows = list(csv.reader(io.StringIO(text), strict=True))
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(head)
        return {
            name: list(column) if name in _WORDS else [_number(each) for each in column]
            for name, column in zip(head, columns, strict=True)
        }
    except (ValueError, csv.Error) as error:
        raise _no_figures(where, error) from None


def _number(text: str) -> int | float | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"expected a number, found {text[:40]!r}") from None
        return number


def read(folder: Path) -> tuple[Summary, dict[str, dict[str, list[Any]]]]:
    """The summary and the tables in a run's folder. Raises RunError for a file that is not there,
    or is none of ours.
    """
    path = Path(folder) / SUMMARY
    tables = {}
    try:
        told = config.from_json(Summary, path.read_bytes(), str(path))
        for name, columns in TABLES.items():
            path = Path(folder) / FOLDER / f"{name}.csv"
            tables[name] = from_csv(path.read_text(encoding="utf-8"), path)
            if list(tables[name]) != columns.split():
                raise _no_figures(path, f"expected the columns {columns}")
    except OSError as error:
        raise _no_figures(path, error.strerror) from None
    except ConfigError as error:
        # without its own remedy, which is one for messages
        raise _no_figures(path, str(error).rpartition(";")[0]) from None
    except UnicodeDecodeError:
        raise _no_figures(path, "not text") from None
    return told, tables


def _no_figures(where: object, problem: object) -> RunError:
    return RunError(
        where,
        f"cannot be used ({problem})",
        "give the folder of a fleet that has been run; its figures are written anew at the end",
    )


def by_row(table: Table) -> list[dict[str, Any]]:
    """A table as one dict a row."""
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]

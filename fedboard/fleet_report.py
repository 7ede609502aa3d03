"""The report of a fleet: the figures in its folder -> one self-contained page.

What was seen of phones in the world stands beside what this fleet did: Bonawitz et al. 2019.
"""

from collections.abc import Mapping
from pathlib import Path

from device_runtime import causes
from device_runtime.shown import rounded_up
from device_runtime.wire import DAY_S
from fedboard import page
from fedboard.fleet_plots import DROP_OUT, SWING, plots
from fedboard.page import Bar
from fedboard.readable import MISSING, duration, number, percent, size
from fleet.figures import FOLDER, SUMMARY, Summary, Table, by_row, read
from fleet.runs import MARK

REPORT = "report.html"
_NAMES = {
    "asked": "asked (check-ins)",
    "assigned": "got work",
    "assigned_before": "went on with work",
    "selecting": "hears later if drawn",
}
# by aggregation: who sees what of updates
_OPENED = {
    "plain": "The server sees each of them.",
    "helper": "A helper opens their sum, and nobody sees a single one.",
    "secagg": "The phones of a round open their sum together, and nobody sees a single one.",
}
NEWEST = 30  # rounds that the page lists; all are in the tables


def is_fleet(folder: Path) -> bool:
    """Whether a folder is that of a fleet, or holds the figures of one."""
    told = (Path(folder) / SUMMARY).is_file() and (Path(folder) / FOLDER / "fates.csv").is_file()
    return told or (Path(folder) / MARK).is_file()


def build(folder: Path) -> Path:
    """Write report.html from the figures in a fleet's folder; returns its path.

    Raises RunError for a folder without them, and for one whose report.html is somebody else's.
    """
    told, tables = read(folder)
    path = Path(folder) / REPORT
    page.write(path, lambda: render(Path(folder).resolve().name, told, tables))
    return path


def render(name: str, told: Summary, tables: Mapping[str, Table]) -> str:
    """The page of a fleet of that name."""
    rows = by_row(tables["rounds"])
    return page.render(
        "fleet.html.j2",
        {"span": span, "phones": phones, "moment": moment},
        name=name,
        told=told,
        days=span(told.virtual_s),
        story=story(told),
        tiles=tiles(told),
        opened=_OPENED.get(told.aggregation, ""),
        plots=plots(told, tables),
        funnel=funnel(tables["funnel"]),
        fates=by_row(tables["fates"]),
        sessions=by_row(tables["sessions"])[:8],
        bias=by_row(tables["bias"]),
        why_never=bars(tables["why_never"], "why", "devices"),
        accuracy=[row for row in by_row(tables["accuracy"]) if row["messages_of"] != "everybody"],
        rounds=rows[-NEWEST:],
        abandoned=bars(abandoned(tables["rounds"]), "why", "rounds"),
        is_all=len(rows) <= NEWEST,
    )


# in words


def story(told: Summary) -> list[str]:
    """What happened, in a few sentences."""
    low, high = (f"{100 * end:.0f}" for end in DROP_OUT)
    said = [
        f"{phones(told.devices)} lived {span(told.virtual_s)} in simulation, under the real "
        f"coordinator. They asked it for work {number(told.check_ins)} times and got it "
        f"{number(told.assignments)} times; {number(told.updates_counted)} updates were counted."
    ]
    if told.rounds_closed_share is None:
        said.append("No round came to an end in which a device had got work.")
    else:
        said.append(
            f"{number(told.rounds_committed)} rounds committed, {percent(told.rounds_closed_share)}"
            " % of all that had got work to anybody; the median one took "
            f"{span(told.round_duration_median_s)}."
        )
    if told.drop_out_share is not None:
        said.append(
            f"{percent(told.drop_out_share)} % of the phones with work dropped out: they were "
            "picked up or unplugged, lost their network, or were too slow. Of phones in the world "
            f"{low} to {high} % do."
        )
    if told.eligible_swing_ratio is not None:
        said.append(
            f"In the best hour of a weekday {told.eligible_swing_ratio:.1f} times as many phones "
            f"may train as in the worst one; in the world {SWING:.0f} times as many did."
        )
    said.append(
        f"{phones(told.devices_never)}, {percent(told.devices_never_share)} %, never took part."
    )
    if told.epsilon is not None and told.delta is not None:
        said.append(
            f"What was learnt of any one of them is bounded by epsilon "
            f"{rounded_up(told.epsilon)} at delta {told.delta:g}."
        )
    if told.training == "stand-in":
        said.append("Their training was a stand-in, which takes its time and learns nothing.")
    elif told.top1_first is not None and told.top1_last is not None:
        said.append(
            f"On messages that were held back, top-1 went from {percent(told.top1_first)} to "
            f"{percent(told.top1_last)} %."
        )
    return said


def tiles(told: Summary) -> list[tuple[str, str]]:
    """The figures that matter, and what each is."""
    low, high = (f"{100 * end:.0f}" for end in DROP_OUT)
    figures = [
        (told.rounds_closed_share, lambda it: f"{percent(it)} %", "of rounds with devices closed"),
        (told.round_duration_median_s, span, "a round, in the median"),
        (
            told.drop_out_share,
            lambda it: f"{percent(it)} %",
            f"of devices with work dropped out (published: {low} to {high} %)",
        ),
        (
            told.eligible_swing_ratio,
            lambda it: f"{it:.1f}x",
            f"between the best and the worst hour of a weekday (published: {SWING:.0f}x)",
        ),
        (told.devices_never_share, lambda it: f"{percent(it)} %", "of devices never took part"),
        (told.bytes_up_per_update_counted, size, "went up for each update counted"),
        (told.epsilon, rounded_up, "epsilon spent"),
        (told.top1_last, lambda it: f"{percent(it)} %", "top-1 on messages held back"),
    ]
    return [(shown(value), what) for value, shown, what in figures if value is not None]


def phones(count: int) -> str:
    """So many phones.

    >>> phones(1), phones(1000)
    ('1 phone', '1,000 phones')
    """
    return f"{number(count)} phone{'' if count == 1 else 's'}"


def span(seconds: float | None) -> str:
    """A stretch of virtual time.

    >>> span(42), span(185), span(1015), span(5400), span(86400), span(216_000), span(None)
    ('42 s', '3 min 05 s', '17 min', '1 h 30 min', '1 day', '2.5 days', '–')
    """
    if seconds is None:
        return MISSING
    minutes = round(seconds / 60)
    if minutes < 10:
        return duration(seconds)
    if minutes < 60:
        return f"{minutes} min"
    if seconds < DAY_S:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    days = seconds / DAY_S
    return "1 day" if days == 1 else f"{days:.1f}".removesuffix(".0") + " days"


def moment(seconds: float) -> str:
    """A time since a fleet began.

    >>> moment(90_000)
    'day 2, 01:00'
    """
    day, rest = divmod(round(seconds), int(DAY_S))
    return f"day {1 + day}, {rest // 3600:02}:{rest % 3600 // 60:02}"


# as bars


def funnel(table: Table) -> list[Bar]:
    """Those left after each step, and before it those who came no further, by cause. Check-ins are
    many to a device: what becomes of them is drawn to a scale of their own.
    """
    rows = by_row(table)
    came = {row["step"]: row["count"] for row in rows if not row["cause"]}
    drawn = []
    for row in rows:
        of_check_ins = row["step"] == "asked" or (row["step"] == "assigned" and row["cause"])
        longest = came["asked" if of_check_ins else "assigned"]
        drawn.append(
            Bar(
                _named(row["cause"] or row["step"]),
                row["count"],
                row["count"] / longest if longest else 0.0,
                lost=bool(row["cause"]),
            )
        )
    return drawn


def _named(name: str) -> str:
    return _NAMES.get(name, causes.label(name))


def bars(table: Table, name: str, count: str) -> list[Bar]:
    """A bar for each row of a table."""
    longest = max(table[count], default=0)
    return [
        Bar(str(label), value, value / longest)
        for label, value in zip(table[name], table[count], strict=True)
    ]


def abandoned(rounds: Table) -> Table:
    """Why rounds were abandoned, the most frequent first."""
    counts: dict[str, int] = {}
    for row in by_row(rounds):
        if row["phase"] == "abandoned":
            nobody = "nobody had got work" if not row["selected"] else "too few reports"
            why = row["reason"] or nobody
            counts[why] = counts.get(why, 0) + 1
    order = sorted(counts, key=lambda why: (-counts[why], why))
    return {"why": order, "rounds": [counts[why] for why in order]}

"""People: what is shown of a fleet's population or of a recording: figures, tables, one plot.

folder -> Shown -> JSON | tables | SVG
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime.errors import RunError
from fedboard import drawing
from fedboard.readable import MISSING, number, percent, size
from fleet import eligible, population, traces
from fleet.availability import Availability
from fleet.days import Days
from fleet.population import Population
from fleet.traces import Recording, Traces

MOST = 20_000  # devices that are looked at; all devices are drawn alike
MOST_DAYS = 31  # of a recording that are looked at
TURN_S = 60.0  # of a phone that nothing else is known of
SIGNALS = {"charging": "charging", "unmetered": "on WiFi", "idle": "idle", "all": "all three"}
COLOURS = {"charging": "#b3622e", "unmetered": "#7aa6d8", "idle": "#888888", "all": "#1f3d5c"}
DROPPED = "#7d3c98"
# of an American population, and of its rounds: Bonawitz et al. 2019, arXiv:1902.01046
SWING, DROP_OUT = 4.0, (0.06, 0.1)
_DASHED = (0, (4, 4))
_BAR = 20  # characters of the largest share
_TITLE = "devices of a fleet, by the hour"

Table = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True)
class Shown:
    """What there is to say of a folder. Shares by the hour (UTC) are of one day, [24]."""

    about: dict[str, Any]
    eligible: dict[str, NDArray[np.float64]]
    drop_out: NDArray[np.float64]  # estimated; not a number where no device is ready
    day: str
    tables: list[Table] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where no device is ready."""
        swing = eligible.swing(self.eligible["all"])
        mean = _mean(self.drop_out)
        return {
            **self.about,
            "day": self.day,
            "eligible": {name: share.tolist() for name, share in self.eligible.items()},
            "swing": swing if math.isfinite(swing) else None,
            "drop_out": [share if math.isfinite(share) else None for share in self.drop_out],
            "drop_out_mean": mean if math.isfinite(mean) else None,
        }

    def sentence(self) -> str:
        """Both figures in words."""
        shares, swing = self.eligible["all"], eligible.swing(self.eligible["all"])
        if not shares.max():
            return f"{self.day}: no device is ready at any hour"
        times = f"{swing:.1f} times as many as" if math.isfinite(swing) else "none"
        worst = f"{times} in the worst ({int(shares.argmin()):02}:00)"
        return (
            f"{self.day}: {percent(float(shares.max()))} % are ready in the best hour "
            f"({int(shares.argmax()):02}:00 UTC), {worst}; about "
            f"{percent(_mean(self.drop_out))} % of those that begin a turn would not end it"
        )

    def by_hour(self) -> Table:
        """Hour after hour, with bars."""
        most = max(float(self.eligible["all"].max()), 1e-9)
        rows = [
            [
                f"{hour:02}:00 {'█' * round(_BAR * float(self.eligible['all'][hour]) / most)}",
                *(percent(float(self.eligible[name][hour])) for name in SIGNALS),
                percent(float(self.drop_out[hour])),
            ]
            for hour in range(24)
        ]
        columns = ["UTC", *(f"{label}\n%" for label in SIGNALS.values()), "drop out\n%"]
        return f"{self.day}: devices by the hour", columns, rows


def look(folder: Path, day: int, turn: float | None, repeat: bool = False) -> Shown:
    """What there is to say of a population's folder, or of a recording's. `turn`: seconds of one.

    Raises ConfigError or RunError for a folder that holds neither.
    """
    if (folder / population.ABOUT).exists():
        return of_population(population.load(folder), day, turn)
    if (folder / traces.ABOUT).exists():
        return of_recording(traces.load(folder), turn, repeat)
    raise RunError(
        folder,
        f"expected a population ({population.ABOUT}) or a recording ({traces.ABOUT}), found "
        "neither",
        "make one with `fedboard fleet population make`",
    )


def of_population(people: Population, day: int = 1, turn: float | None = None) -> Shown:
    """What there is to say of a population on one day of its fleet, 0 for its first Monday."""
    lives, devices = Days(people), np.arange(min(len(people), MOST))
    seconds = eligible.turn_s(people) if turn is None else np.full(len(people), turn)
    never = np.isinf(lives.ready_at(devices, np.zeros(len(devices))))
    classes = [
        {
            "name": kind.name,
            "devices": int((people.kind == number).sum()),
            "batch_s": _median(people.batch_s[people.kind == number]),
            "down": _median(people.down[people.kind == number]),
            "up": _median(people.up[people.kind == number]),
            "latency_s": _median(people.latency_s[people.kind == number]),
            "memory_mb": kind.memory_mb,
            "storage_mb": kind.storage_mb,
            "runtime": kind.runtime,
            "never_ready": _share(never[people.kind[devices] == number]),
        }
        for number, kind in enumerate(people.classes)
    ]
    regions = [
        {
            "name": region.name,
            "zone_h": region.zone_h,
            "devices": int((people.region == number).sum()),
            "never_ready": _share(never[people.region[devices] == number]),
        }
        for number, region in enumerate(people.regions)
    ]
    languages = {
        name: int((people.language == number).sum()) for number, name in enumerate(people.languages)
    }
    about = {
        "devices": len(people),
        "seed": people.seed,
        "digest": population.digest(people),
        "classes": classes,
        "regions": regions,
        "languages": languages,
    }
    name = _day_name(day)
    return Shown(
        about,
        eligible.by_hour(lives, devices, day),
        eligible.drop_out(lives, devices, seconds[devices], people.breaks, day),
        name,
        [_classes(classes), _regions(regions), _languages(languages)],
    )


def of_recording(recording: Recording, turn: float | None = None, repeat: bool = False) -> Shown:
    """What there is to say of a recording, the mean of its days."""
    lives: Availability = Traces(recording, len(recording), 0, repeat)
    devices = np.arange(min(len(recording), MOST))
    seconds = np.full(len(devices), TURN_S if turn is None else turn)
    days = range(min(recording.days, MOST_DAYS))
    shares = [eligible.by_hour(lives, devices, day, looks=1) for day in days]
    dropped = np.array([eligible.drop_out(lives, devices, seconds, 0.0, day, 1) for day in days])
    quality = {
        name: {"lines": found.lines, "devices": found.devices}
        for name, found in vars(recording.quality).items()
    }
    about = {"devices": len(recording), "days": recording.days, "quality": quality}
    return Shown(
        about,
        {name: np.mean([share[name] for share in shares], axis=0) for name in SIGNALS},
        np.array([_mean(column) for column in dropped.T]),
        f"mean of {len(days)} days" if len(days) > 1 else "one day",
        [quality_of(recording)],
    )


def quality_of(recording: Recording) -> Table:
    """What a recording's lines are."""
    said = {
        "used": "tell a signal",
        "other": "tell none: battery levels, a phone's start",
        "unknown_network": "of an unknown network: neither WiFi nor its absence",
        "same_second": "of the second of the line before: kept in order",
        "out_of_order": "earlier than the line before: sorted in",
        "gaps": "a day or more after the line before",
        "duplicates": "the line before once more: left out",
        "unknown_states": "an unknown state: left out",
        "malformed": "no time, tab and state: left out",
        "silent": "devices of which nothing can be used",
    }
    rows = [
        [said[name], f"{found.lines:,}", f"{found.devices:,}"]
        for name, found in vars(recording.quality).items()
    ]
    title = f"{len(recording):,} devices, {recording.days:,} days"
    return title, ["lines", "lines\nof them", "devices"], rows


def svg(shown: Shown) -> str:
    """Two plots, one above the other: signals by the hour, and how many would drop out."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fedboard",
        "text.parse_math": False,
    }
    hours = np.arange(24) + 0.5
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(7, 6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for name, label in SIGNALS.items():
            width = 2.5 if name == "all" else 1.2
            shares = 100 * shown.eligible[name]
            above.plot(hours, shares, color=COLOURS[name], linewidth=width, label=label)
        share = 100 * shown.eligible["all"]
        above.fill_between(hours, share, color=COLOURS["all"], alpha=0.15, linewidth=0)
        if share.max():
            height = float(share.max()) / SWING
            above.axhline(height, color="#666666", linewidth=1, linestyle=_DASHED)
            said, below_it = f"the best hour / {SWING:g}", (0, -12)
            place = (23.9, height)
            above.annotate(said, place, below_it, textcoords="offset points", ha="right", size=9)
        above.set(ylim=(0, 115), xlim=(0, 24), ylabel="devices, %", yticks=range(0, 101, 20))
        above.legend(frameon=False, fontsize=9, ncols=4, loc="upper left")
        above.set_title(f"{_TITLE}: {shown.day}", loc="left")
        below.bar(hours, np.nan_to_num(100 * shown.drop_out), 0.8, color=DROPPED, alpha=0.6)
        below.axhspan(*(100 * each for each in DROP_OUT), color="#888888", alpha=0.2, linewidth=0)
        mean = _mean(shown.drop_out)
        if math.isfinite(mean):
            below.axhline(100 * mean, color="#666666", linewidth=1, linestyle=_DASHED)
        low, high = (percent(each, 0) for each in DROP_OUT)
        said = f"would drop out: {percent(mean)} % on average; {low} to {high} % shaded"
        below.set_title(said, loc="left", size=10)
        below.set(xlabel="hour, UTC", ylabel="of those ready, %")
        below.set_xticks(range(0, 25, 3))
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
        return drawing.whole(figure)


def is_plot(path: Path) -> bool:
    """Whether a file is a drawing of `svg`. Raises OSError."""
    return drawing.is_titled(path, _TITLE)


def _classes(classes: Sequence[dict[str, Any]]) -> Table:
    columns = ["class", "devices", "batch\ns", "down\na second", "up\na second", "latency\nms"]
    columns += ["memory\nMB", "never ready\n%"]
    rows = [
        [
            each["name"],
            f"{each['devices']:,}",
            MISSING if each["batch_s"] is None else f"{each['batch_s']:.2f}",
            size(each["down"]),
            size(each["up"]),
            number(None if each["latency_s"] is None else 1000 * each["latency_s"]),
            f"{each['memory_mb']:,}",
            percent(each["never_ready"]),
        ]
        for each in classes
    ]
    return "classes, with medians", columns, rows


def _regions(regions: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [
            each["name"],
            f"{each['zone_h']:+g}",
            f"{each['devices']:,}",
            percent(each["never_ready"]),
        ]
        for each in regions
    ]
    return "time zones", ["zone", "h from UTC", "devices", "never ready\n%"], rows


def _languages(languages: dict[str, int]) -> Table:
    most = sorted(languages.items(), key=lambda each: (-each[1], each[0]))
    rows = [[name, f"{count:,}"] for name, count in most]
    return "languages", ["language", "devices"], rows


def _day_name(day: int) -> str:
    names = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    return f"{names[day % 7]}, day {day}"


def _median(column: NDArray[Any]) -> float | None:
    return float(np.median(column)) if len(column) else None


def _share(column: NDArray[np.bool_]) -> float | None:
    return float(column.mean()) if len(column) else None


def _mean(shares: NDArray[np.float64]) -> float:
    """Of those that are numbers; not a number where none is."""
    numbers = shares[np.isfinite(shares)]
    return float(numbers.mean()) if len(numbers) else math.nan

"""The operator's page: an overview -> HTML. Rendered here, with no build step and nothing from
elsewhere; plots are drawn as SVG.

The page's one script fetches the page again every few seconds and puts its main part in place. What
may run is named by hash in the policy.
"""

import base64
import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from device_runtime import causes
from device_runtime.causes import Step
from device_runtime.wire import FUNNEL, UNDER_WAY, Kind, RoundReport
from server import release_plots
from server.overview import STEPS, Overview, Score, TaskView, counts, eligible
from server.rounds import Mode

REFRESH_S = 5
FOLDER = Path(__file__).parent / "templates"
REACHED = {  # by step of the funnel: what is true of the devices that came to it
    "checked_in": "devices that asked for work",
    "eligible": "charging, on an unmetered network, idle, and allowed by the task",
    "assigned": "given work",
    "downloaded": "have the checkpoint",
    "uploaded": "trained, and sent a report",
    "counted": "in the round's sum",
    # of rounds whose devices open their sum together
    "keys": "trained, and sent keys that the others hide them by",
    "shares": "gave the others shares of what hides them",
    "consents": "said which devices they were told are counted",
    "unmasked": "gave what takes the masks off the sum",
}
LOST = {  # by step: the heading over the causes that took devices out
    Step.REFUSED: "Not given work, by cause",
    Step.DROPPED: "Lost after that, by cause",
}


@dataclass(frozen=True)
class Page:
    """A page and what a browser may do with it."""

    html: str
    policy: str  # Content-Security-Policy


@dataclass(frozen=True)
class Line:
    """One line of a plot: its name, its class for the colour, and its points."""

    name: str
    kind: str
    points: tuple[tuple[float, float], ...]


def page(overview: Overview) -> Page:
    """The page of an overview."""
    template, style, script = _templates()
    html = template.render(overview=overview, style=Markup(style), script=Markup(script))
    style_hash, script_hash = map(_hash, (style, script))
    policy = (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'"
    )
    return Page(html, f"{policy}; form-action 'none'; frame-ancestors 'none'")


def funnel(report: RoundReport) -> list[tuple[str, int, str]]:
    """The steps of a round: name, devices, and what it means."""
    reached = {step: getattr(report, step) for step in FUNNEL}
    reached["eligible"] = eligible(report.assigned, report.refused)
    steps = list(STEPS)
    if report.steps:
        reached |= report.steps
        at = steps.index("uploaded")
        after = ("consents", "unmasked") if report.steps.get("consents") else ("unmasked",)
        steps = [*steps[:at], "keys", "shares", *steps[at:], *after]
    return [(causes.label(step), reached.get(step, 0), REACHED[step]) for step in steps]


def plot(
    title: str, lines: Sequence[Line], unit: str = "", width: int = 460, height: int = 170
) -> Markup:
    """A line plot as SVG: labelled ticks, a dot at the end of each line, and a title for who cannot
    see it. Points that are no numbers are left out.
    """
    lines = [
        replace(line, points=tuple(each for each in line.points if all(map(math.isfinite, each))))
        for line in lines
    ]
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup('<p class="empty">no figures yet</p>')
    left, right, top, bottom = 44, 12, 10, 24
    xs, ys = _ticks([x for x, _ in points], 5, whole=True), _ticks([y for _, y in points], 4)
    (x0, x1), (y0, y1) = (xs[0], xs[-1]), (ys[0], ys[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - y0) / (y1 - y0) if y1 > y0 else 0.5
        return round(left + across * (width - left - right), 1), round(
            height - bottom - up * (height - top - bottom), 1
        )

    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" class="plot"><title>{}</title>').format(
            width, height, title
        )
    ]
    for y in ys:
        _, v = at(x0, y)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                left, width - right, v, v
            )
        )
        parts.append(
            Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(
                left - 6, v + 4, _number(y)
            )
        )
    for x in xs:
        u, _ = at(x, y0)
        parts.append(
            Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format(
                u, height - 6, _number(x)
            )
        )
    for line in lines:
        where = [at(*point) for point in line.points]
        if where:
            path = " ".join(f"{u},{v}" for u, v in where)
            parts.append(Markup('<polyline class="line {}" points="{}"/>').format(line.kind, path))
            parts.append(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(
                    line.kind, *where[-1]
                )
            )
    parts.append(Markup("</svg>"))
    names = Markup(" ").join(
        Markup('<span class="key {}">{} <b>{}{}</b></span>').format(
            line.kind, line.name, _number(line.points[-1][1]), unit
        )
        for line in lines
        if line.points
    )
    return Markup("<figure><figcaption>{} {}</figcaption>{}</figure>").format(
        title, names, Markup("").join(parts)
    )


def spent_plot(done: Sequence[RoundReport], budget: float) -> Markup:
    """What of its privacy a task had spent after each sum with noise, beside its budget."""
    spent = tuple(
        (float(report.round), report.epsilon) for report in done if report.epsilon is not None
    )
    most = tuple((x, budget) for x in dict.fromkeys((spent[0][0], spent[-1][0]))) if spent else ()
    return plot("epsilon spent", [Line("spent", "a", spent), Line("budget", "b", most)])


def plots(task: TaskView) -> list[Markup]:
    """What a task's figures look like over its rounds."""
    done = [report for report in task.reports if report.phase not in UNDER_WAY]
    figures: list[Markup] = []
    if not done and not task.scores:
        return figures
    if task.kind is Kind.TRAINING:
        top1, top3 = (
            tuple((float(score.round), getattr(score, name)) for score in task.scores)
            for name in ("top1", "top3")
        )
        medians = tuple((float(score.round), score.quartiles[1]) for score in task.scores)
        figures.append(
            plot(
                "accuracy on held-back words, %",
                [
                    Line("top-1", "a", top1),
                    Line("top-3", "b", top3),
                    Line("top-1, median device", "c", medians),
                ],
                " %",
            )
        )
        figures.append(
            plot(
                "loss, nats a word",
                [
                    Line(
                        "loss",
                        "c",
                        tuple((float(score.round), score.loss) for score in task.scores),
                    )
                ],
            )
        )
    if task.spent.budget is not None:
        figures.append(spent_plot(done, task.spent.budget))
    counted = tuple((float(report.round), float(report.counted)) for report in done)
    assigned = tuple((float(report.round), float(report.assigned)) for report in done)
    figures.append(
        plot("devices a round", [Line("assigned", "b", assigned), Line("counted", "a", counted)])
    )
    figures.append(
        plot(
            "minutes a round",
            [
                Line(
                    "minutes",
                    "c",
                    tuple((float(report.round), report.seconds / 60) for report in done),
                )
            ],
        )
    )
    return figures


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def span(seconds: float) -> str:
    """A time for people: two units at most."""
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(
        f"{count} {unit}" for count, unit in parts[first : first + 2] if count or first == 3
    )


def moment(at: float) -> str:
    """A time for people, in UTC.

    >>> moment(86_400.0)
    '1970-01-02 00:00'
    """
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def spread(score: Score) -> str:
    """The quartiles of the devices' top-1, or a dash.

    >>> spread(Score(3, 18.0, 30.0, 4.8, 600, (15.2, 17.5, 21.0), 4))
    '17.5 (15.2 to 21.0)'
    """
    lower, median, upper = score.quartiles
    return f"{median:.1f} ({lower:.1f} to {upper:.1f})" if math.isfinite(median) else "–"


def nats(loss: float) -> str:
    """A loss, or a dash where it is of no word.

    >>> nats(4.756), nats(math.nan)
    ('4.76', '–')
    """
    return f"{loss:.2f}" if math.isfinite(loss) else "–"


def share(count: float, most: float) -> float:
    """Per cent, 0 to 100."""
    return round(100 * min(1.0, count / most), 1) if most else 0.0


@functools.cache
def _templates() -> tuple[jinja2.Template, str, str]:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "span": span, "moment": moment}
    environment.filters |= {"spread": spread, "nats": nats}
    environment.filters["capitalize_first"] = lambda words: words[:1].upper() + words[1:]
    environment.filters |= {"points": release_plots.points, "gained": release_plots.gained}
    environment.globals |= {
        "counts": counts,
        "funnel": funnel,
        "plots": plots,
        "release_plots": release_plots.plots,
        "share": share,
        "sentence": causes.sentence,
        "lost": LOST,
        "Kind": Kind,
        "Mode": Mode,
        "refresh": REFRESH_S,
    }
    style, script = (
        (FOLDER / name).read_text().strip() for name in ("dashboard.css", "dashboard.js")
    )
    return environment.get_template("dashboard.html.j2"), style, script


def _hash(part: str) -> str:
    """SHA-256 as a Content-Security-Policy names what may run."""
    return base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()


def _ticks(values: Sequence[float], about: int, whole: bool = False) -> list[float]:
    """Round numbers that span the values."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # nobody could tell them apart
        high = low + 1
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if whole:
        step = max(1.0, step)
    first = math.floor(low / step)
    return [step * k for k in range(first, math.ceil(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"

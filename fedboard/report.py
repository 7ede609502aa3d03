"""The report: a run's folder -> one self-contained page, without scripts or outside resources.

Every part of the folder is optional: a missing part leaves its section out. The same files give the
same bytes.
"""

import csv
import io
import json
import math
import re
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from device_runtime import causes, config
from device_runtime.errors import ConfigError, RunError
from device_runtime.wire import RoundReport, RoundReports
from fedboard import score
from fedboard.run import Run, Settings, writable, write_whole

if TYPE_CHECKING:  # a second to import: only drawing pays for it
    from markupsafe import Markup
    from matplotlib.figure import Figure

SYSTEMS = (
    "unigram",
    "kn2",
    "kn3",
    "kn4",
    "before",
    "after",
    "shipped",
)  # first rows of the table; others follow by name
NETWORKS = ("after", "before", "shipped")  # the first that is there stands for the network
_WRITE_AGAIN = "remove it, or run the stage that writes it again"


@dataclass(frozen=True)
class RoundMetrics:
    """One row of metrics.csv; shares are 0..1, None where the round was not evaluated."""

    round: int
    loss: float  # mean over the cohort's targets, nats
    top1: float | None = None
    top3: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class Example:
    """One strip before and after the device rounds: words and their probabilities, best first."""

    context: str
    prefix: str
    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Totals:
    """summary.json: what a run took."""

    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    sizes: dict[str, int] = field(default_factory=dict)  # bytes by file
    bytes_per_upload: int | None = None
    memory_mb: dict[str, float] = field(default_factory=dict)  # peak, by process
    seed: int | None = None
    devices: int | None = None
    processes: int | None = None
    verdict: str = ""  # one sentence: does the network beat the bigram


@dataclass(frozen=True)
class Material:
    """Everything the page is made of; a part that is missing is None or empty."""

    settings: Settings | None
    metrics: tuple[RoundMetrics, ...]
    systems: dict[str, score.Scored]  # in the order of the table
    rounds: tuple[RoundReport, ...]
    examples: tuple[Example, ...]
    totals: Totals | None


def build(run: Run) -> Path:
    """Write `run.report` from what the run's folder holds; returns its path.

    Raises RunError for a folder without any part of a run, and for a damaged part, naming the file.
    """
    page = render(run.path.resolve().name, read(run))
    with writable(run.report) as path:
        write_whole(
            path, page.encode(errors="replace")
        )  # a lone surrogate in a message has no bytes
    return run.report


# --- reading the folder
# ------------------------------------------------------------------------------------------------


def read(run: Run) -> Material:
    """The parts of a run's folder. Raises RunError naming the file that is damaged."""
    files = {path.stem: path for path in sorted(run.evaluations.glob("*.json"))}
    material = Material(
        settings=_settings(run) if run.config.exists() else None,
        metrics=_metrics(run.metrics),
        systems={
            stem: _scored(files[stem])
            for stem in sorted(files, key=lambda stem: (*SYSTEMS, stem).index(stem))
        },
        rounds=_message(RoundReports, run.path / "rounds.json", RoundReports()).rounds,
        examples=_examples(run.path / "suggestions.json"),
        totals=_message(Totals, run.path / "summary.json", None),
    )
    if not any(
        getattr(material, part)
        for part in ("settings", "metrics", "systems", "rounds", "examples", "totals")
    ):
        raise RunError(
            run.path, "holds nothing to report on", "give the folder of a run, such as runs/demo"
        )
    return material


def _settings(run: Run) -> Settings:
    try:
        return run.settings()
    except ConfigError as error:
        raise _damaged(run.config, error) from None


def _scored(path: Path) -> score.Scored:
    scored = score.read(path)
    if len(scored.summary.top1_interval) != 2 or len(scored.summary.top3_interval) != 2:
        raise _damaged(path, "an interval needs two ends")
    return scored


def _message(kind: type, path: Path, missing: Any) -> Any:
    """The dataclass in a JSON file, or `missing` if there is no such file."""
    data = _bytes(path)
    if data is None:
        return missing
    try:
        return config.from_json(kind, data, path.name)
    except ConfigError as error:
        raise _damaged(path, error) from None


def _metrics(path: Path) -> tuple[RoundMetrics, ...]:
    data = _bytes(path)
    if data is None:
        return ()
    try:
        return tuple(
            _round_metrics(row) for row in csv.DictReader(io.StringIO(data.decode(), newline=""))
        )
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged(
            path, f"expected numbers in the columns round and loss, found {error}"
        ) from None


def _round_metrics(row: dict[str, str]) -> RoundMetrics:
    looks = {
        name: float(row[name]) if row.get(name) else None for name in ("top1", "top3", "perplexity")
    }
    return RoundMetrics(int(row["round"]), float(row["loss"]), **looks)


def _examples(path: Path) -> tuple[Example, ...]:
    data = _bytes(path)
    if data is None:
        return ()
    try:
        return tuple(
            Example(
                str(row["context"]),
                str(row["prefix"]),
                *(
                    tuple((str(word), float(p)) for word, p in row[when])
                    for when in ("before", "after")
                ),
            )
            for row in json.loads(data)
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _damaged(
            path,
            "expected a list of contexts with suggestions before and after, found "
            f"{type(error).__name__} {error}",
        ) from None


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(path, error.strerror) from None


def _damaged(path: Path, problem: object) -> RunError:
    return RunError(path, f"cannot be used ({problem})", _WRITE_AGAIN)


# --- what the page says
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A bar of `value`, as a share (0..1) of the longest; `lost` for those who fell out."""

    label: str
    value: float
    share: float
    lost: bool = False


@dataclass(frozen=True)
class Pair:
    """Top-1 recall of users with enough targets, under the network and under what it is compared
    with.
    """

    network: str
    rival: str  # empty without one
    users: tuple[
        tuple[float, float], ...
    ]  # (rival, network) of each user both scored; without a rival (nan, network)

    @property
    def better(self) -> int:
        return sum(network > rival for rival, network in self.users)

    @property
    def worse(self) -> int:
        return sum(network < rival for rival, network in self.users)

    @property
    def median_gain(self) -> float:
        return float(np.median([network - rival for rival, network in self.users]))


def funnel(rounds: tuple[RoundReport, ...]) -> list[Bar]:
    """All rounds together: those left after each step, and before the step where they fell out, the
    lost ones by cause, most frequent first.
    """

    def total(step: str) -> int:
        return sum(getattr(round, step) for round in rounds)

    def lost(losses: str) -> list[tuple[str, int, bool]]:
        by_cause: Counter[str] = Counter()
        for round in rounds:
            by_cause.update(getattr(round, losses))
        return [
            (causes.label(cause), count, True)
            for cause, count in sorted(by_cause.items(), key=lambda item: (-item[1], item[0]))
            if count
        ]

    steps = [
        ("checked in", total("checked_in"), False),
        *lost("refused"),
        *((step, total(step), False) for step in ("assigned", "downloaded", "uploaded")),
        *lost("dropped"),
        ("counted", total("counted"), False),
    ]
    longest = max(value for _, value, _ in steps)
    return [
        Bar(label, value, value / longest if longest > 0 else 0.0, is_lost)
        for label, value, is_lost in steps
    ]


def bars(values: dict[str, float]) -> list[Bar]:
    longest = max((value for value in values.values() if math.isfinite(value)), default=0.0)
    return [
        Bar(label, value, value / longest if longest > 0 and math.isfinite(value) else 0.0)
        for label, value in values.items()
    ]


def pair(systems: dict[str, score.Scored]) -> Pair | None:
    """The network beside the bigram, or without one beside itself before the device rounds; None if
    no user has enough targets.
    """
    network = next(
        (name for name in (*NETWORKS, *systems) if name in systems and systems[name].users), None
    )
    if network is None:
        return None
    shares = systems[network].users
    for rival in ("kn2", "before"):
        if (
            rival != network
            and rival in systems
            and (common := [user for user in shares if user in systems[rival].users])
        ):
            return Pair(
                network, rival, tuple((systems[rival].users[user], shares[user]) for user in common)
            )
    return Pair(network, "", tuple((math.nan, share) for share in shares.values()))


def strip(words: tuple[tuple[str, float], ...]) -> list[tuple[str, float, bool]]:
    """Three suggestions as the keyboard shows them, the best in the centre: word, probability,
    whether it is the best.

    >>> strip((("you", 0.5), ("it", 0.2), ("me", 0.1)))
    [('it', 0.2, False), ('you', 0.5, True), ('me', 0.1, False)]
    """
    best_first = [(word, probability, i == 0) for i, (word, probability) in enumerate(words[:3])]
    return [*best_first[1:2], *best_first[:1], *best_first[2:]]


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def number(value: float | None) -> str:
    """`1,234`; large and small numbers alike without decimals."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def size(count: float | None) -> str:
    """Bytes in decimal units: `812 B`, `64.2 kB`, `1.45 MB`."""
    if count is None:
        return "–"
    if count < 1e3:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 05 s`."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{round(seconds) // 60:,} min {round(seconds) % 60:02d} s"


def render(name: str, material: Material) -> str:
    """The page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "size": size,
        "duration": duration,
        "label": causes.label,
        "strip3": strip,
    }
    systems, totals = material.systems, material.totals or Totals()
    baselines = [scored for scored in systems.values() if scored.kind == "baseline"]
    headline = next((stem for stem in NETWORKS if stem in systems), None)
    compared = pair(systems)
    return environment.get_template("report.html.j2").render(
        asdict_of=lambda value: asdict(value),
        name=name,
        settings=material.settings,
        recipe=config.to_toml(material.settings.recipe) if material.settings else "",
        metrics=material.metrics,
        looks=[row for row in material.metrics if row.top1 is not None],
        systems=systems,
        headline=systems[headline] if headline else None,
        best_baseline=max(baselines, key=lambda scored: scored.summary.top1, default=None),
        best_top1=max((scored.summary.top1 for scored in systems.values()), default=0.0),
        rounds=material.rounds,
        funnel=funnel(material.rounds) if material.rounds else [],
        pair=compared,
        examples=material.examples,
        totals=totals,
        time=bars(totals.seconds),
        memory=bars(totals.memory_mb),
        sizes=bars({name: float(count) for name, count in totals.sizes.items()}),
        plots=_plots(material, compared),
    )


# --- plots
# ------------------------------------------------------------------------------------------------
# Colours are stand-ins: in the page they become CSS variables, which follow the reader's light or
# dark mode.

INK, SOFT, LINE, NETWORK, BASELINE, BEFORE = (f"#0000{i:02x}" for i in range(1, 7))
_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    LINE: "line",
    NETWORK: "network",
    BASELINE: "baseline",
    BEFORE: "before",
}
WIDTH = 400  # points; about one to one on a phone
_STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
    "svg.hashsalt": "fedboard",
    "text.parse_math": False,
    "font.size": 11.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


def _plots(material: Material, compared: Pair | None) -> dict[str, "Markup"]:
    """Every plot the material allows, by name, as inline SVG."""
    import matplotlib

    found = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        if material.metrics:
            found["loss"] = _loss(material.metrics)
        if any(row.top1 is not None for row in material.metrics):
            found["recall"] = _recall(material.metrics)
        if material.systems:
            found["top1"], found["top3"] = (
                _systems(material.systems, which) for which in ("top1", "top3")
            )
        if material.rounds:
            found["bytes"] = _bytes_by_round(material.rounds)
        if compared:
            found["users"] = _histogram(compared, material.systems)
            if compared.rival:
                found["scatter"] = _scatter(compared, material.systems)
    return found


def _figure(height: float) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: "Figure", name: str, title: str, description: str) -> "Markup":
    """The figure as an inline SVG with a title and a description for those who do not see it.
    `name` keeps its ids apart from other plots'.
    """
    from markupsafe import Markup, escape

    written = io.StringIO()
    figure.savefig(
        written,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(
        r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL
    )  # its style would reach the whole page
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(
        r"(fill|stroke): (#0000\d\d)",
        lambda found: f"{found[1]}: var(--{_VARIABLES[found[2]]})",
        svg,
    )
    body = svg[svg.index(">") + 1 :]
    view = f"0 0 {WIDTH} {figure.get_figheight() * 72:g}"
    return Markup(
        f'<svg viewBox="{view}" role="img" aria-labelledby="{name}-title {name}-about">'
        f'<title id="{name}-title">{escape(title)}</title><desc '
        f'id="{name}-about">{escape(description)}</desc>{body}'
    )


def _loss(metrics: tuple[RoundMetrics, ...]) -> "Markup":
    figure, axes = _figure(230)
    rounds, losses = [row.round for row in metrics], np.array([row.loss for row in metrics])
    window = max(1, len(losses) // 20)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(rounds, losses, color=BEFORE, linewidth=1, alpha=0.7 if window > 1 else 1)
    axes.plot(rounds[window - 1 :], smooth, color=NETWORK, marker="o" if len(rounds) == 1 else "")
    axes.set(xlabel="round", ylabel="loss, nats a token")
    _whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    text = f"From {losses[0]:.2f} in round {rounds[0]} to {losses[-1]:.2f} in round {rounds[-1]}."
    return _svg(figure, "loss", "Training loss by round", text)


def _recall(metrics: tuple[RoundMetrics, ...]) -> "Markup":
    figure, axes = _figure(230)
    said = []
    for which, label, colour in (("top3", "top-3", BEFORE), ("top1", "top-1", NETWORK)):
        points = [
            (row.round, 100 * getattr(row, which))
            for row in metrics
            if getattr(row, which) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5)
            axes.annotate(
                f"{label} {points[-1][1]:.1f}",
                points[-1],
                (0, 8),
                textcoords="offset points",
                ha="right",
                color=colour,
                weight="bold",
            )
            said.append(f"{label} ends at {points[-1][1]:.1f} % in round {points[-1][0]}")
    axes.set(xlabel="round", ylabel="recall, %")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    _whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    return _svg(figure, "recall", "Recall on validation users by round", "; ".join(said))


def _systems(systems: dict[str, score.Scored], which: str) -> "Markup":
    label = which.replace("top", "top-")
    figure, axes = _figure(52 + 30 * len(systems))
    for place, (stem, scored) in enumerate(reversed(systems.items())):
        value = 100 * getattr(scored.summary, which)
        low, high = (100 * end for end in getattr(scored.summary, f"{which}_interval"))
        colour = _colour(stem, scored)
        axes.plot(
            [low, high],
            [place, place],
            color=colour,
            linewidth=3,
            solid_capstyle="round",
            alpha=0.45,
        )
        axes.plot([value], [place], color=colour, marker="o", markersize=7)
        axes.annotate(
            f"{value:.1f}",
            (value, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            color=colour,
            weight="bold",
            size=10.5,
        )
    axes.set_yticks(
        range(len(systems)),
        [_wrapped(scored.name) for scored in reversed(systems.values())],
        color=INK,
        size=10.5,
    )
    axes.set_ylim(-0.6, len(systems) - 0.3)
    axes.set(xlabel=f"{label} recall, %, and 95 % interval")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    said = "; ".join(
        f"{scored.name}: {percent(getattr(scored.summary, which))} %" for scored in systems.values()
    )
    return _svg(figure, f"systems-{which}", f"{label} recall of every system", said)


def _bytes_by_round(rounds: tuple[RoundReport, ...]) -> "Markup":
    figure, axes = _figure(230)
    numbers = np.array([round.round for round in rounds], float)
    up, down = (
        np.array([getattr(round, way) for round in rounds], float) / 1e6
        for way in ("bytes_up", "bytes_down")
    )
    axes.bar(numbers - 0.2, up, 0.38, color=NETWORK, label="up (updates)")
    axes.bar(numbers + 0.2, down, 0.38, color=BEFORE, label="down (checkpoints, plans)")
    axes.set(xlabel="round", ylabel="MB on the socket")
    _whole_ticks(axes.xaxis)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=2, fontsize=10.5, handlelength=1, labelcolor=SOFT)
    text = f"All rounds together: {size(1e6 * up.sum())} up, {size(1e6 * down.sum())} down."
    return _svg(figure, "bytes", "Bytes up and down by round", text)


def _histogram(compared: Pair, systems: dict[str, score.Scored]) -> "Markup":
    figure, axes = _figure(270)
    shares = 100 * np.array(compared.users)  # [users, 2]: rival, network
    edges = np.histogram_bin_edges(shares[np.isfinite(shares)], bins=16)
    if compared.rival:
        rival = systems[compared.rival]
        axes.hist(
            shares[:, 0],
            edges,
            histtype="stepfilled",
            color=_colour(compared.rival, rival),
            alpha=0.35,
            label=rival.name,
        )
    colour = NETWORK if compared.rival else _colour(compared.network, systems[compared.network])
    axes.hist(
        shares[:, 1],
        edges,
        histtype="step",
        color=colour,
        linewidth=2.2,
        label=systems[compared.network].name,
    )
    axes.set(xlabel="top-1 recall of a user, %", ylabel="users")
    _whole_ticks(axes.yaxis)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", fontsize=10.5, handlelength=1.2, labelcolor=SOFT)
    median = float(np.median(shares[:, 1]))
    return _svg(
        figure,
        "users",
        "Test users by top-1 recall",
        f"{len(shares)} users; the median user has {median:.1f} % with the network.",
    )


def _scatter(compared: Pair, systems: dict[str, score.Scored]) -> "Markup":
    figure, axes = _figure(330)
    shares = 100 * np.array(compared.users)
    low, high = math.floor(shares.min()) - 1, math.ceil(shares.max()) + 1
    axes.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle=(0, (4, 4)))
    above = shares[:, 1] > shares[:, 0]
    axes.scatter(*shares[above].T, s=26, color=NETWORK, alpha=0.65, linewidths=0)
    axes.scatter(
        *shares[~above].T,
        s=26,
        color=_colour(compared.rival, systems[compared.rival]),
        alpha=0.65,
        linewidths=0,
    )
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel(f"{systems[compared.rival].name}, top-1 %")
    axes.set_ylabel(f"{systems[compared.network].name}, top-1 %")
    axes.annotate(
        "network better",
        (0.04, 0.95),
        xycoords="axes fraction",
        va="top",
        color=NETWORK,
        weight="bold",
        size=10.5,
    )
    text = (
        f"Each dot is a test user. The network is better for {compared.better} of {len(shares)}, "
        f"worse for {compared.worse}."
    )
    return _svg(figure, "scatter", "Top-1 recall of each user under both systems", text)


def _colour(stem: str, scored: score.Scored) -> str:
    if scored.kind == "baseline":
        return BASELINE
    return BEFORE if stem == "before" else NETWORK


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 17)[:3]) or "?"


def _whole_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))

"""A corpus in figures: tables and sentences, bars for a terminal, and all plots as one SVG.

Names of users are never shown.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedboard.readable import percent
from model.corpus import SPLITS, Bin, Stats

Bars = list[tuple[str, int]]  # what each stands for, and how many there are
Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows

_FULL, _EIGHTHS = "\u2588", " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"
_LEAST = 10  # cells of the longest bar
_WIDEST = 60
_BY_WORDS = "users, by words typed"  # a title; stands in every drawing


def tables(stats: Stats) -> list[Table]:
    """How much each split holds, and what was left out, if that was counted."""
    whole = stats.total
    rows = []
    for name in (*SPLITS, "total"):
        size = getattr(stats, name)
        parts = ((size.users, whole.users), (size.utterances, whole.utterances))
        cells = [f"{n:,} ({percent(n / of)} %)" for n, of in (*parts, (size.words, whole.words))]
        rows.append([name, *cells])
    columns = ["split", "users", "utterances", "words"]
    split = (f"{stats.name} by protocol nwp-v2", columns, rows)
    if not stats.dropped or not stats.rows:
        return [split]
    dropped = [
        [
            reason,
            f"{number:,}",
            percent(number / stats.rows),
            ", ".join(stats.places.get(reason, ())),
        ]
        for reason, number in _by_number(stats.dropped)
    ]
    number = sum(stats.dropped.values())
    dropped.append(["kept", f"{whole.utterances:,}", percent(whole.utterances / stats.rows), ""])
    columns = ["left out", "rows", "%", "first in"]
    if not stats.places:
        columns, dropped = columns[:-1], [row[:-1] for row in dropped]
    title = f"left out: {number:,} of {stats.rows:,} rows ({percent(number / stats.rows)} %)"
    return [split, (title, columns, dropped)]


def sentences(stats: Stats) -> list[str]:
    """What the tables do not say."""
    said = [f"language: {stats.language}"] if stats.language else []
    if stats.most:
        said.append(f"read at most {stats.most:,} users of each split, of {stats.users}")
    said.append(
        f"median user: {stats.median_words:,.0f} words in {stats.median_utterances:,.0f} "
        f"utterances; distinct words: {stats.distinct_words:,}"
    )
    said.append(f"the ten largest users typed {stats.largest_ten:.0%} of all words")
    if not stats.dropped:
        said.append("left out: " + ("not counted" if stats.dropped is None else "nothing"))
    return [*said, *stats.notes]


def plots(stats: Stats) -> list[tuple[str, Bars]]:
    """Title and bars of each plot: what was left out, then how users differ."""
    drawn = [("rows left out, by reason", _by_number(stats.dropped))] if stats.dropped else []
    return [
        *drawn,
        (_BY_WORDS, _bars(stats.by_words)),
        ("users, by messages sent", _bars(stats.by_utterances)),
    ]


def bars(rows: Bars, width: int, encoding: str) -> list[str]:
    """Horizontal bars, a line each, at most `width` wide if that is not very little.

    They are blocks, an eighth of a cell exact, where the encoding has them, else of `#`. What is
    not nothing shows.

    >>> bars([("mashing", 8), ("no text", 1), ("no user", 0)], 20, "ascii")
    ['mashing  ########## 8', 'no text  # 1', 'no user   0']
    """
    label = max(len(name) for name, _ in rows)
    numbers = [f"{number:,}" for _, number in rows]
    longest = min(_WIDEST, max(_LEAST, width - label - 3 - max(map(len, numbers))))
    most = max(1, *(number for _, number in rows))
    draw = _blocks if _has_blocks(encoding) else _signs
    return [
        f"{name:<{label}}  {draw(longest * number / most)} {shown}"
        for (name, number), shown in zip(rows, numbers, strict=True)
    ]


def svg(stats: Stats) -> str:
    """Every plot below the other, as one file that needs nothing else."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn = plots(stats)
    heights = [0.9 + 0.28 * len(rows) for _, rows in drawn]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fedboard",
        "text.parse_math": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(7, sum(heights)), layout="constrained")
        all_axes = figure.subplots(len(drawn), height_ratios=heights, squeeze=False)
        for axes, (title, rows) in zip(all_axes[:, 0], drawn, strict=True):
            names, numbers = zip(*reversed(rows), strict=True)
            # a clipped one bears an id that is another each time
            shown = axes.barh(names, numbers, color="#3b6ea5", clip_on=False)
            axes.bar_label(shown, [f"{number:,}" for number in numbers], padding=3)
            axes.set_title(title, loc="left")
            axes.spines[["top", "right", "bottom"]].set_visible(False)
            axes.set_xticks([])
            axes.margins(x=0.12)
        written = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=metadata)
    drawing = written.getvalue()
    return drawing[drawing.index("<svg") :]  # without a document type, which lies elsewhere


def are_figures(path: Path) -> bool:
    """Whether a file is a drawing of `svg`. Raises OSError."""
    drawing = path.read_bytes()
    return drawing.startswith(b"<svg") and f">{_BY_WORDS}<".encode() in drawing


def _by_number(dropped: dict[str, int]) -> Bars:
    return sorted(dropped.items(), key=lambda reason: (-reason[1], reason[0]))


def _bars(users: Sequence[Bin]) -> Bars:
    return [
        (f"{each.least:,}" if each.least == each.most else f"{each.least:,} to {each.most:,}", n)
        for each in users
        for n in [each.users]
    ]


def _has_blocks(encoding: str) -> bool:
    try:
        (_FULL + _EIGHTHS).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _blocks(cells: float) -> str:
    eighths = max(round(8 * cells), cells > 0)
    return _FULL * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _signs(cells: float) -> str:
    return "#" * max(round(cells), cells > 0)

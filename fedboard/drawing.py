"""Drawing: a figure -> inline SVG, without a script and in the page's own colours.

Colours here are stand-ins: in the page they become CSS variables, which follow the reader's light
or dark mode.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # slow to import: only drawing pays for it
    from markupsafe import Markup
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, SOFT, LINE, NETWORK, BASELINE, BEFORE, LOST = (f"#0000{i:02x}" for i in range(1, 8))
_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    LINE: "line",
    NETWORK: "network",
    BASELINE: "baseline",
    BEFORE: "before",
    LOST: "lost",
}
WIDTH = 400  # points; about one to one on a phone
_STYLE: dict[Any, Any] = {
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


@contextlib.contextmanager
def style() -> Iterator[None]:
    """In the block figures look like the page they are drawn for."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def figure_of(height: float) -> tuple["Figure", Any]:
    """A figure of so many points in height, and its one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: "Figure", name: str, title: str, description: str) -> "Markup":
    """The figure as an inline SVG, with a title and a description for those who do not see it.

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
    drawing = written.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace("xlink:href", "href")
    # its style would reach the whole page
    drawing = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r" font-family: [^;\"]*;", "", drawing)
    drawing = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    drawing = re.sub(
        r"(fill|stroke): (#0000\d\d)",
        lambda match: f"{match[1]}: var(--{_VARIABLES[match[2]]})",
        drawing,
    )
    body = drawing[drawing.index(">") + 1 :]
    view = f"0 0 {WIDTH} {figure.get_figheight() * 72:g}"
    return Markup(
        f'<svg viewBox="{view}" role="img" aria-labelledby="{name}-title {name}-about">'
        f'<title id="{name}-title">{escape(title)}</title><desc '
        f'id="{name}-about">{escape(description)}</desc>{body}'
    )


def whole_ticks(axis: "Axis") -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))


def whole(figure: "Figure") -> str:
    """A figure as an SVG file of its own: the same bytes whenever it is drawn."""
    written = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=metadata)
    drawing = written.getvalue()
    return drawing[drawing.index("<svg") :]  # without a document type, which lies elsewhere


def is_titled(path: Path, title: str) -> bool:
    """Whether a file is such an SVG, whose title begins so. Raises OSError."""
    drawing = path.read_bytes()
    return drawing.startswith(b"<svg") and f">{title}".encode() in drawing

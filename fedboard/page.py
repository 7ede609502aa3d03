"""Page: what every report has in common: bars, numbers as people read them, and how it is written.

A page is self-contained: no script, nothing from outside. The same values give the same bytes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_runtime import causes, durable
from fedboard.readable import duration, number, percent, size
from fedboard.run import require_result_file, writable


@dataclass(frozen=True)
class Bar:
    """A bar of `value`, as a share (0..1) of the longest; `lost` for those who fell out."""

    label: str
    value: float
    share: float
    lost: bool = False


def bars(values: dict[str, float]) -> list[Bar]:
    """A bar of each value; one that is not finite is as long as nothing."""
    longest = max((value for value in values.values() if math.isfinite(value)), default=0.0)
    return [
        Bar(label, value, value / longest if longest > 0 and math.isfinite(value) else 0.0)
        for label, value in values.items()
    ]


def render(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """The page of a template with these values."""
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
        **filters,
    }
    return environment.get_template(template).render(**values)


def write(path: Path, page: Callable[[], str]) -> None:
    """Write a page where none is, or one of ours. Raises RunError."""
    require_result_file(path, "a report", _is_report)
    text = page()
    with writable(path) as place:
        # a lone surrogate in a message has no bytes
        durable.share(place, text.encode(errors="replace"))


def _is_report(path: Path) -> bool:
    with open(path, "rb") as file:
        return b"<title>Fedboard: " in file.read(1000)

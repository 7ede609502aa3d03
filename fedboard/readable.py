"""Numbers as people read them: shares in per cent, sizes in bytes, durations."""

import math

MISSING = "–"  # a number that is not there, or is none


def percent(share: float | None, digits: int = 1) -> str:
    """A share (0..1) in per cent, without the sign.

    >>> percent(0.2034), percent(float("nan"))
    ('20.3', '–')
    """
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def number(value: float | None) -> str:
    """A number without decimals, however small.

    >>> number(1234.4)
    '1,234'
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def size(count: float | None) -> str:
    """Bytes in decimal units.

    >>> size(812), size(64_200), size(1_450_000)
    ('812 B', '64.2 kB', '1.45 MB')
    """
    if count is None:
        return MISSING
    if count < 1e3:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """Seconds, from a minute on with minutes.

    >>> duration(0.4), duration(42), duration(185)
    ('0.4 s', '42 s', '3 min 05 s')
    """
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{round(seconds) // 60:,} min {round(seconds) % 60:02d} s"

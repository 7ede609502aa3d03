"""Plots of releases side by side: standings -> bars and intervals as SVG, without a script."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from server.rollout import Ratio, Standing
from server.standings import ReleaseStanding

WIDTH, ROW, LEFT, RIGHT, TOP = 460, 44, 44, 56, 6
AXIS = 18  # below the rows


def plots(standings: Sequence[ReleaseStanding]) -> list[Markup]:
    """Releases with figures beside each other: their shares of right words, and what each has
    gained over the one that it is compared with.
    """
    told = [each for each in standings if each.right is not None]
    if not told:
        return []
    figures = [_shares(told)]
    compared = [each for each in told if each.verdict.gain is not None]
    return [*figures, _gains(compared)] if compared else figures


def points(share: float) -> str:
    """A share in per cent, or a dash where it is none.

    >>> points(0.1234), points(float("nan"))
    ('12.3', '\N{EN DASH}')
    """
    return f"{100 * share:.1f}" if math.isfinite(share) else "\N{EN DASH}"


def gained(gain: Ratio | None) -> str:
    """A gain in points and its interval, or a dash.

    >>> gained(Ratio(-0.01, 0.002)), gained(None)
    ('-1.00 (-1.40 to -0.60)', '\N{EN DASH}')
    """
    if gain is None:
        return "\N{EN DASH}"
    low, high = (100 * (gain.share + sign * gain.reach) for sign in (-1, 1))
    return f"{100 * gain.share:+.2f} ({low:+.2f} to {high:+.2f})"


def _shares(standings: Sequence[ReleaseStanding]) -> Markup:
    most = max(each.top3 or 0.0 for each in standings) or 1.0
    parts = []

    def at(share: float) -> float:
        return round(LEFT + min(share, most) / most * (WIDTH - LEFT - RIGHT), 1)

    for place, each in enumerate(standings):
        right, top = each.right, TOP + ROW * place
        assert right is not None and each.top3 is not None
        for y, share, kind in ((top, right.share, "a"), (top + 18, each.top3, "b")):
            parts.append(_bar(kind, y, at(share) - LEFT))
            parts.append(_text(at(share) + 10 * (kind == "a") + 6, y + 12, points(share), ""))
        if math.isfinite(right.error):
            ends = (right.share + sign * right.reach for sign in (-1, 1))
            low, high = (at(max(0.0, share)) for share in ends)
            parts.append(_line("whisker", low, high, top + 7))
        parts.append(_text(LEFT - 6, top + 21, str(each.release), "end"))
    return _figure(
        "right words of each release, %",
        (("a", "first word"), ("b", "one of three")),
        parts,
        TOP + ROW * len(standings),
    )


def _gains(standings: Sequence[ReleaseStanding]) -> Markup:
    gains = [each.verdict.gain for each in standings]
    ends = [
        abs(gain.share) + gain.reach
        for gain in gains
        if gain is not None and math.isfinite(gain.error)
    ]
    most = max(ends, default=0.0) or 0.01
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2

    def at(share: float) -> float:
        return round(middle + share / most * (WIDTH - LEFT - RIGHT) / 2, 1)

    bottom = TOP + ROW * len(standings)
    parts = [
        Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            middle, TOP, bottom
        )
    ]
    for share in (-most, 0.0, most):
        parts.append(_text(at(share), bottom + 14, f"{100 * share:+.1f}" if share else "0", "mid"))
    for place, (each, gain) in enumerate(zip(standings, gains, strict=True)):
        assert gain is not None
        y = TOP + ROW * place + 17
        kind = "bad" if each.verdict.standing is Standing.WORSE else "a"
        if math.isfinite(gain.error):
            low, high = (at(gain.share + sign * gain.reach) for sign in (-1, 1))
            parts.append(_line(f"line {kind}", low, high, y))
        parts.append(
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="4"/>').format(kind, at(gain.share), y)
        )
        parts.append(_text(LEFT - 6, y + 4, str(each.release), "end"))
    title = "gain over the release it is compared with, points"
    return _figure(title, (("a", "not worse"), ("bad", "worse")), parts, bottom + AXIS)


def _figure(
    title: str, keys: Sequence[tuple[str, str]], parts: Sequence[Markup], height: int
) -> Markup:
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" class="plot"><title>{}</title>{}</svg>')
    drawn = svg.format(WIDTH, height, title, Markup("").join(parts))
    names = Markup(" ").join(
        Markup('<span class="key {}">{}</span>').format(kind, name) for kind, name in keys
    )
    return Markup("<figure><figcaption>{} {}</figcaption>{}</figure>").format(title, names, drawn)


def _bar(kind: str, y: float, width: float) -> Markup:
    return Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="14"/>').format(
        kind, LEFT, y, max(1.0, round(width, 1))
    )


def _line(kind: str, low: float, high: float, y: float) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        kind, low, high, y, y
    )


def _text(x: float, y: float, words: str, kind: str) -> Markup:
    return Markup('<text class="tick {}" x="{}" y="{}">{}</text>').format(kind, x, y, words)

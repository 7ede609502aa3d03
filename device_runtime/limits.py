"""Limits: what this device refuses of its server, by its signed bundle and its owner's settings.

They hold over all servers and tasks together: a server may ask for less, never for more. Reads no
clock and no file; whoever asks brings the numbers, and `why_refused` says which limit they break.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from device_runtime import bounds, spent
from device_runtime.bounds import Within
from device_runtime.causes import Cause
from device_runtime.terms import Terms, why_exposed
from device_runtime.wire import DAY_S, MOST_WORDS, Kind, Plan

COARSE = (0, 10, 20, 50, 100, 200, 500)  # what a check-in tells of how many messages wait
ANOTHER_HISTORY = 200  # rounds: a task so far behind where it was for this device began anew
CLOCK_DAYS = 7  # ledger lines further in the future were written by a clock that was wrong
LEAST_ROUND_S = 60.0  # no round that moves the weights is shorter
# what a server makes of the mean delta at most: FedAvgM at momentum 0.9 adds up ten of them
SERVER_FACTOR = 10.0
ADAPTIVE_RATE = 0.03  # FedAdam and FedYogi move each weight by about their rate
HALF_ROUNDING = 2.0**-10  # of a norm: two roundings to float16, as weights travel
MOST_USES = 30  # updates or scores that one message contributes to
_OF_TERMS = ("bits", "clipping_norm")
_NUMBERS = ("bits", "clipping_norm", "learning_rate", "epochs", "max_rows")


@dataclass(frozen=True)
class OwnLimits:
    """`[limits]` of device.toml. The first five are the most a plan may ask for, and never more
    than the signed bundle's plan; what is None is that alone. Raises ConfigError for a number that
    is none.
    """

    bits: int | None = None  # of one value of an update
    clipping_norm: Annotated[float, Within(1e-9, 1e12)] = 1.0  # honest updates are shorter
    learning_rate: float | None = None
    epochs: int | None = None
    max_rows: int | None = None
    least_messages: Annotated[int, Within(1, 1_000_000)] = 10  # in an update
    least_words: Annotated[int, Within(1, 1_000_000)] = 100  # target words in an update
    least_score_words: Annotated[int, Within(1, MOST_WORDS)] = 200  # target words in a score
    # the same where nobody can see scores but summed over many devices
    least_private_score_words: Annotated[int, Within(1, MOST_WORDS)] = 50
    # a night on the charger has room for a few rounds, and a server no need of more of one person
    updates_a_day: Annotated[int, Within(0, 1000)] = 4
    scores_a_day: Annotated[int, Within(0, 1000)] = 2  # two checkpoints can be compared
    # public lists in all of whose words it says, once each, which were typed; 0: of none
    word_lists: Annotated[int, Within(0, 1000)] = 4
    min_separation: Annotated[int, Within(1, 1_000_000)] = 2  # rounds of a task between two updates
    longest_s: Annotated[float, Within(1.0, 7 * DAY_S)] = DAY_S  # of the work for one assignment
    # that all updates of this device may spend, over all its tasks, at `delta`; None: whatever
    # terms and bundle say. What left without noise before has no epsilon and is not in it
    epsilon: float | None = None
    delta: Annotated[float, Within(1e-300, 0.5)] = 1e-10
    require_noise: bool = False  # an update is made only where noise is added to its sum

    def __post_init__(self) -> None:
        bounds.check(self, "limits")
        if self.epsilon is not None:
            bounds.within("limits.epsilon", self.epsilon, 0.0, 1e6)
        of_plan = bounds.of(Plan)
        for name in _NUMBERS:
            if getattr(self, name) is not None:
                of_plan[name].require(f"limits.{name}", getattr(self, name))


@dataclass(frozen=True)
class Limits:
    """What holds on a device: each number of a plan at most `most`'s, the rest as its owner
    says.
    """

    most: Plan
    own: OwnLimits = OwnLimits()
    server_factor: float = SERVER_FACTOR  # largest step of a server / clipping norm

    def separation(self, asked: int) -> int:
        """Rounds between two updates of one task: the server's number, or the owner's if that is
        more.
        """
        return max(1, asked, self.own.min_separation)

    def rows(self, plan: Plan) -> int:
        """How many rows an update is made of at most: as many as the limit, or half as many, or a
        quarter, and so on, whatever number below it is asked for.

        Two updates that a server asks for with one row more and one less would give that row away.

        >>> limits = Limits(Plan(max_rows=64))
        >>> [limits.rows(Plan(max_rows=rows)) for rows in (64, 63, 20, 1)]
        [64, 32, 16, 1]
        """
        rows = self.most.max_rows
        while rows > plan.max_rows:
            rows //= 2
        return rows

    def seconds(self, deadline_s: float) -> float:
        """How long work may take whose server says so.

        >>> limits = Limits(Plan())
        >>> [limits.seconds(told) for told in (60.0, 1e300, -1.0, float("nan"))]
        [60.0, 86400.0, 0.0, 86400.0]
        """
        return max(0.0, min(self.own.longest_s, deadline_s))

    def reach(self, rounds: float, values: int, norm: float, noise: float = 0.0) -> float:
        """L2 distance that so many rounds can have moved `values` weights of this norm; `noise` is
        the norm of that on the mean of each.

        >>> limits = Limits(Plan(clipping_norm=1.0))
        >>> limits.reach(2, 100, 0.0), limits.reach(2, 100, 0.0, noise=3.0)
        (20.0, 80.0)
        """
        if rounds <= 0:
            return 0.0
        length = self.most.clipping_norm + noise  # of a mean
        step = max(self.server_factor * length, ADAPTIVE_RATE * math.sqrt(values))
        return rounds * step + HALF_ROUNDING * norm


def of(signed: Plan, own: OwnLimits, server_factor: float | None = None) -> Limits:
    """The limits of a device: the signed plan of its bundle, and its owner's where those are lower.
    `server_factor` is what the bundle says of its servers' steps, if it does.
    """
    lower: dict[str, Any] = {
        name: min(getattr(signed, name), getattr(own, name))
        for name in _NUMBERS
        if getattr(own, name) is not None
    }
    most = Plan(**{**vars(signed), **lower})
    return Limits(most, own, SERVER_FACTOR if server_factor is None else server_factor)


@dataclass(frozen=True)
class Asked:
    """What is known so far of work that is asked for; None is not known yet."""

    kind: Kind
    # updates, or scores, that left this device today; of lists of words all that ever left
    done_today: int = 0
    scored_before: bool = False  # these very weights, this release, or this list
    plan: Plan | None = None
    moved: float | None = None  # L2 distance of the weights from the signed ones
    reach: float = 0.0  # how far their rounds can have moved them
    messages: int | None = None  # that it would be made of
    words: int | None = None  # target words in them
    terms: Terms | None = None
    epsilon: float | None = None  # that this device will have spent, at the owner's delta


@dataclass(frozen=True)
class Over:
    """The limit that work breaks. Of what was typed it holds numbers alone."""

    limit: str
    expected: str
    actual: str

    def __str__(self) -> str:
        """
        >>> str(Over("bits", "at most 8", "16"))
        'bits: expected at most 8, found 16'
        """
        return f"{self.limit}: expected {self.expected}, found {self.actual}"


def why_refused(limits: Limits, asked: Asked) -> Over | None:
    """The first limit that the work breaks, or None if it may be done. A number that is none breaks
    every limit.
    """
    if asked.kind is Kind.TRAINING:
        return _of_update(limits, asked) or _of_weights(asked)
    if asked.kind is Kind.COUNTS:
        return _of_list(limits, asked)
    return _of_score(limits, asked) or _of_weights(asked)


def _of_update(limits: Limits, asked: Asked) -> Over | None:
    own = limits.own
    over = _most("updates_a_day", own.updates_a_day, asked.done_today + 1)
    for source, names in ((asked.terms, _OF_TERMS), (asked.plan, _NUMBERS)):
        for name in names if source is not None else ():
            over = over or _most(name, getattr(limits.most, name), getattr(source, name))
    if asked.terms is not None and own.require_noise and not spent.is_added(asked.terms.noise):
        over = over or Over("require_noise", "noise on every sum", "none")
    over = over or _most("epsilon", own.epsilon, asked.epsilon)
    over = over or _least("least_messages", own.least_messages, asked.messages)
    return over or _least("least_words", own.least_words, asked.words)


def _of_score(limits: Limits, asked: Asked) -> Over | None:
    own = limits.own
    over = _most("scores_a_day", own.scores_a_day, asked.done_today + 1)
    if over is None and asked.scored_before:
        over = Over("scores", "one of a checkpoint", "one made before")
    is_hidden = asked.terms is not None and not why_exposed(asked.terms)
    least = "least_private_score_words" if is_hidden else "least_score_words"
    return over or _least(least, getattr(own, least), asked.words)


def _of_list(limits: Limits, asked: Asked) -> Over | None:
    own = limits.own
    if asked.scored_before:
        return Over("word_lists", "a list once", "one answered before")
    over = _most("word_lists", own.word_lists, asked.done_today + 1)
    if asked.terms is not None and own.require_noise and not spent.is_added(asked.terms.noise):
        over = over or Over("require_noise", "noise on every sum", "none")
    over = over or _most("epsilon", own.epsilon, asked.epsilon)
    return over or _least("least_messages", own.least_messages, asked.messages)


def _of_weights(asked: Asked) -> Over | None:
    return None if asked.moved is None else _most("weights", asked.reach, asked.moved)


def _most(limit: str, most: float | None, value: float | None) -> Over | None:
    if most is None or value is None or value <= most:
        return None
    return Over(limit, f"at most {most:.6g}", f"{value:.6g}")


def _least(limit: str, least: float, value: float | None) -> Over | None:
    if value is None or value >= least:
        return None
    return Over(limit, f"at least {least:.6g}", f"{value:.6g}")


@dataclass(frozen=True)
class Today:
    """How a device stands before it asks for work."""

    updates: int  # that left it today
    messages: int  # an update could be made of
    words: int  # target words in them
    owes: bool = False  # work was refused today, and its server is told when the day is over
    half_done: bool = False  # work waits that was begun before


def why_not_asked(limits: Limits, today: Today) -> Cause | None:
    """Why this device asks for no work before its day is over, or None if it may. Only told to its
    owner.
    """
    if today.owes:
        return Cause.OVER_LIMIT
    if today.half_done:
        return None
    if today.updates >= limits.own.updates_a_day:
        return Cause.PARTICIPATED_ENOUGH
    if today.messages < limits.own.least_messages or today.words < limits.own.least_words:
        return Cause.TOO_FEW_EXAMPLES
    return None


def coarse(messages: int) -> int:
    """What a check-in tells of how many messages wait: how many exactly is nobody's business.

    >>> [coarse(messages) for messages in (0, 9, 10, 199, 500, 40_000)]
    [0, 0, 10, 100, 500, 500]
    """
    return max(least for least in COARSE if least <= max(0, messages))


def rounds_since(apart: int, age_s: float) -> float:
    """Rounds that can have passed since a bundle came to this device: as many as the weights say
    they are apart from its own, but no more than there was time for.

    >>> rounds_since(3, 86_400.0), rounds_since(-3, 86_400.0), rounds_since(500, 120.0)
    (3, 3, 3.0)
    """
    return min(abs(apart), 1 + max(0.0, age_s) / LEAST_ROUND_S)


def same_day(at: float, now: float) -> bool:
    """Whether something at `at` counts as today's at `now`, in seconds of the device's clock: also
    what lies ahead, should the clock have gone back by some days.

    >>> same_day(10.0, 86_399.0), same_day(10.0, 86_400.0), same_day(3 * 86_400.0, 0.0)
    (True, False, True)
    """
    return 0 <= at // DAY_S - now // DAY_S <= CLOCK_DAYS


def day_ends_in(now: float) -> float:
    """Seconds until the day is over.

    >>> day_ends_in(86_390.0), day_ends_in(86_400.0)
    (10.0, 86400.0)
    """
    return DAY_S - now % DAY_S

"""Eligibility: may this device join the round? Reads no clock and no store."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from device_runtime import bounds, separation, versions
from device_runtime.bounds import Each, Within
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.wire import DAY_S, VERSION, WORD, CheckIn, forbidden_by


@dataclass(frozen=True)
class Policy:
    """Which devices may join the rounds of a task. Raises ConfigError for numbers out of range."""

    # typed utterances waiting on the device
    min_examples: Annotated[int, Within(0, 10_000_000)] = 10
    # rounds: a device counted in round t may join round t + min_separation at the earliest
    min_separation: Annotated[int, Within(1, 1_000_000)] = 2
    # rounds one device is counted in at most; 0 = no limit
    max_participations: Annotated[int, Within(0, 1_000_000)] = 0
    # from enrolment to the first round: a device that lost its history comes back as a new one, and
    # waits as long
    trust_s: Annotated[float, Within(0.0, 3660 * DAY_S)] = 0.0
    min_runtime: str = ""  # version of the device's interpreter, such as "2.14.0"
    # of tasks made by an earlier version: which release a device runs is not told at check-in
    min_release: Annotated[int, Within(0, 2**31 - 1)] = 0
    # those that may join; none named: all
    device_classes: Annotated[tuple[str, ...], Each(WORD, 1000)] = ()

    def __post_init__(self) -> None:
        bounds.check(self, "policy")
        if self.min_runtime and versions.numbers(self.min_runtime) is None:
            raise ConfigError(
                "policy.min_runtime",
                f"expected a version such as 2.14.0, found {self.min_runtime!r}",
                "correct it",
            )


class History(NamedTuple):
    """What the ledger holds of a device: since when it is enrolled, and where one task has counted
    it.
    """

    enrolled_at: float
    last_counted: int | None = None  # round
    counted: int = 0  # rounds
    barred: bool = False  # it has cost one of them all that was counted
    last_sum: int | None = None  # number of the last sum with noise that it was in
    in_sums: int = 0  # with noise


def decide(
    check_in: CheckIn,
    history: History,
    round: int,
    tokenizer: str,
    policy: Policy,
    now: float,
    rules: int = 1,
) -> Cause | None:
    """The first cause that keeps the device out of `round`, or None if it may join. `tokenizer` is
    the SHA-256 of the task's vocabulary; empty: it is for devices of any. `rules` are the task's
    text rules.
    """
    if check_in.version != VERSION:
        return Cause.UNSUPPORTED_VERSION
    if check_in.rules < rules:
        return Cause.OUTDATED_RULES
    if tokenizer and check_in.tokenizer != tokenizer:
        return Cause.WRONG_MODEL
    if policy.min_runtime and not versions.meets(check_in.runtime, policy.min_runtime):
        return Cause.OUTDATED_RUNTIME
    if policy.device_classes and check_in.device_class not in policy.device_classes:
        return Cause.OTHER_DEVICE_CLASS
    if (forbidden := forbidden_by(check_in.conditions)) is not None:
        return forbidden
    if check_in.examples < policy.min_examples:
        return Cause.TOO_FEW_EXAMPLES
    if history.barred:
        return Cause.BARRED
    # a device enrolled in the future was so by a clock that was ahead
    if now < min(history.enrolled_at, now) + policy.trust_s:
        return Cause.TOO_NEW
    if policy.max_participations and history.counted >= policy.max_participations:
        return Cause.PARTICIPATED_ENOUGH
    if not separation.may_join(round, history.last_counted, policy.min_separation):
        return Cause.REPORTED_RECENTLY
    return None


def spends(history: History, number: int, most: int, min_separation: int) -> Cause | None:
    """The first cause that keeps the device out of the sum of this number, to which noise is added,
    or None if it may be in it: so what it spends stays within what its task was planned for, also
    where rounds between had no sum. Of its sums there may be `most`.

    >>> spends(History(0.0, last_sum=4, in_sums=2), number=6, most=3, min_separation=2)
    >>> spends(History(0.0, last_sum=4, in_sums=3), number=6, most=3, min_separation=2)
    <Cause.PARTICIPATED_ENOUGH: 'participated_enough'>
    """
    if history.in_sums >= most:
        return Cause.PARTICIPATED_ENOUGH
    if not separation.may_join(number, history.last_sum, min_separation):
        return Cause.REPORTED_RECENTLY
    return None

"""Judging: what a report holds, or why it must not be counted. Decides by the report and the task
alone; reads no store.
"""

from dataclasses import dataclass

from device_runtime import config, signing
from device_runtime.causes import Cause
from device_runtime.errors import ConfigError
from device_runtime.masking import Bound
from device_runtime.scores import NATS_A_TARGET
from device_runtime.update import Sealed
from device_runtime.wire import CERTIFIED, MOST_WORDS, Kind, ReleaseScores, Scores
from server import mechanism
from server.sums import Checked
from server.task import Task, is_masked


@dataclass(frozen=True)
class Judged:
    """What can be said of a report without the ledger."""

    name: str  # SHA-256 of its body
    genuine: bool  # the body is the one that was signed
    task: str  # that it was judged for
    round: int
    # what it holds, or why it must not be counted; None for an unknown task
    value: Checked | Sealed | Scores | ReleaseScores | Cause | None


def judge(
    body: bytes | bytearray, kind: Kind, task: Task, round: int, bound: Bound | None = None
) -> Checked | Sealed | Scores | ReleaseScores | Cause:
    """A report as values, or why it must not be counted. Decides by the report and the task alone:
    whether there is such a release is looked up when it is counted. `kind` is of the route: scores
    come by one of their own, unless they are masked as updates are. `bound` is what a seal in it
    must be for; None: there is no key.
    """
    if (kind is Kind.TRAINING) != (task.kind in CERTIFIED or is_masked(task)):
        return Cause.NOT_AN_UPDATE if kind is Kind.TRAINING else Cause.NOT_SCORES
    if task.kind is Kind.EVALUATION and not is_masked(task):
        return scores_of(body)
    if task.kind is Kind.RELEASES:
        return release_scores_of(body)
    value = mechanism.of(task).check(body, round)
    if not isinstance(value, Sealed) or not value.seal:
        return value
    # whoever opens the sum refuses all of it for one seal that is not its device's
    is_signed = bound is not None and signing.verified(
        bound.device, bound.signed(value.seal), value.signature
    )
    return value if is_signed else Cause.BAD_SEAL


def scores_of(body: bytes | bytearray) -> Scores | Cause:
    """The Scores in a body, if the held-back messages of one device could have them."""
    try:
        scores = config.from_json(Scores, body, "Scores")
    except ConfigError:
        return Cause.NOT_SCORES
    return scores if _could_be(scores) else Cause.NOT_SCORES


def release_scores_of(body: bytes | bytearray) -> ReleaseScores | Cause:
    """The ReleaseScores in a body, if one device could have them: two of the same words, by two
    releases, or one alone.
    """
    try:
        report = config.from_json(ReleaseScores, body, "ReleaseScores")
    except ConfigError:
        return Cause.NOT_SCORES
    new, old = report.scores, report.before_scores
    alone = old is None and report.before == 0
    beside = (
        old is not None
        and report.before not in (0, report.release)
        and _could_be(old)
        and (old.targets, old.in_vocabulary) == (new.targets, new.in_vocabulary)
    )
    if report.release == 0 or not _could_be(new) or not (alone or beside):
        return Cause.NOT_SCORES
    return report


def _could_be(scores: Scores) -> bool:
    ordered = 0 <= scores.top1 <= scores.top3 <= scores.in_vocabulary <= scores.targets
    return (
        ordered
        and 1 <= scores.targets <= MOST_WORDS
        and 0 <= scores.loss <= NATS_A_TARGET * scores.in_vocabulary
    )

"""Causes: why a device, a report or a request did not count, and all that follows from it.

One table, `MEANING`: whoever needs the HTTP status of a cause, its step of the funnel, how soon the
device may come back or a sentence for people reads it there. A new cause is one name and one row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why something was refused or did not count. Each is one column of the funnel."""

    # the device's own conditions
    NOT_CHARGING = "not_charging"
    METERED_NETWORK = "metered_network"
    IN_USE = "in_use"
    TOO_FEW_EXAMPLES = "too_few_examples"
    # the round
    REPORTED_RECENTLY = "reported_recently"
    ROUND_FULL = "round_full"
    ALREADY_ASSIGNED = "already_assigned"
    SELECTING = "selecting"
    NOT_DRAWN = "not_drawn"
    TOO_EARLY = "too_early"
    WAITING = "waiting"
    NO_ROUND = "no_round"
    TASK_PAUSED = "task_paused"
    NO_HELPER = "no_helper"
    # the task's policy
    TOO_NEW = "too_new"
    PARTICIPATED_ENOUGH = "participated_enough"
    BARRED = "barred"
    OTHER_DEVICE_CLASS = "other_device_class"
    OUTDATED_RUNTIME = "outdated_runtime"
    OUTDATED_BUNDLE = "outdated_bundle"
    OUTDATED_RULES = "outdated_rules"
    # another protocol or another model
    UNSUPPORTED_VERSION = "unsupported_version"
    WRONG_MODEL = "wrong_model"
    # an assignment that brought nothing
    CONDITION_LOST = "condition_lost"
    TRAINING_FAILED = "training_failed"
    OVER_LIMIT = "over_limit"
    TIMED_OUT = "timed_out"
    UNCERTIFIED = "uncertified"
    EXPOSED = "exposed"
    INCONSISTENT = "inconsistent"
    # a report that came when it was no longer needed
    ROUND_CLOSED = "round_closed"
    SURPLUS = "surplus"
    LATE = "late"
    STALE = "stale"
    # a report that breaks a rule
    NOT_AN_UPDATE = "not_an_update"
    NOT_SCORES = "not_scores"
    WRONG_ROUND = "wrong_round"
    WRONG_SHAPES = "wrong_shapes"
    WRONG_TERMS = "wrong_terms"
    NORM_TOO_LARGE = "norm_too_large"
    BAD_SEAL = "bad_seal"
    BAD_SHARES = "bad_shares"
    # a request that breaks a rule
    MALFORMED = "malformed"
    UNKNOWN_DEVICE = "unknown_device"
    BAD_SIGNATURE = "bad_signature"
    WRONG_SERVER = "wrong_server"
    WRONG_TIME = "wrong_time"
    NOT_THE_OPERATOR = "not_the_operator"
    BAD_CODE = "bad_code"
    UNKNOWN_BLOB = "unknown_blob"
    UNKNOWN_ASSIGNMENT = "unknown_assignment"
    UNKNOWN_TASK = "unknown_task"
    TOO_SLOW = "too_slow"
    REPLAYED = "replayed"
    DIFFERENT_UPDATE = "different_update"
    WRONG_STATE = "wrong_state"
    ABANDONED = "abandoned"
    TOO_LARGE = "too_large"
    TOO_MANY_REQUESTS = "too_many_requests"
    UNAVAILABLE = "unavailable"


class Step(StrEnum):
    """Where in the funnel a cause takes a device out."""

    REFUSED = "refused"  # at check-in: it gets no work
    DROPPED = "dropped"  # after assignment: its work does not count
    REQUEST = "request"  # one request is refused; the device stays where it is


@dataclass(frozen=True)
class Meaning:
    """What follows from a cause."""

    sentence: str  # for people; it goes on after "the device: " and after "not counted: "
    step: Step
    # HTTP status of the Problem a request is answered with; None where the answer is a Reject (200)
    status: int | None = None
    lasts: bool = False  # nothing that passes by itself within minutes: the longer retry time
    no_place: bool = False  # at check-in: the device is eligible, and there was no place for it
    keeps_work: bool = False  # says nothing of the round that kept work is for: it stays kept
    gives_back: bool = False  # a device may name it when it gives an assignment back
    # what a report is told that comes after its assignment was closed for this
    told_late: Cause = Cause.ROUND_CLOSED


_REFUSED, _DROPPED, _REQUEST = Step.REFUSED, Step.DROPPED, Step.REQUEST

# looked up by a Cause or by its value, as it stands in a ledger or a database
MEANING: Mapping[str, Meaning] = {
    Cause.NOT_CHARGING: Meaning("not on a charger", _REFUSED, keeps_work=True, gives_back=True),
    Cause.METERED_NETWORK: Meaning(
        "not on an unmetered network", _REFUSED, keeps_work=True, gives_back=True
    ),
    Cause.IN_USE: Meaning(
        "in use, or not known to be idle", _REFUSED, keeps_work=True, gives_back=True
    ),
    Cause.TOO_FEW_EXAMPLES: Meaning("too little typed so far", _REFUSED, gives_back=True),
    Cause.REPORTED_RECENTLY: Meaning("counted too few rounds ago", _REFUSED, gives_back=True),
    Cause.ROUND_FULL: Meaning("the round has all the devices it wants", _REFUSED, no_place=True),
    Cause.ALREADY_ASSIGNED: Meaning("has had its turn in this round", _REFUSED, no_place=True),
    Cause.SELECTING: Meaning("asked, and hears later whether it is drawn", _REFUSED, no_place=True),
    Cause.NOT_DRAWN: Meaning("was not drawn for this round", _REFUSED, no_place=True),
    Cause.TOO_EARLY: Meaning("came before the time it was told", _REFUSED, no_place=True),
    Cause.WAITING: Meaning("waits for the other devices of its round", _REFUSED, no_place=True),
    Cause.NO_ROUND: Meaning("the task has all its rounds", _REFUSED, lasts=True, no_place=True),
    Cause.TASK_PAUSED: Meaning("the task is paused", _REFUSED, lasts=True, no_place=True),
    Cause.NO_HELPER: Meaning(
        "whoever opens the round's sum has given no key for it yet", _REFUSED, no_place=True
    ),
    Cause.TOO_NEW: Meaning("enrolled too recently to be trusted yet", _REFUSED),
    Cause.PARTICIPATED_ENOUGH: Meaning(
        "took part as often as allowed", _REFUSED, lasts=True, gives_back=True
    ),
    Cause.BARRED: Meaning(
        "its seal could not be opened, which cost a round its sum", _REFUSED, lasts=True
    ),
    Cause.OTHER_DEVICE_CLASS: Meaning("of another class of devices", _REFUSED, lasts=True),
    Cause.OUTDATED_RUNTIME: Meaning("its runtime is too old", _REFUSED, lasts=True),
    Cause.OUTDATED_BUNDLE: Meaning("its bundle is too old", _REFUSED, lasts=True),
    Cause.OUTDATED_RULES: Meaning(
        "its rules of what a word is are too old", _REFUSED, lasts=True, gives_back=True
    ),
    Cause.UNSUPPORTED_VERSION: Meaning(
        "speaks another version of the protocol", _REFUSED, status=426, lasts=True
    ),
    Cause.WRONG_MODEL: Meaning("has another vocabulary", _REFUSED, lasts=True),
    Cause.CONDITION_LOST: Meaning("unplugged, off WiFi or picked up", _DROPPED, gives_back=True),
    Cause.TRAINING_FAILED: Meaning("training did not get better", _DROPPED, gives_back=True),
    Cause.OVER_LIMIT: Meaning("over a limit of the device's own", _DROPPED, gives_back=True),
    Cause.UNCERTIFIED: Meaning(
        "weights not signed for a key that the device trusts",
        _REFUSED,
        lasts=True,
        gives_back=True,
    ),
    Cause.EXPOSED: Meaning(
        "its update would be seen more than its bundle allows",
        _DROPPED,
        gives_back=True,
    ),
    Cause.INCONSISTENT: Meaning(
        "was told of its peers, or of the log, what cannot be true", _DROPPED, gives_back=True
    ),
    Cause.TIMED_OUT: Meaning(
        "not heard of before the deadline", _DROPPED, gives_back=True, told_late=Cause.LATE
    ),
    Cause.ROUND_CLOSED: Meaning("the round was closed, or had too few devices", _DROPPED),
    Cause.SURPLUS: Meaning("the round had enough without it", _DROPPED, told_late=Cause.SURPLUS),
    Cause.LATE: Meaning("came after the deadline", _DROPPED, told_late=Cause.LATE),
    Cause.STALE: Meaning("too many rounds behind", _DROPPED, told_late=Cause.STALE),
    Cause.NOT_AN_UPDATE: Meaning(
        "not an update in the encoding and bits of the plan", _DROPPED, status=422
    ),
    Cause.NOT_SCORES: Meaning(
        "not sums that this plan's held-back messages could have", _DROPPED, status=422
    ),
    Cause.WRONG_ROUND: Meaning(
        "encoded or signed for another task, round or rotation", _DROPPED, status=422
    ),
    Cause.WRONG_SHAPES: Meaning("of a network of other shapes", _DROPPED, status=422),
    Cause.WRONG_TERMS: Meaning("encoded by other terms than the task's", _DROPPED, status=422),
    Cause.NORM_TOO_LARGE: Meaning(
        "larger than the plan's clipping norm allows", _DROPPED, status=422
    ),
    Cause.BAD_SEAL: Meaning(
        "its seal is not signed by the device for this round", _DROPPED, status=422
    ),
    Cause.BAD_SHARES: Meaning("sent keys or shares that cannot be right", _DROPPED, status=422),
    Cause.MALFORMED: Meaning("not a message of this server", _REQUEST, status=400),
    Cause.UNKNOWN_DEVICE: Meaning("not enrolled", _REQUEST, status=401),
    Cause.BAD_SIGNATURE: Meaning("not signed by the device it names", _REQUEST, status=401),
    Cause.WRONG_SERVER: Meaning("signed for another server", _REQUEST, status=421),
    Cause.WRONG_TIME: Meaning("signed at another time", _REQUEST, status=401, keeps_work=True),
    Cause.NOT_THE_OPERATOR: Meaning("without the operator's token", _REQUEST, status=401),
    Cause.BAD_CODE: Meaning("without an enrolment code that is good", _REQUEST, status=403),
    Cause.UNKNOWN_BLOB: Meaning("asked for a blob that is not there", _REQUEST, status=404),
    Cause.UNKNOWN_ASSIGNMENT: Meaning("has no such assignment", _REQUEST, status=404),
    Cause.UNKNOWN_TASK: Meaning("asked for a task that is not there", _REQUEST, status=404),
    Cause.TOO_SLOW: Meaning("its body did not come in time", _REQUEST, status=408, keeps_work=True),
    Cause.REPLAYED: Meaning("sent before", _REQUEST, status=409),
    Cause.DIFFERENT_UPDATE: Meaning("sent another report before", _REQUEST, status=409),
    Cause.WRONG_STATE: Meaning("the task's state forbids it", _REQUEST, status=409),
    Cause.ABANDONED: Meaning("had given the assignment back", _REQUEST, status=410),
    Cause.TOO_LARGE: Meaning("larger than any message of ours", _REQUEST, status=413),
    Cause.TOO_MANY_REQUESTS: Meaning("asked too often", _REQUEST, status=429, keeps_work=True),
    Cause.UNAVAILABLE: Meaning(
        "the server could not keep anything", _REQUEST, status=503, keeps_work=True
    ),
}


def had_no_place(cause: str) -> bool:
    """Whether a device refused for it was eligible; of a cause of a later version nobody knows.

    >>> had_no_place("round_full"), had_no_place("in_use"), had_no_place("sun_spots")
    (True, False, False)
    """
    meaning = MEANING.get(cause)
    return meaning is not None and meaning.no_place


def sentence(cause: str) -> str:
    """A cause for people; one of a later version in its own words.

    >>> sentence("in_use"), sentence("sun_spots")
    ('in use, or not known to be idle', 'sun spots')
    """
    meaning = MEANING.get(cause)
    return label(cause) if meaning is None else meaning.sentence


def label(cause: str) -> str:
    """The name of a cause as words, for where a sentence is too long.

    >>> label("round_full")
    'round full'
    """
    return cause.replace("_", " ")

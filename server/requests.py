"""What devices ask of the coordinator, as values, and how it says no."""

from dataclasses import dataclass

from device_runtime.wire import Ack, Assignment, Cause, CheckIn, Kind, Reject

ABANDON_CAUSES = (
    Cause.CONDITION_LOST,
    Cause.TRAINING_FAILED,
    Cause.TIMED_OUT,
    Cause.NOT_CHARGING,
    Cause.METERED_NETWORK,
    Cause.IN_USE,
    Cause.TOO_FEW_EXAMPLES,
    Cause.REPORTED_RECENTLY,
)
STATUS = {
    Cause.MALFORMED: 400,
    Cause.UNKNOWN_DEVICE: 401,
    Cause.BAD_SIGNATURE: 401,
    Cause.NOT_THE_OPERATOR: 401,
    Cause.BAD_CODE: 403,
    Cause.UNKNOWN_BLOB: 404,
    Cause.UNKNOWN_ASSIGNMENT: 404,
    Cause.UNKNOWN_TASK: 404,
    Cause.TOO_SLOW: 408,
    Cause.REPLAYED: 409,
    Cause.DIFFERENT_UPDATE: 409,
    Cause.WRONG_STATE: 409,
    Cause.ABANDONED: 410,
    Cause.TOO_LARGE: 413,
    Cause.NOT_AN_UPDATE: 422,
    Cause.NOT_SCORES: 422,
    Cause.WRONG_ROUND: 422,
    Cause.WRONG_SHAPES: 422,
    Cause.NORM_TOO_LARGE: 422,
    Cause.TOO_MANY_REQUESTS: 429,
    Cause.UNAVAILABLE: 503,
}  # HTTP, for each cause a request can be refused for
WHY = {
    Cause.NOT_AN_UPDATE: "the body is not an update in the encoding and bits of the plan",
    Cause.NOT_SCORES: "the body does not hold sums that this plan's held-back messages could have",
    Cause.WRONG_ROUND: "the update was encoded, or the request signed, for another task, round "
    "or rotation",
    Cause.WRONG_SHAPES: "the update belongs to a network of other shapes",
    Cause.NORM_TOO_LARGE: "the update is larger than the plan's clipping norm allows",
}


class Refused(Exception):
    """A request that breaks a rule. The endpoint answers with a Problem; nothing has changed but
    the ledger.
    """

    def __init__(self, cause: Cause, detail: str):
        super().__init__(detail)
        self.cause, self.detail, self.status = cause, detail, STATUS[cause]


# What devices ask. `nonce` is None where no signature was needed; `task` and `round` are those the
# device signed for, "" and 0 if for none.


@dataclass(frozen=True)
class CheckingIn:
    device: str
    check_in: CheckIn
    nonce: str | None = None


@dataclass(frozen=True)
class Reporting:
    """An encoded update, or the bytes of Scores."""

    device: str
    assignment: str
    body: bytes | bytearray
    kind: Kind = Kind.TRAINING
    nonce: str | None = None
    signed_for: tuple[str, int] | None = None
    body_digest: str | None = None  # SHA-256 that was signed


@dataclass(frozen=True)
class Abandoning:
    device: str
    assignment: str
    cause: Cause
    nonce: str | None = None
    signed_for: tuple[str, int] | None = None


@dataclass(frozen=True)
class Fetching:
    """So many bytes of a blob are about to be sent, with its last or without."""

    device: str
    blob: str
    size: int
    complete: bool
    nonce: str | None = None
    signed_for: tuple[str, int] | None = None


Request = CheckingIn | Reporting | Abandoning | Fetching
Answer = Assignment | Reject | Ack | Refused | None


def refusal(cause: Cause) -> Refused:
    """A Refused in the words of WHY."""
    return Refused(cause, WHY[cause])

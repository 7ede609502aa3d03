"""The wire contract: every message between a device and the server, and the causes they name. JSON control, binary bodies.

No message has a field that could carry typed text. Blobs (plan, checkpoint) are immutable and fetched by SHA-256.

    POST /v1/devices                        Enrolment            -> Enrolled
    POST /v1/check-in                       CheckIn              -> Assignment | Reject
    GET  /v1/blobs/{sha256}                                      -> bytes
    PUT  /v1/assignments/{id}/update        encoded update       -> Ack | Reject
    POST /v1/assignments/{id}/abandon       Abandon              -> Ack
    GET  /v1/rounds                                              -> RoundReports
All but the first and last are signed: `signing.sign_request`. Every refusal is a Reject or a Problem with a named cause.
"""

from dataclasses import dataclass, field
from enum import StrEnum

VERSION = 1


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
    NO_ROUND = "no_round"
    ROUND_CLOSED = "round_closed"
    # an assignment that brought nothing
    CONDITION_LOST = "condition_lost"
    TRAINING_FAILED = "training_failed"
    TIMED_OUT = "timed_out"
    # bad requests
    MALFORMED = "malformed"
    UNSUPPORTED_VERSION = "unsupported_version"
    WRONG_MODEL = "wrong_model"
    UNKNOWN_DEVICE = "unknown_device"
    BAD_SIGNATURE = "bad_signature"
    REPLAYED = "replayed"
    UNKNOWN_ASSIGNMENT = "unknown_assignment"
    ABANDONED = "abandoned"
    UNKNOWN_BLOB = "unknown_blob"
    TOO_LARGE = "too_large"
    NOT_AN_UPDATE = "not_an_update"
    WRONG_ROUND = "wrong_round"
    WRONG_SHAPES = "wrong_shapes"
    NORM_TOO_LARGE = "norm_too_large"
    DIFFERENT_UPDATE = "different_update"


@dataclass(frozen=True)
class Plan:
    """The numbers a device needs to do a round's work. Part of the bundle (plan.json) and of every assignment by hash."""

    batch_size: int = 8  # rows of one train step; fixed in the exported graph
    length: int = 20  # tokens of one row; fixed in the exported graph
    epochs: int = 1
    learning_rate: float = 0.3  # local SGD
    max_rows: int = 256  # rows used of one device, newest utterances first
    clipping_norm: float = 10.0  # largest L2 norm of a delta
    bits: int = 8  # of one value of the upload


@dataclass(frozen=True)
class Enrolment:
    public_key: str  # Ed25519, hexadecimal


@dataclass(frozen=True)
class Enrolled:
    device: str  # the name the device signs its requests with


@dataclass(frozen=True)
class Conditions:
    """Three separate signals; None means unknown, and unknown is not eligible."""

    charging: bool | None = None
    unmetered: bool | None = None
    idle: bool | None = None


@dataclass(frozen=True)
class CheckIn:
    conditions: Conditions
    examples: int  # typed utterances waiting on the device
    tokenizer: str  # SHA-256 of the vocabulary in the device's bundle
    version: int = VERSION
    holds: str = ""  # SHA-256 of the float16 checkpoint it has: a newer one can travel as a difference


@dataclass(frozen=True)
class Assignment:
    assignment: str
    round: int
    plan: str  # SHA-256 of plan.json
    checkpoint: str  # SHA-256 of the float16 safetensors checkpoint
    shapes: str  # `weights.shapes_hash` of the network
    rotation_seed: int  # of the round: every update of a round is rotated alike
    deadline_s: float  # seconds from now until the report is too late
    difference: str | None = None  # SHA-256 of the checkpoint as a difference from the one the device holds, where that is smaller


@dataclass(frozen=True)
class Reject:
    """No work now: the cause and the seconds to wait before the next check-in. A value, not an error: status 200."""

    cause: Cause
    retry_in_s: float


@dataclass(frozen=True)
class Ack:
    """The update is durable and counts (or the abandonment is noted)."""

    counted: bool
    retry_in_s: float = 0.0


@dataclass(frozen=True)
class Abandon:
    cause: Cause


@dataclass(frozen=True)
class Problem:
    """Body of every 4xx answer."""

    cause: Cause
    detail: str


@dataclass(frozen=True)
class RoundReport:
    """What became of one round: the funnel from check-in to counted, with causes, and bytes on the socket."""

    round: int
    phase: str  # selecting, reporting, committed, abandoned
    goal: int
    checked_in: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by cause, at check-in
    assigned: int = 0
    downloaded: int = 0
    uploaded: int = 0
    counted: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by cause, after assignment
    examples: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    checkpoint: str = ""  # SHA-256 of the checkpoint the round made (float32)


@dataclass(frozen=True)
class RoundReports:
    rounds: tuple[RoundReport, ...] = ()


def forbidden_by(conditions: Conditions) -> Cause | None:
    """The first condition that forbids training, or None if the device may train. Unknown forbids."""
    if conditions.charging is not True:
        return Cause.NOT_CHARGING
    if conditions.unmetered is not True:
        return Cause.METERED_NETWORK
    if conditions.idle is not True:
        return Cause.IN_USE
    return None

"""The contract between a server (leader) and a helper: every message, and why a helper says no.

    GET  /v1/helper                                  -> HelperReport   anybody may ask
    POST /v1/tasks               Registration        -> Registered     and when certified anew
    POST /v1/seal-keys           KeysAsked           -> SealKeys       of rounds to come
    POST /v1/answers             Named               -> bytes of an answer: `to_answer`
    POST /v1/answers/done        AnswerTaken         -> Registered     the round is over
    POST /v1/heads               HeadAsked           -> HeadSeen       of the server's log

All but the first need the token that the helper gives to the leader, as a bearer. A refusal is a
HelperProblem; whoever gets none, or one that `is_passing`, asks again with the same bytes. A device
never speaks to the helper.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from device_runtime import config
from device_runtime.bounds import Each, Matches, Within
from device_runtime.errors import ConfigError
from device_runtime.wire import (
    COUNT,
    HASH,
    HASH_OR_NONE,
    NAME,
    PATH,
    ROUND,
    SENTENCE,
    TASK,
    Kind,
    Signed,
)

SEAL_KEY = "seal-key"  # purpose of the helper's signature
SEAL_BYTES = 80  # X25519 public key, 32 bytes of seed encrypted, tag of 16
SIGNATURE_BYTES = 64
MOST_ROUNDS_AHEAD = 64  # seal keys that one message asks for, and that a helper has ahead
TOKEN_FILE = "helper.token"  # in the helper's folder, readable by its owner only
TOKEN = "FEDBOARD_HELPER_TOKEN"  # environment, of a leader too
MOST_REPORT_BYTES = 700  # of one SealedReport as JSON
VERSION = 2


class Refusal(StrEnum):
    """Why a helper gives no mask."""

    UNKNOWN_LEADER = "unknown_leader"  # without its token
    FOREIGN_POLICY = "foreign_policy"  # terms that name another helper, or that nobody signed
    UNKNOWN_TASK = "unknown_task"
    UNKNOWN_ROUND = "unknown_round"  # it has no key of that round, or not any more
    SECOND_SET = "second_set"  # another set of this round has been answered
    TOO_FEW = "too_few"
    TOO_MANY = "too_many"
    NAMED_BEFORE = "named_before"  # a report, or a device, was in another answer of the round
    TOO_SOON = "too_soon"  # a device within the separation
    BAD_SIGNATURE = "bad_signature"
    BAD_SEAL = "bad_seal"
    OVER_BUDGET = "over_budget"  # with this sum its task would have spent more than its budget
    NOT_ENROLLED = "not_enrolled"  # too few of the devices are certified by the enrolment key
    FORK = "fork"  # a head that does not extend what it has signed of that log
    MALFORMED = "malformed"
    UNAVAILABLE = "unavailable"  # it can keep nothing just now; nothing has happened

    @property
    def is_passing(self) -> bool:
        """Whether the same message may get an answer later."""
        return self is Refusal.UNAVAILABLE

    @property
    def status(self) -> int:
        """Of HTTP."""
        return _STATUS.get(self, 409)


_STATUS = {
    Refusal.UNKNOWN_LEADER: 401,
    Refusal.FOREIGN_POLICY: 403,
    Refusal.UNKNOWN_TASK: 404,
    Refusal.UNKNOWN_ROUND: 410,
    Refusal.TOO_FEW: 422,
    Refusal.TOO_MANY: 422,
    Refusal.BAD_SIGNATURE: 422,
    Refusal.BAD_SEAL: 422,
    Refusal.NOT_ENROLLED: 422,
    Refusal.MALFORMED: 400,
    Refusal.UNAVAILABLE: 503,
}


@dataclass(frozen=True)
class HelperProblem:
    """Body of every refusal."""

    refusal: Refusal
    detail: Annotated[str, SENTENCE]
    # whose reports brought it about, where some did
    devices: Annotated[tuple[str, ...], Each(Matches("[0-9a-f]{16}", 16), 100_000)] = ()


@dataclass(frozen=True)
class HelperReport:
    """What a helper says of itself, to anybody."""

    helper: Annotated[str, HASH]  # its identity: Ed25519 public key
    least: Annotated[int, COUNT]  # reports of the smallest sum it opens
    enrolment_key: Annotated[str, HASH_OR_NONE] = ""  # whose devices alone count
    answers: Annotated[int, COUNT] = 0  # rounds answered
    refusals: Annotated[dict[str, int], Each(COUNT, 100, Matches("[a-z_]{1,40}", 40))] = field(
        default_factory=dict
    )
    version: Annotated[int, Within(0, 10**6)] = VERSION


@dataclass(frozen=True)
class Registration:
    """A task of the leader: its certificate has the terms. An evaluation shows that of the
    training task whose checkpoints it scores.
    """

    certificate: Signed
    task: Annotated[str, TASK]
    task_id: Annotated[str, NAME]
    kind: Kind = Kind.TRAINING


@dataclass(frozen=True)
class Registered:
    """It has been kept. Of a registration, also where the task's rounds stand at the helper."""

    terms: Annotated[str, HASH_OR_NONE] = ""
    # no sum of a round before this one is opened any more: a later one was, or its key is lost
    opens_from: Annotated[int, ROUND] = 0
    keyed_before: Annotated[int, ROUND] = 0  # no round from this one on has a key


@dataclass(frozen=True)
class KeysAsked:
    """Seal keys of `rounds` rounds from `first` on."""

    task_id: Annotated[str, NAME]
    first: Annotated[int, ROUND]
    rounds: Annotated[int, Within(1, MOST_ROUNDS_AHEAD)] = 1


@dataclass(frozen=True)
class SealKey:
    """What a helper signs: seeds of this round's reports are sealed to this key."""

    key: Annotated[str, HASH]  # X25519 public key
    task_id: Annotated[str, NAME]
    round: Annotated[int, ROUND]
    terms: Annotated[str, HASH]  # `Terms.name`


@dataclass(frozen=True)
class SealKeys:
    """A `SealKey` of each round that was asked for, signed."""

    keys: Annotated[tuple[Signed, ...], Each(most=MOST_ROUNDS_AHEAD)] = ()


@dataclass(frozen=True)
class SealedReport:
    """What the helper gets of one counted report: no code of it."""

    public_key: Annotated[str, HASH]  # of the device, Ed25519
    round: Annotated[int, ROUND]  # it was assigned in: of a buffered task an earlier one
    seal: Annotated[str, Matches("[0-9a-f]{160}", 160)]
    signature: Annotated[str, Matches("[0-9a-f]{128}", 128)]  # the device's, of the seal
    enrolment: Annotated[str, Matches("[0-9a-f]{128}|", 128)] = (
        ""  # the enrolment key's, of the key
    )


@dataclass(frozen=True)
class Named:
    """The counted reports of a round: the mask of their sum, please."""

    task_id: Annotated[str, NAME]
    round: Annotated[int, ROUND]  # that they are counted in
    reports: Annotated[tuple[SealedReport, ...], Each(most=100_000)] = ()


@dataclass(frozen=True)
class Noised:
    """What a helper has of the noise of a task: its own account of what was spent, as of a sum."""

    # the rounds whose sums were the first after each beginning of the noise; empty: none was noised
    began: Annotated[tuple[int, ...], Each(ROUND, 100_000)] = ()
    sums: Annotated[int, COUNT] = 0  # released so far, this one with them
    rho: Annotated[float, Within(0.0, 1e12)] = 0.0
    epsilon: Annotated[float, Within(0.0, 1e12)] = 0.0


@dataclass(frozen=True)
class AnswerTaken:
    """A round is over, and its answer on disk if it had one: the helper may forget what it has of
    it and of those before.
    """

    task_id: Annotated[str, NAME]
    round: Annotated[int, ROUND]


@dataclass(frozen=True)
class HeadAsked:
    """A head of the server's log to be countersigned, which extends the first `seen` entries."""

    head: Signed  # `log_wire.Head`, by the key that the certificate of a registered task names
    seen: Annotated[int, COUNT] = 0  # entries of the head that the helper has signed last
    consistency: Annotated[str, PATH] = ""  # from that to this


@dataclass(frozen=True)
class HeadSeen:
    """What a helper has of a log. Without a signature it has seen another size than was said: the
    proof is to begin there.
    """

    size: Annotated[int, COUNT]
    signature: Signed | None = None  # of the head's text, for `log_wire.SEEN`


def to_answer(noised: Noised, words: bytes) -> bytes:
    """An answer's bytes: a line of JSON, then the sum of masks less noise: `packing.to_bytes`."""
    return config.to_json(noised) + b"\n" + words


def from_answer(data: bytes, words: int) -> tuple[Noised, bytes]:
    """What `to_answer` made, whose words take so many bytes; an answer that a helper of version 1
    has kept is the words alone. Raises ConfigError.
    """
    if len(data) == words:
        return Noised(), data
    line, found, rest = data.partition(b"\n")
    if not found or len(rest) != words:
        raise ConfigError(
            "answer", f"expected a line and {words} bytes, found {len(data)}", "ask again"
        )
    return config.from_json(Noised, line, "answer"), rest


def most_bytes(reports: int) -> int:
    """The largest `Named` of so many reports, as JSON."""
    return 4096 + MOST_REPORT_BYTES * reports

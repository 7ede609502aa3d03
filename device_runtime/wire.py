"""The wire contract: every message between a device and the server. JSON control, binary bodies.

No message has a field that could carry typed text. Blobs (plan, checkpoint) are immutable and
fetched by SHA-256.

    POST /v1/devices                  Enrolment       -> Enrolled
    POST /v1/check-in                 CheckIn         -> Assignment | Reject
    GET  /v1/blobs/{sha256}                           -> bytes
    PUT  /v1/assignments/{id}/update  update.py       -> Ack | Reject   of a training task or one
                                                                        that counts, or scores that
                                                                        are masked
    PUT  /v1/assignments/{id}/scores  Scores          -> Ack | Reject   of an evaluation task
    PUT  /v1/assignments/{id}/scores  ReleaseScores   -> Ack | Reject   of one of releases
    POST /v1/assignments/{id}/abandon Abandon         -> Ack
    PUT  /v1/assignments/{id}/secagg/keys       Advertised    -> Ack | Reject   `secagg_wire`
    GET  /v1/assignments/{id}/secagg/roster                   -> Roster | Reject
    PUT  /v1/assignments/{id}/secagg/shares     Shares        -> Ack | Reject
    GET  /v1/assignments/{id}/secagg/inbox                    -> Inbox | Reject
    GET  /v1/assignments/{id}/secagg/announced                -> Announced | Reject
    PUT  /v1/assignments/{id}/secagg/consent    Consent       -> Ack | Reject
    GET  /v1/assignments/{id}/secagg/consents                 -> Consents | Reject
    PUT  /v1/assignments/{id}/secagg/revealed   Revealed      -> Ack | Reject
    GET  /v1/rounds?task=NAME&before=N&most=M         -> RoundReports
    GET  /v1/server                                   -> Server
    GET  /v1/newest?population=NAME                   -> Named
    GET  /v1/releases/{sha256}                        -> bytes
    GET  /v1/log/head                                 -> log_wire.LogHead
    GET  /v1/log/entries?first=N&most=M               -> log_wire.Entries
    GET  /v1/log/consistency?first=N&second=M         -> log_wire.Path

All but the last six are signed by the device, for the server that `Server` names and at the time
of its clock: `signing.sign_request`. Releases and the log are asked for and fetched without a
name: nobody need know who runs which, and who never takes part hears of them too. Every refusal is
a Reject or a Problem with a named cause. What only the operator may ask for is in
`server/contract.py`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from device_runtime import bounds
from device_runtime.bounds import Each, Matches, Within
from device_runtime.causes import Cause, Step

VERSION = 6
DAY_S = 86_400.0  # seconds of a day
MOST_ROUNDS = 1000  # that one answer tells of
ROUNDS = 200  # that it tells of if it is not told how many
RATE = Within(1e-30, 1e38)  # of a learning rate: float32 holds it, and a step of it
MOST_SIGNED = 8192  # characters of a text that is signed
MOST_WORDS = 400  # targets of one device's Scores: no device decides an evaluation
# what the fields of messages may hold
MOST = 2**53 - 1  # any JSON reader keeps such a number
ROUND, COUNT = Within(0, 2**31), Within(0, MOST)
TEXT_RULES = Within(1, 10**6)
SECONDS, TIME = Within(0.0, 1e12), Within(-1e12, 1e12)  # a duration; a time, or a clock set back
HASH, HASH_OR_NONE = Matches("[0-9a-f]{64}", 64), Matches("[0-9a-f]{64}|", 64)
NAME, NAME_OR_NONE = Matches("[0-9a-f]{32}", 32), Matches("[0-9a-f]{32}|", 32)  # random
TASK = Matches("[a-z0-9][a-z0-9._-]{0,63}", 64)  # of a task or a population
WORD = Matches("[ -~]*", 64)  # of few characters, all of them printable
SENTENCE = Matches("[ -~]*", 1000)
SIGNATURE_OR_NONE = Matches("[0-9a-f]{128}|", 128)
PATH = Matches("([0-9a-f]{64})*", 64 * 64)  # hashes of a proof, one after the other
BY_CAUSE = Each(COUNT, 100, Matches("[a-z_]{1,40}", 40))


@dataclass(frozen=True)
class Signed:
    """A text as its signer wrote it, byte by byte, and the proof. Nothing in it is parsed before
    `signing.text_of` has given it out.
    """

    text: Annotated[str, Matches("[ -~]*", MOST_SIGNED)]  # JSON, of printable ASCII
    signer: Annotated[str, Matches("[0-9a-f]{64}", 64)]  # public key, hexadecimal
    signature: Annotated[str, Matches("[0-9a-f]{128}", 128)]


@dataclass(frozen=True)
class Plan:
    """The numbers a device needs to do a round's work. Part of the bundle (plan.json) and of every
    assignment by hash.
    """

    # rows of one train step; fixed in the exported graph
    batch_size: Annotated[int, Within(1, 65_536)] = 8
    # tokens of one row; fixed in the exported graph
    length: Annotated[int, Within(1, 1000)] = 20
    epochs: Annotated[int, Within(1, 1000)] = 1
    learning_rate: Annotated[float, RATE] = 0.3  # local SGD
    # rows used of one device, newest utterances first
    max_rows: Annotated[int, Within(1, 10_000_000)] = 256
    # largest L2 norm of a delta: near the longest that honest devices make, since a lying one moves
    # a round by no less
    clipping_norm: Annotated[float, Within(1e-9, 1e12)] = 1.0
    bits: Annotated[int, Within(1, 16)] = 8  # of one value of the upload

    def __post_init__(self) -> None:
        """Raises ConfigError for a number no device could work by."""
        bounds.check(self, "plan")


class Kind(StrEnum):
    """What a task asks of a device."""

    TRAINING = "training"  # fine-tune a checkpoint, report the update
    EVALUATION = "evaluation"  # score a checkpoint on held-back messages, report sums
    RELEASES = "releases"  # score the release that runs, and the one before, on the same messages
    COUNTS = "counts"  # say which words of a public list were typed


# kinds of tasks with a certificate of their own; the others show that of a training task
CERTIFIED = (Kind.TRAINING, Kind.COUNTS)


@dataclass(frozen=True)
class Server:
    """Whom a device signs its requests for. Anybody may ask."""

    # random, of its database: replicas share it, a server begun anew has another
    server: Annotated[str, NAME]
    time: Annotated[int, Within(0, 10**11)]  # of its clock, whole seconds since 1970
    version: Annotated[int, Within(0, 10**6)] = VERSION  # of this contract


@dataclass(frozen=True)
class Named:
    """Which releases a population has now. Anybody may ask."""

    releases: Annotated[str, HASH_OR_NONE] = ""  # SHA-256 of the `releases.Newest`; empty: none


@dataclass(frozen=True)
class Enrolment:
    """Signed with the key it makes known, as whoever holds it will be: `signing.name_of` it."""

    public_key: Annotated[str, HASH]  # Ed25519, hexadecimal
    code: Annotated[str, WORD] = ""  # used once; not needed where the operator lets every device in
    # that the key is a device's, signed by whom a helper may trust to say so: `enrolments.py`
    certificate: Signed | None = None


@dataclass(frozen=True)
class Enrolled:
    """The answer to an Enrolment."""

    # the name the device signs its requests with
    device: Annotated[str, Matches("[0-9a-f]{16}", 16)]


@dataclass(frozen=True)
class Conditions:
    """Three separate signals; None means unknown, and unknown is not eligible."""

    charging: bool | None = None
    unmetered: bool | None = None
    idle: bool | None = None


@dataclass(frozen=True)
class CheckIn:
    """A device asks for work: how it stands and what it runs."""

    conditions: Conditions
    examples: Annotated[int, COUNT]  # typed utterances waiting on the device
    tokenizer: Annotated[str, WORD]  # SHA-256 of the vocabulary in the device's bundle
    version: Annotated[int, Within(0, 10**6)] = VERSION
    # SHA-256 of the float16 checkpoint it has: a newer one can travel as a difference
    holds: Annotated[str, HASH_OR_NONE] = ""
    population: Annotated[str, TASK] = "default"  # whose tasks it works for
    runtime: Annotated[str, WORD] = ""  # version of its interpreter, such as "2.14.0"
    # coarse and chosen by its maker, such as "low"; never a model name
    device_class: Annotated[str, WORD] = ""
    # entries of the server's log, as the device has seen it; 0: none
    log_size: Annotated[int, COUNT] = 0
    # text rules it can follow; a device of an earlier version follows 1, and does not say so
    rules: Annotated[int, TEXT_RULES] = 1


@dataclass(frozen=True)
class Proof:
    """That the server's log holds what a device is asked to agree to: `log_wire`."""

    head: Signed  # a `log_wire.Head`, signed with the log's key
    policy: Annotated[int, COUNT]  # number of the policy's entry, which the certificate tells
    policy_path: Annotated[str, PATH]
    checkpoint: Annotated[int, COUNT]  # number of the entry of the assigned checkpoint
    checkpoint_path: Annotated[str, PATH]
    round: Annotated[str, Matches("[ -~]*", MOST_SIGNED)]  # that entry: a `log_wire.RoundEntry`
    # by the helper that the terms name, of the same head; empty where they name none
    countersignature: Annotated[str, SIGNATURE_OR_NONE] = ""
    # from the size that the device has seen to this one
    consistency: Annotated[str, PATH] = ""


@dataclass(frozen=True)
class Assignment:
    """Work for a device: what to fetch, and until when."""

    assignment: Annotated[str, NAME]
    round: Annotated[int, ROUND]
    plan: Annotated[str, HASH]  # SHA-256 of plan.json
    # SHA-256 of the float16 safetensors checkpoint, or of the list whose words are counted
    checkpoint: Annotated[str, HASH]
    shapes: Annotated[str, HASH]  # `weights.shapes_hash` of the network; of a list its hash
    deadline_s: Annotated[float, SECONDS]  # seconds from now until the report is too late
    # SHA-256 of the checkpoint as a difference from the one the device holds, where that is
    # smaller
    difference: Annotated[str | None, HASH] = None
    task: Annotated[str, TASK] = "default"  # by name
    kind: Kind = Kind.TRAINING
    # rounds of the task between two reports of one device; the device holds the server to it
    min_separation: Annotated[int, ROUND] = 1
    # random name of the server's database: another one after a new start
    server: Annotated[str, NAME_OR_NONE] = ""
    # random name of the task: another one for another task of the same name
    task_id: Annotated[str, NAME_OR_NONE] = ""
    # who may sign this task's checkpoints: a `chain.Certificate`, signed by a key of the bundle's
    # maker; and the `chain.Link` of this checkpoint, signed by the key that it certifies
    certificate: Signed | None = None
    link: Signed | None = None
    # SHA-256 of the `releases.Newest` there are now: the same for all who ask
    releases: Annotated[str, HASH_OR_NONE] = ""
    # where the certificate's terms name a helper: a `helper_wire.SealKey` of this round that it
    # signed
    seal_key: Signed | None = None
    # of all work but comparisons of releases
    log: Proof | None = None
    # text rules that what it is of was made by; not written where they are 1, which every device
    # follows, so that one of an earlier version knows every key
    rules: Annotated[int, TEXT_RULES] = 1


@dataclass(frozen=True)
class Reject:
    """No work now: the cause and the seconds to wait before the next check-in. A value, not an
    error: status 200.
    """

    cause: Cause
    retry_in_s: Annotated[float, SECONDS]
    # of a check-in: SHA-256 of the `releases.Newest` there are now, the same for all who ask
    releases: Annotated[str, HASH_OR_NONE] = ""


@dataclass(frozen=True)
class Ack:
    """The update is durable and counts (or the abandonment is noted)."""

    counted: bool
    retry_in_s: Annotated[float, SECONDS] = 0.0


@dataclass(frozen=True)
class Abandon:
    """A device gives its assignment back."""

    cause: Cause


@dataclass(frozen=True)
class Scores:
    """Sums over the target words of a device's held-back messages: what an evaluation reports, and
    all it reports.
    """

    targets: Annotated[int, COUNT]  # words; one outside of the vocabulary is a miss
    top1: Annotated[int, COUNT]  # targets that were the best word
    top3: Annotated[int, COUNT]  # targets among the three best
    in_vocabulary: Annotated[int, COUNT]  # targets of the vocabulary: the loss is over them
    loss: Annotated[float, Within(0.0, 1e15)]  # nats, summed


@dataclass(frozen=True)
class ReleaseScores:
    """How the release that a device runs does on its held-back messages, and the one it ran before
    on the very same: the only message that tells which release a device runs.
    """

    release: Annotated[int, COUNT]
    scores: Scores
    before: Annotated[int, COUNT] = 0  # 0: there is none, or it has another vocabulary
    before_scores: Scores | None = None


@dataclass(frozen=True)
class Problem:
    """Body of every 4xx answer."""

    cause: Cause
    detail: Annotated[str, SENTENCE]


class Phase(StrEnum):
    """Where a round stands."""

    SELECTING = "selecting"  # devices are admitted
    REPORTING = "reporting"  # their reports are waited for
    UNMASKING = "unmasking"  # enough are in: what takes the masks off their sum is waited for
    COMMITTED = "committed"  # it has made a checkpoint, or scored one
    ABANDONED = "abandoned"


OPEN = (Phase.SELECTING, Phase.REPORTING)
UNDER_WAY = (*OPEN, Phase.UNMASKING)  # nothing has come of it yet


@dataclass(frozen=True)
class RoundReport:
    """What became of one round: the funnel from check-in to counted, with causes, and bytes on the
    socket.
    """

    round: Annotated[int, ROUND]
    phase: Phase
    goal: Annotated[int, COUNT]
    checked_in: Annotated[int, COUNT] = 0
    # by cause, at check-in
    refused: Annotated[dict[str, int], BY_CAUSE] = field(default_factory=dict)
    assigned: Annotated[int, COUNT] = 0
    downloaded: Annotated[int, COUNT] = 0
    uploaded: Annotated[int, COUNT] = 0
    counted: Annotated[int, COUNT] = 0
    # by cause, after assignment
    dropped: Annotated[dict[str, int], BY_CAUSE] = field(default_factory=dict)
    examples: Annotated[int, COUNT] = 0  # of rounds whose updates counted by their examples
    bytes_up: Annotated[int, COUNT] = 0
    bytes_down: Annotated[int, COUNT] = 0
    seconds: Annotated[float, TIME] = 0.0
    # SHA-256 of the checkpoint the round made (float32)
    checkpoint: Annotated[str, HASH_OR_NONE] = ""
    task: Annotated[str, TASK] = "default"
    kind: Kind = Kind.TRAINING
    # SHA-256 of the checkpoint the round gave to its devices (float32)
    base: Annotated[str, HASH_OR_NONE] = ""
    base_round: Annotated[int, ROUND] = 0  # the round that made it
    scores: Scores | None = None  # of an evaluation: sums over its devices
    opened_at: Annotated[float, TIME] = 0.0  # seconds since 1970
    # of an evaluation: its devices by the share of their words that were right, in steps of 5 %
    spread: Annotated[tuple[int, ...], Each(COUNT, 100)] = ()
    # why it was abandoned, in a sentence, where more than too few reports is to be said
    reason: Annotated[str, SENTENCE] = ""
    # of masked sums: devices of this round that were also in the sum of the last
    overlap: Annotated[int, COUNT] = 0
    # where devices open their sum together: how many sent the message of each step
    steps: Annotated[dict[str, int], BY_CAUSE] = field(default_factory=dict)
    # of a task with noise, once its sum was made: what was spent by then, at the task's delta
    rho: Annotated[float | None, Within(0.0, 1e12)] = None
    epsilon: Annotated[float | None, Within(0.0, 1e12)] = None


# the steps of the funnel, in order: a device that came to one came to all before it
FUNNEL = ("checked_in", "assigned", "downloaded", "uploaded", "counted")


def lost(reports: Iterable[RoundReport], *steps: Step) -> list[tuple[str, int]]:
    """Devices that fell out of these rounds at the steps, by cause, the most frequent first.

    >>> report = RoundReport(1, Phase.COMMITTED, 2, refused={"in_use": 1}, dropped={"late": 2})
    >>> lost([report, report], Step.REFUSED), lost([report], Step.REFUSED, Step.DROPPED)
    ([('in_use', 2)], [('late', 2), ('in_use', 1)])
    """
    counts: Counter[str] = Counter()
    for report in reports:
        for step in steps:
            counts.update(getattr(report, step))
    return sorted((+counts).items(), key=lambda each: (-each[1], each[0]))


@dataclass(frozen=True)
class RoundReports:
    """Rounds of one task, oldest first."""

    rounds: Annotated[tuple[RoundReport, ...], Each(most=10_000)] = ()
    # number of the task's first round, whether it is among them or not
    first: Annotated[int, ROUND] = 0


def forbidden_by(conditions: Conditions) -> Cause | None:
    """The first condition that forbids training, or None if the device may train. Unknown
    forbids.
    """
    if conditions.charging is not True:
        return Cause.NOT_CHARGING
    if conditions.unmetered is not True:
        return Cause.METERED_NETWORK
    if conditions.idle is not True:
        return Cause.IN_USE
    return None

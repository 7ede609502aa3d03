"""The operator's contract: what only an operator may ask, and what a server leaves for him.

    PUT  /v1/checkpoints                        a float32 checkpoint    -> Stored
    POST /v1/tasks                              TaskSettings            -> TaskReport
    GET  /v1/tasks                                                      -> TaskReports
    GET  /v1/tasks/{name}                                               -> TaskReport
    POST /v1/tasks/{name}/pause | resume                                -> TaskReport
    POST /v1/tasks/{name}/rollback              Rollback                -> TaskReport
    POST /v1/tasks/{name}/round-key                                     -> RoundKey
    POST /v1/tasks/{name}/certificate           Signed certificate      -> TaskReport
    GET  /v1/tasks/{name}/checkpoints/{sha256}                          -> bytes
    PUT  /v1/lists                              the file of a list      -> Stored
    GET  /v1/tasks/{name}/counts                                        -> CountsReport
    GET  /v1/helper                                                     -> HelperHere
    POST /v1/codes                              NewCodes                -> Codes
    PUT  /v1/releases/blobs                     a file of a bundle      -> Stored
    POST /v1/releases                           Publication             -> ReleaseReport
    GET  /v1/releases                                                   -> ReleaseReports
All need the operator's token; reading does not on a server that only this machine can reach.

An operator's client imports this file and needs no database, web framework or store of blobs.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bounds, chain, config, signing
from device_runtime.bounds import Matches, Within
from device_runtime.errors import ConfigError
from device_runtime.shown import command
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import (
    COUNT,
    DAY_S,
    HASH,
    HASH_OR_NONE,
    NAME,
    ROUND,
    SENTENCE,
    TASK,
    Kind,
    Phase,
    Signed,
)
from server.task import State
from server.task import TaskSettings as TaskSettings  # the message that makes a task

ADDRESS = "address"  # file in the server's folder that holds its URL once it listens
TOKEN_FILE = "operator.token"  # in the server's folder, readable by its owner only
TOKEN = "FEDBOARD_OPERATOR_TOKEN"  # environment: secrets stay out of files and commands
MOST_CODES = 10_000  # at once
POPULATION = "default"  # of devices, where none is named
LONGEST_CODE_LIFE_S = 366 * DAY_S


@dataclass(frozen=True)
class Stored:
    """A checkpoint, or a file of a bundle, has been kept."""

    sha256: str


@dataclass(frozen=True)
class Rollback:
    """Go on from an earlier checkpoint."""

    to: str  # SHA-256 of a checkpoint of the task, or the round that made it


@dataclass(frozen=True)
class RoundKey:
    """A key that a server has made to sign a task's checkpoints with, for the operator to certify:
    all that a `chain.Certificate` says but for how long.
    """

    round_key: Annotated[str, HASH]  # public, hexadecimal
    server: Annotated[str, NAME]
    task: Annotated[str, TASK]
    task_id: Annotated[str, NAME]
    population: Annotated[str, TASK]
    plan: Annotated[str, HASH]  # SHA-256 of plan.json
    policy: Annotated[str, HASH]  # `task.policy_hash`
    first_round: Annotated[int, ROUND]
    terms: Terms  # how updates are added up, and who can see them
    log_key: Annotated[str, HASH]  # public, of the server's log
    start: Annotated[str, HASH]  # SHA-256 of the float16 checkpoint that the task began from
    version: Annotated[int, Within(1, 10**6)]  # of the code that made it

    def certified(self, key: Ed25519PrivateKey, rounds: int, expires_at: float) -> Signed:
        """The certificate, signed with the operator's key, which never comes to the server."""
        certificate = chain.Certificate(**vars(self), rounds=rounds, expires_at=expires_at)
        return signing.sign_text(key, chain.CERTIFICATE, config.to_json(certificate))


@dataclass(frozen=True)
class NewCodes:
    """So many enrolment codes, please."""

    count: int = 1
    life_s: float = 7 * DAY_S

    def __post_init__(self) -> None:
        """Raises ConfigError for too many, or a life that is no time or too long."""
        if not 1 <= self.count <= MOST_CODES:
            problem = f"expected 1 to {MOST_CODES:,}, found {self.count:,}"
            raise ConfigError("codes.count", problem, "ask several times")
        if not 0 < self.life_s <= LONGEST_CODE_LIFE_S:
            longest = f"{LONGEST_CODE_LIFE_S / DAY_S:.0f} days"
            problem = f"expected more than 0 and at most {longest}, found {self.life_s / DAY_S:g}"
            raise ConfigError("codes.life_s", problem, "give another time")


@dataclass(frozen=True)
class Codes:
    """New enrolment codes: the only time they are told."""

    codes: tuple[str, ...]
    expires_at: float


@dataclass(frozen=True)
class HelperHere:
    """The helper that a server asks, and how it stands."""

    helper: Annotated[str, HASH_OR_NONE] = ""  # public key, as it says itself; empty: none is asked
    is_beside: bool = False  # whoever runs the server runs it too
    least: Annotated[int, COUNT] = 0  # reports of the smallest sum that it opens
    problem: Annotated[str, SENTENCE] = ""  # why it gives nothing just now; empty if it does
    enrolment_key: Annotated[str, HASH_OR_NONE] = ""  # whose devices alone count; empty: any key


@dataclass(frozen=True)
class TaskReport:
    """A task and where it stands."""

    name: str
    population: str
    kind: Kind
    state: State
    created_at: float
    round: int  # the newest
    phase: Phase
    counted: int  # reports of the newest round
    goal: int
    committed: int  # rounds
    checkpoint: str  # SHA-256 of the current one (float32); of an evaluation the one being scored
    checkpoint_round: int
    evaluates: str = ""
    privacy: str = ""  # what a training task has spent of it, in a sentence
    refused: str = ""  # why devices refuse all of its work, in a sentence; empty if they do not
    signer: str = ""  # public key that certified its round key, hexadecimal; empty without one
    last_round: int = 0  # that its certificate covers
    expires_at: float = 0.0  # of the certificate, seconds since 1970
    certify: str = ""  # what must be done about its certificate, in a sentence; empty if nothing
    # of a task of releases: which of them were stopped, and why, in a sentence
    stopped: str = ""
    aggregation: Aggregation = Aggregation.PLAIN
    seen: str = ""  # who can see a device's update, in a sentence
    exposed: str = ""  # what of that should worry its operator, in a sentence; empty if nothing
    # why its devices get no work or its newest round waits, or why the last was abandoned
    waits: str = ""
    counts: str = ""  # whom its helper takes for a device, in a sentence; empty: there is none
    # of a task with noise: what is spent, of what budget at which delta, and how many sums made it
    rho: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    budget: float | None = None
    sums: int = 0
    beginnings: int = 0  # of the noise: each further one is of a basis, or a state that was lost
    left: int = 0  # more sums that there is room for at worst
    over: str = ""  # why no further round starts, in a sentence; empty while one may


@dataclass(frozen=True)
class TaskReports:
    """Every task, oldest first."""

    tasks: tuple[TaskReport, ...] = ()


@dataclass(frozen=True)
class CountsReport:
    """What a task has counted of the words of its list: those of enough people."""

    task: str
    words: str  # SHA-256 of the list
    listed: int  # words in it
    people: int  # who were in the sums
    rounds: int  # whose sums were opened
    least_people: int
    # with noise, each count's standard deviation, and from which count on a word is told
    deviation: float
    told_from: float
    # what one person spent who took part, at `delta`; None: nothing is claimed
    epsilon: float | None = None
    delta: float | None = None
    # people by word, the most frequent first
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Publication:
    """What the maker of a release says of it from now on. Its manifest and the files that lists
    have been put before.
    """

    statement: Signed  # a `releases.Statement`
    # of the manifest: the two lines of manifest.sig; looked at with the first statement alone
    signature: Annotated[str, Matches("[0-9a-f\\n]*", 256)] = ""

    def __post_init__(self) -> None:
        """Raises ConfigError for a signature that is none."""
        bounds.check(self, "publication")


class ReleaseState(StrEnum):
    """What a release is to devices."""

    OFFERED = "offered"  # to the share of them that its statement says
    STOPPED = "stopped"  # by this server, since it does worse: no device is told of it any more
    WITHDRAWN = "withdrawn"  # by its maker: whoever runs it goes to another


def release_command(what: str, release: int, population: str) -> str:
    """The command that promotes or withdraws (`what`) that release and not another population's.

    >>> release_command("withdraw", 7, "default"), release_command("withdraw", 7, "words")
    ('fedboard release withdraw 7', 'fedboard release withdraw 7 --population words')
    """
    whose = () if population == POPULATION else ("--population", population)
    return command("release", what, release, *whose)


@dataclass(frozen=True)
class DifferenceFrom:
    """What makes a release's predict.tflite of an older release's."""

    release: int  # the older one
    bytes: int


@dataclass(frozen=True)
class ReleaseReport:
    """A release and where it stands."""

    population: str
    release: int
    state: ReleaseState
    share: int  # of the devices, in hundredths of a per cent
    statement: Signed  # the newest
    published_at: float
    changed_at: float
    bytes: int  # of the whole bundle
    differences: tuple[DifferenceFrom, ...]  # the newest release first
    network: str
    tokenizer: str  # SHA-256 of its vocabulary
    new_vocabulary: bool  # no release and no task of the population had it before
    device_class: str  # whose budgets it keeps; empty: of none
    # where its model comes from
    corpus: str
    task: str
    round: int
    checkpoint: str  # SHA-256, float32
    participants: int | None
    privacy: str
    stopped: str = ""  # why
    stopped_at: float | None = None
    # what is told of its scores, once enough devices are in it
    devices: int = 0
    top1: float | None = None  # share of their words
    top3: float | None = None
    median: float | None = None  # of the devices' shares of right words
    how: str = ""  # it does beside the others, and what follows, in a sentence
    signature: str = ""  # of its manifest: the two lines of manifest.sig


@dataclass(frozen=True)
class ReleaseReports:
    """Every release, by population, newest first."""

    releases: tuple[ReleaseReport, ...] = ()

"""The chain: whose weights a device trains from.

The operator's key, which never comes to the server, certifies a round key for one task, policy,
number of rounds and time. The server signs each checkpoint with it, and a device trains from
nothing else. That names who made a checkpoint; it stops no server that has the round key.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from device_runtime import bounds, signing
from device_runtime.bounds import Each, Within
from device_runtime.config import from_json
from device_runtime.errors import ConfigError
from device_runtime.terms import Terms
from device_runtime.weights import digest
from device_runtime.wire import (
    CERTIFIED,
    HASH,
    HASH_OR_NONE,
    NAME,
    ROUND,
    TASK,
    TIME,
    Assignment,
    Signed,
)

FORMAT = 3
READ = (1, 2, 3)
CERTIFICATE, LINK = "certificate", "link"  # purposes of the signatures
MOST_SEEN = 32  # links that a device remembers
MOST_EVIDENCE = 8  # contradictions that it keeps

T = TypeVar("T")


@dataclass(frozen=True)
class Certificate:
    """Whom the operator lets sign what."""

    round_key: Annotated[str, HASH]  # Ed25519 public key, hexadecimal
    server: Annotated[str, NAME]  # random name of the server's database
    task: Annotated[str, TASK]
    task_id: Annotated[str, NAME]
    population: Annotated[str, TASK]
    plan: Annotated[str, HASH]  # SHA-256 of plan.json
    policy: Annotated[str, HASH]  # SHA-256 of all that the operator has decided of the task
    first_round: Annotated[int, ROUND]
    rounds: Annotated[int, ROUND]  # from the first on
    expires_at: Annotated[float, TIME]  # seconds since 1970
    # how updates add up and who sees them; None in a certificate of format 1, which says nothing
    # of it
    terms: Terms | None = None
    # public key of the server's log, which holds the task's policy; and SHA-256 of the float16
    # checkpoint that the task began from and the version of the code that made it, which are part
    # of that. Empty and 0 in a certificate of format 1 or 2, whose server keeps no log
    log_key: Annotated[str, HASH_OR_NONE] = ""
    start: Annotated[str, HASH_OR_NONE] = ""
    version: Annotated[int, Within(0, 10**6)] = 0
    format: Annotated[int, Within(1, 1000)] = FORMAT

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its bounds."""
        bounds.check(self, "certificate")


@dataclass(frozen=True)
class Link:
    """A checkpoint of the task, as devices get it."""

    certificate: Annotated[str, HASH]  # SHA-256 of the certificate's text
    round: Annotated[int, ROUND]  # that made it
    checkpoint: Annotated[str, HASH]  # SHA-256 of the float16 file
    parent: Annotated[str, HASH_OR_NONE] = ""  # the same of the checkpoint the round started from

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its bounds."""
        bounds.check(self, "link")


@dataclass(frozen=True)
class Chain:
    """A certificate and a link that belongs to it, as they were signed."""

    certificate: Signed
    link: Signed


@dataclass(frozen=True)
class Seen:
    """The newest links that a device has trusted, the newest last."""

    chains: Annotated[tuple[Chain, ...], Each(most=MOST_SEEN)] = ()


@dataclass(frozen=True)
class Contradiction:
    """Two checkpoints signed for one round of one task: each proves by itself who signed it."""

    before: Chain
    after: Chain
    at: Annotated[float, TIME]  # seconds of the device's clock


@dataclass(frozen=True)
class Evidence:
    """What a device has seen of contradictions, the first ones."""

    contradictions: Annotated[tuple[Contradiction, ...], Each(most=MOST_EVIDENCE)] = ()


@dataclass(frozen=True)
class Verifier:
    """Who verifies, and when."""

    trusted: frozenset[str]  # public keys of the makers of its bundles, hexadecimal
    population: str
    now: float  # seconds since 1970


@dataclass(frozen=True)
class Untrusted:
    """Why a device does not train from a checkpoint: names and numbers alone."""

    reason: str
    contradicts: Chain | None = None  # what was signed before


@functools.lru_cache(maxsize=64)
def name_of(certificate: Signed) -> str:
    """What links call a certificate by: the SHA-256 of its text."""
    return digest(certificate.text.encode())


def read_certificate(signed: Signed, trusted: frozenset[str]) -> Certificate | str:
    """A certificate that one of the keys (public, hexadecimal) has signed, or why it is none."""
    if signed.signer not in trusted:
        return f"certificate: signed by {signed.signer[:16]}, which is not trusted"
    return _signed_for(Certificate, signed, CERTIFICATE, frozenset({signed.signer}))


def read_link(signed: Signed, certificate: Certificate) -> Link | str:
    """A link that the certified key has signed, or why it is none."""
    if signed.signer != certificate.round_key:
        return f"link: expected one of round key {certificate.round_key[:16]}, found another's"
    return _signed_for(Link, signed, LINK, frozenset({certificate.round_key}))


def terms_of(assignment: Assignment) -> Terms:
    """The terms in the certificate of an assignment, which has been verified. Raises ConfigError
    where there are none.
    """
    if assignment.certificate is not None:
        terms = _in(Certificate, assignment.certificate.text).terms
        if terms is not None:
            return terms
    raise ConfigError("certificate.terms", "expected terms, found none", "certify the task again")


def certificate_of(assignment: Assignment) -> Certificate:
    """What the certificate of an assignment says, which has been verified. Raises ConfigError where
    there is none.
    """
    if assignment.certificate is None:
        raise ConfigError("certificate", "expected one, found none", "certify the task again")
    return _in(Certificate, assignment.certificate.text)


def covers(certificate: Certificate, round: int) -> bool:
    """Whether a certificate lets a checkpoint be signed that this round made. The one its first
    round starts from is signed too.

    >>> certificate = Certificate(
    ...     "0" * 64, "0" * 32, "t", "0" * 32, "p", "0" * 64, "0" * 64, 5, 3, 0.0
    ... )
    >>> [round for round in range(10) if covers(certificate, round)]
    [4, 5, 6, 7]
    """
    first = certificate.first_round
    return first - 1 <= round < first + certificate.rounds


def why_untrusted(
    assignment: Assignment, by: Verifier, seen: Iterable[Chain] = ()
) -> Untrusted | None:
    """Why the checkpoint of an assignment is not to be trained from or scored, or None if it may
    be. `seen` are links that were trusted before.

    The work of a task that trains or counts must be certified as it is: server, task, population,
    plan and round. An evaluation scores the checkpoints of another task, and shows its certificate.
    """
    if assignment.certificate is None or assignment.link is None:
        return Untrusted("certificate: expected one with a link, found none")
    certificate = read_certificate(assignment.certificate, by.trusted)
    if isinstance(certificate, str):
        return Untrusted(certificate)
    link = read_link(assignment.link, certificate)
    if isinstance(link, str):
        return Untrusted(link)
    reason = _why_not_of(assignment, certificate, by) or _why_not_in(
        link, assignment, certificate, name_of(assignment.certificate)
    )
    if reason:
        return Untrusted(reason)
    for before in seen:
        other, old = _of_chain(before)
        is_same_round = (old.task_id, other.round) == (certificate.task_id, link.round)
        if is_same_round and other.checkpoint != link.checkpoint:
            return Untrusted(
                f"link: round {link.round} has two checkpoints, {other.checkpoint[:16]} signed by "
                f"{old.round_key[:16]} and {link.checkpoint[:16]} by {certificate.round_key[:16]}",
                before,
            )
    return None


def remembered(seen: Seen, chain: Chain) -> Seen:
    """What a device has seen after it trusted a chain; the oldest are forgotten."""
    if any(before.link.text == chain.link.text for before in seen.chains):
        return seen
    return Seen((*seen.chains, chain)[-MOST_SEEN:])


def described(contradiction: Contradiction) -> str:
    """A contradiction in a sentence: whose keys signed which checkpoints of which round."""
    (link, old), (other, new) = map(_of_chain, (contradiction.before, contradiction.after))
    return (
        f"round {link.round} of task {old.task} ({old.task_id[:8]}): two checkpoints were signed, "
        f"{link.checkpoint[:16]} by round key {old.round_key[:16]} and {other.checkpoint[:16]} by "
        f"round key {new.round_key[:16]}, certified by {contradiction.before.certificate.signer}"
    )


def _why_not_of(assignment: Assignment, certificate: Certificate, by: Verifier) -> str:
    expected: dict[str, tuple[object, object]] = {
        "server": (assignment.server, certificate.server),
        "population": (by.population, certificate.population),
    }
    if assignment.kind in CERTIFIED:
        expected |= {
            "task": (assignment.task, certificate.task),
            "task_id": (assignment.task_id, certificate.task_id),
            "plan": (assignment.plan, certificate.plan),
        }
    for name, (wanted, actual) in expected.items():
        if wanted != actual:
            return f"certificate: expected {name} {_short(wanted)}, found {_short(actual)}"
    if certificate.terms is None:
        return "certificate: expected terms, which say who sees updates, found none"
    if by.now >= certificate.expires_at:
        return (
            f"certificate: expired at {certificate.expires_at:.0f}, and it is {by.now:.0f} here, "
            "in seconds since 1970"
        )
    if assignment.kind in CERTIFIED and not covers(certificate, assignment.round):
        return f"certificate: {_rounds(certificate)}, found round {assignment.round}"
    return ""


def _why_not_in(link: Link, assignment: Assignment, certificate: Certificate, name: str) -> str:
    if link.certificate != name:
        return f"link: expected certificate {_short(name)}, found {_short(link.certificate)}"
    if link.checkpoint != assignment.checkpoint:
        return (
            f"link: expected checkpoint {_short(assignment.checkpoint)}, found "
            f"{_short(link.checkpoint)}"
        )
    if not covers(certificate, link.round):
        return f"link: {_rounds(certificate)}, found a checkpoint of round {link.round}"
    if assignment.kind in CERTIFIED and link.round >= assignment.round:
        return (
            f"link: expected a checkpoint from before round {assignment.round}, found one of round "
            f"{link.round}"
        )
    return ""


def _rounds(certificate: Certificate) -> str:
    first = certificate.first_round
    return f"expected rounds {first} to {first + certificate.rounds - 1}"


def _short(value: object) -> str:
    return str(value)[:16] or "none"


def _signed_for(kind: type[T], signed: Signed, purpose: str, keys: frozenset[str]) -> T | str:
    text = signing.text_of(signed, purpose, keys)
    if text is None:
        return f"{purpose}: the signature is none of {signed.signer[:16]}"
    try:
        record = _in(kind, text.decode("ascii"))
    except ConfigError:
        return f"{purpose}: is none of this version"
    version = getattr(record, "format", FORMAT)
    if version not in READ:
        return f"{purpose}: expected format {' or '.join(map(str, READ))}, found {version}"
    return record


def _of_chain(chain: Chain) -> tuple[Link, Certificate]:
    """What a chain that was trusted says; its signatures were looked at then."""
    return (
        _in(Link, chain.link.text),
        _in(Certificate, chain.certificate.text),
    )


def _in(kind: type[T], text: str) -> T:
    """The record in a text. Raises ConfigError for one that is none."""
    of: Any = kind  # whatever it is: a type can be looked up
    return cast(T, _read(of, text))


@functools.lru_cache(maxsize=64)  # the same few are shown with all work
def _read(kind: type[Any], text: str) -> Any:
    return from_json(kind, text.encode(), CERTIFICATE if kind is Certificate else LINK)

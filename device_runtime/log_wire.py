"""The log: what a server may not take back, as entries; and what a device believes of it.

    task certified -> Policy --+
    round committed -> RoundEntry --> entry, a leaf of `merkle` -> Head, signed by the log's key
    release ----> ReleaseEntry +                                     |
                                    the helper signs the same, if it extends what it has signed
                                                                     v
    device: certificate names the key -> are policy and checkpoint in it? does it extend what this
            device has seen? -> it is kept, or refused with the reason

A policy is all that a device agrees to, and its name the SHA-256 of its entry. The certificate says
all of it, so only its number and its path travel.
"""

import functools
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, NamedTuple

from device_runtime import bounds, config, merkle, signing
from device_runtime.bounds import Each, Matches, Within
from device_runtime.chain import Certificate, certificate_of
from device_runtime.errors import ConfigError
from device_runtime.terms import Aggregation, Terms
from device_runtime.weights import digest
from device_runtime.wire import (
    COUNT,
    HASH,
    HASH_OR_NONE,
    MOST_SIGNED,
    NAME,
    PATH,
    ROUND,
    SIGNATURE_OR_NONE,
    TASK,
    TIME,
    Assignment,
    Proof,
    Signed,
)

HEAD, SEEN = "log-head", "log-head-seen"  # purposes of the signatures: the log's, the helper's
MOST_ENTRIES = 500  # that one answer tells of
MOST_HEADS = 16  # logs that a device remembers
MOST_POLICIES = 64
MOST_FORKS = 8


def _only(kind: str) -> Matches:
    return Matches(kind, len(kind))


@dataclass(frozen=True)
class Policy:
    """All that a device agrees to when it takes part in a task. It never changes."""

    task_id: Annotated[str, NAME]
    task: Annotated[str, TASK]
    population: Annotated[str, TASK]
    plan: Annotated[str, HASH]  # SHA-256 of plan.json
    # mechanism, clip, bits, noise, budget, least count, separation, the helper's key
    terms: Terms
    start: Annotated[str, HASH]  # SHA-256 of the float16 checkpoint that it began from
    version: Annotated[int, Within(1, 10**6)]  # of the code that made it: `wire.VERSION`
    entry: Annotated[str, _only("policy")] = "policy"

    @property
    def about(self) -> str:
        """How its entry is found."""
        return f"policy/{self.task_id}"

    @functools.cached_property
    def name(self) -> str:
        """What a device binds into what it signs."""
        return digest(body(self))


@dataclass(frozen=True)
class RoundEntry:
    """A checkpoint that devices may be given, and what it cost. The one that a task began from, or
    that was there before the log, is of a round with no reports. A sum with noise whose round came
    to nothing has cost something too, and made no checkpoint.
    """

    task_id: Annotated[str, NAME]
    round: Annotated[int, ROUND]  # that made it
    count: Annotated[int, COUNT]  # reports in its sum
    sums: Annotated[int, COUNT]  # of this task that were released so far
    rho: Annotated[float, Within(0.0, 1e12)]  # spent so far: zCDP; 0 without noise
    checkpoint: Annotated[str, HASH_OR_NONE]  # SHA-256 of the float16 file
    parent: Annotated[str, HASH_OR_NONE] = ""  # the same of the one that it was made from
    entry: Annotated[str, _only("round")] = "round"

    @property
    def about(self) -> str:
        """How its entry is found."""
        return f"round/{self.task_id}/{self.checkpoint or self.round}"


@dataclass(frozen=True)
class ReleaseEntry:
    """What its maker has said of a release: published, promoted or withdrawn."""

    population: Annotated[str, TASK]
    release: Annotated[int, Within(1, 2**31 - 1)]
    manifest: Annotated[str, HASH]  # SHA-256 of manifest.json
    statement: Annotated[str, HASH]  # SHA-256 of the signed text
    share: Annotated[int, Within(0, 10_000)]
    withdrawn: bool
    entry: Annotated[str, _only("release")] = "release"

    @property
    def about(self) -> str:
        """How its entry is found."""
        return f"release/{self.population}/{self.release}"


@dataclass(frozen=True)
class Begun:
    """The first entry of a log that follows another, whose server was put back from a backup."""

    log_key: Annotated[str, HASH]  # of the log before
    size: Annotated[int, COUNT]  # of what was left of it
    root: Annotated[str, HASH]
    entry: Annotated[str, _only("begun")] = "begun"

    @property
    def about(self) -> str:
        """How its entry is found."""
        return "begun"


Entry = Policy | RoundEntry | ReleaseEntry | Begun
_KINDS: dict[str, type[Entry]] = {
    "policy": Policy,
    "round": RoundEntry,
    "release": ReleaseEntry,
    "begun": Begun,
}


@dataclass(frozen=True)
class Head:
    """How far a log is. Signed by its key for devices, and by a helper that it extends what that
    has signed before.
    """

    log: Annotated[str, NAME]  # random name of the server's database
    size: Annotated[int, COUNT]
    root: Annotated[str, HASH]

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its bounds."""
        bounds.check(self, "head")


@dataclass(frozen=True)
class LogHead:
    """The newest head that a helper has countersigned, and the newest one. Anybody may ask."""

    newest: Signed | None = None  # None: nothing has been entered
    countersigned: Signed | None = None
    countersignature: Signed | None = None  # the helper's, of the same text


@dataclass(frozen=True)
class Entries:
    """Some entries of a log, as they were entered. Anybody may ask."""

    entries: Annotated[tuple[str, ...], Each(Matches("[ -~]*", MOST_SIGNED), MOST_ENTRIES)] = ()


@dataclass(frozen=True)
class Path:
    """The hashes of a proof."""

    path: Annotated[str, PATH] = ""


# what a device keeps


@dataclass(frozen=True)
class KeptHead:
    """The newest head of a log that a device has verified."""

    head: Signed
    countersignature: Annotated[str, SIGNATURE_OR_NONE] = ""
    helper: Annotated[str, HASH_OR_NONE] = ""  # whose that is

    @property
    def says(self) -> Head:
        """What it says; its signature was looked at when it was kept."""
        return _said(self.head.text)


@dataclass(frozen=True)
class KnownPolicy:
    """What a device has agreed to."""

    task_id: Annotated[str, NAME]
    policy: Annotated[str, HASH]


@dataclass(frozen=True)
class SeenLogs:
    """The newest head of each log, by its key, and the policies; the newest last."""

    heads: Annotated[tuple[KeptHead, ...], Each(most=MOST_HEADS)] = ()
    policies: Annotated[tuple[KnownPolicy, ...], Each(most=MOST_POLICIES)] = ()

    def of(self, server: str, key: str = "") -> KeptHead | None:
        """The newest head of a server's log, of any of its keys if none is named."""
        for each in reversed(self.heads):
            if each.says.log == server and key in ("", each.head.signer):
                return each
        return None

    def size(self, server: str) -> int:
        """How long the server's log was, as this device has seen it last."""
        kept = self.of(server)
        return 0 if kept is None else kept.says.size


@dataclass(frozen=True)
class Fork:
    """Two heads that one key signed, of which none extends the other as far as anybody showed."""

    before: KeptHead
    after: KeptHead
    at: Annotated[float, TIME]  # seconds of the device's clock


@dataclass(frozen=True)
class Forks:
    """What a device has seen of forks, the first ones."""

    forks: Annotated[tuple[Fork, ...], Each(most=MOST_FORKS)] = ()


@dataclass(frozen=True)
class Believed:
    """What a device has seen of logs, with this; and the entries of its work."""

    seen: SeenLogs
    log: str  # the server's name
    policy: int  # number of the policy's entry
    checkpoint: int


@dataclass(frozen=True)
class Disbelieved:
    """Why a device does not believe a log: names and numbers alone."""

    reason: str
    before: KeptHead | None = None  # two heads that contradict one another, if it was that
    after: KeptHead | None = None


def body(entry: Entry) -> bytes:
    """An entry as the log holds it: canonical JSON. That of a policy says of its terms what they
    are named by, so that a later version writes the same.
    """
    table = {each.name: getattr(entry, each.name) for each in fields(entry)}
    if isinstance(entry, Policy):
        table["terms"] = entry.terms.told
    return config.to_json(table)


def read(text: str | bytes, where: str = "entry") -> Entry:
    """The entry in a text. Raises ConfigError for one of no kind that this version knows."""
    return _read(text, where)


@functools.lru_cache(maxsize=64)  # that of a checkpoint is shown with all work of its round
def _read(text: str | bytes, where: str) -> Entry:
    data = text.encode() if isinstance(text, str) else text
    table = config.read_json(data, where)
    name = table.get("entry") if isinstance(table, dict) else None
    kind: Any = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(
            where,
            f"expected an entry of kind {', '.join(_KINDS)}, found another",
            "read it with a newer version of Fedboard",
        )
    entry: Entry = config.from_table(kind, table, where)
    return entry


@functools.lru_cache(maxsize=64)
def policy_of(certificate: Certificate) -> Policy | None:
    """The policy that a certificate tells; None of one whose server keeps no log."""
    if certificate.terms is None or not certificate.log_key or not certificate.start:
        return None
    return Policy(
        certificate.task_id,
        certificate.task,
        certificate.population,
        certificate.plan,
        certificate.terms,
        certificate.start,
        certificate.version,
    )


def agreed(assignment: Assignment, terms: Terms) -> str:
    """What a report is bound to by name: all that its device agrees to, or without a log the terms
    alone.
    """
    policy = None
    if assignment.certificate is not None:
        policy = policy_of(certificate_of(assignment))
    return terms.name if policy is None else policy.name


def to_path(hashes: list[bytes]) -> str:
    """Hashes as they travel."""
    return b"".join(hashes).hex()


def from_path(path: str) -> list[bytes]:
    """The hashes of a path, which has been checked to be one."""
    data = bytes.fromhex(path)
    size = merkle.HASH_BYTES
    return [data[start : start + size] for start in range(0, len(data), size)]


def head_in(signed: Signed, key: str) -> Head | str:
    """A head that a key (public, hexadecimal) has signed, or why it is none."""
    return _head(signed, HEAD, key)


def countersigned(head: Signed, helper: str, signature: str) -> bool:
    """Whether a helper (its public key) has countersigned a head."""
    text = signing.text_of(Signed(head.text, helper, signature), SEEN, frozenset({helper}))
    return text is not None


def believe(
    assignment: Assignment, certificate: Certificate, seen: SeenLogs
) -> Believed | Disbelieved:
    """Whether the log of an assignment's server holds its policy and its checkpoint and extends
    what this device has seen of it. `certificate` is the assignment's, which has been verified.
    """
    policy, proof = policy_of(certificate), assignment.log
    if policy is None or certificate.terms is None:
        return Disbelieved(
            "certificate: expected the key of the server's log, found none; certify the task again"
        )
    if proof is None:
        return Disbelieved("log: expected a proof of policy and checkpoint, found none")
    changed = next((each for each in seen.policies if each.task_id == policy.task_id), None)
    if changed is not None and changed.policy != policy.name:
        return Disbelieved(
            f"policy: expected {changed.policy[:16]}, which this device has agreed to for task "
            f"{policy.task_id[:8]}, found {policy.name[:16]}"
        )
    head = head_in(proof.head, certificate.log_key)
    if isinstance(head, str):
        return Disbelieved(head)
    if head.log != certificate.server:
        return Disbelieved(
            f"head: expected one of log {certificate.server[:8]}, found one of {head.log[:8]}"
        )
    terms = certificate.terms
    if terms.aggregation is Aggregation.HELPER and not countersigned(
        proof.head, terms.helper, proof.countersignature
    ):
        return Disbelieved(
            f"head: expected the signature of helper {terms.helper[:16]}, found none of its: the "
            "server may show each phone another log"
        )
    shown = _Shown(
        proof.policy, proof.policy_path, proof.checkpoint, proof.checkpoint_path, proof.round
    )
    if reason := _why_not_in(head, shown, policy, assignment.checkpoint):
        return Disbelieved(reason)
    now = KeptHead(proof.head, proof.countersignature, terms.helper)
    before = seen.of(head.log, certificate.log_key)
    if before is None:
        return _kept(seen, now, policy, proof)
    old, shorter = before.says, head
    longer = head
    if old.size <= head.size:
        shorter = old
    else:
        longer = old
    ends = tuple((each.size, bytes.fromhex(each.root)) for each in (shorter, longer))
    if not merkle.extends(ends[0], ends[1], from_path(proof.consistency)):
        return Disbelieved(
            f"log {head.log[:8]}: expected one that agrees with the {old.size:,} entries seen "
            f"before ({old.root[:16]}), found {head.size:,} entries ({head.root[:16]}) and no "
            "proof that they do",
            before,
            now,
        )
    return _kept(seen, now if longer is head else before, policy, proof)


def accused(before: Forks, fork: Fork) -> Forks:
    """Forks that a device has seen, with one more unless it is known already."""
    known = {(each.before.head, each.after.head) for each in before.forks}
    if (fork.before.head, fork.after.head) in known:
        return before
    return Forks((*before.forks, fork)[:MOST_FORKS])


def described(fork: Fork) -> str:
    """A fork in a sentence: which key signed what."""
    old, new = fork.before.says, fork.after.says
    return (
        f"log {old.log[:8]}: key {fork.before.head.signer[:16]} signed {old.size:,} entries "
        f"({old.root[:16]}) and {new.size:,} entries ({new.root[:16]}), and nobody has shown that "
        "one begins with the other"
    )


def sentence(terms: Terms) -> str:
    """What the log of a task's server keeps a phone from, in a sentence for people."""
    if terms.aggregation is Aggregation.HELPER:
        return (
            f"the server's log cannot be rewritten: helper {terms.helper[:16]} signs only what "
            "extends it, so every phone is shown the same"
        )
    return (
        "the server's log cannot be rewritten behind this phone's back, but nobody else signs it: "
        "that other phones are shown another log is not excluded"
    )


class _Shown(NamedTuple):
    """What a proof says of one head: see `Proof`."""

    policy: int
    policy_path: str
    checkpoint: int
    checkpoint_path: str
    round: str


@functools.lru_cache(maxsize=64)  # all devices of a round are shown the same
def _why_not_in(head: Head, proof: _Shown, policy: Policy, checkpoint: str) -> str:
    """Why a head does not hold a policy and a checkpoint."""
    root = bytes.fromhex(head.root)
    leaf = merkle.leaf(body(policy))
    if not merkle.includes(root, head.size, proof.policy, leaf, from_path(proof.policy_path)):
        return f"log: policy {policy.name[:16]} of task {policy.task_id[:8]} is not in it"
    leaf = merkle.leaf(proof.round.encode())
    path = from_path(proof.checkpoint_path)
    if not merkle.includes(root, head.size, proof.checkpoint, leaf, path):
        return f"log: checkpoint {checkpoint[:16]} is not in it"
    try:
        entry = read(proof.round)
    except ConfigError:
        return "log: the entry of the checkpoint is none of this version"
    if not isinstance(entry, RoundEntry) or (entry.task_id, entry.checkpoint) != (
        policy.task_id,
        checkpoint,
    ):
        return f"log: expected the entry of checkpoint {checkpoint[:16]}, found another"
    return ""


def _kept(seen: SeenLogs, head: KeptHead, policy: Policy, proof: Proof) -> Believed:
    says = head.says
    heads = [
        each
        for each in seen.heads
        if (each.says.log, each.head.signer)
        != (
            says.log,
            head.head.signer,
        )
    ]
    known = KnownPolicy(policy.task_id, policy.name)
    policies = [each for each in seen.policies if each != known]
    after = replace(
        seen,
        heads=(*heads, head)[-MOST_HEADS:],
        policies=(*policies, known)[-MOST_POLICIES:],
    )
    return Believed(after, says.log, proof.policy, proof.checkpoint)


def _head(signed: Signed, purpose: str, key: str) -> Head | str:
    text = signing.text_of(signed, purpose, frozenset({key}))
    if text is None:
        return f"head: the signature is none of log key {key[:16]}"
    try:
        return _said(text.decode("ascii"))
    except ConfigError:
        return "head: is none of this version"


@functools.lru_cache(maxsize=64)
def _said(head: str) -> Head:
    """What the text of a head says. Raises ConfigError for one that is none."""
    return config.from_json(Head, head.encode(), "head")

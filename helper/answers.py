"""Answers: which sets of reports a helper opens, and the sum of their masks.

Reads no clock and no store.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from device_runtime import enrolments, masking, packing, separation, signing
from device_runtime.helper_wire import (
    HelperProblem,
    Named,
    Refusal,
    SealedReport,
)
from device_runtime.masking import Bound
from device_runtime.weights import digest
from helper.tasks import Rules, Task

MOST_TOLD = 1000  # devices that one refusal names


@dataclass(frozen=True)
class SealKeys:
    """The seal keys of the rounds that reports come from, by round; None: it is lost."""

    public: Mapping[int, str]
    private: Mapping[int, X25519PrivateKey | None] = field(repr=False)


@dataclass(frozen=True)
class History:
    """What a helper remembers of a task's devices, by their public keys."""

    # the round each of them was last counted in
    last: Mapping[str, int]
    # by the round it was assigned in: which reports are in earlier answers
    named: frozenset[tuple[int, str]] = frozenset()
    counted: Mapping[str, int] = field(default_factory=dict)  # answers that each was in
    # the number of the last sum with noise that each was in, from 1 on; 0: in none
    last_sum: Mapping[str, int] = field(default_factory=dict)


def set_digest(named: Named) -> str:
    """SHA-256 of a set of reports, in whatever order they come."""
    lines = sorted(
        f"{each.public_key} {each.round} {each.seal} {each.signature}" for each in named.reports
    )
    return digest("\n".join((named.task_id, str(named.round), *lines)).encode())


def why_not(
    named: Named, task: Task, rules: Rules, history: History, keys: SealKeys
) -> HelperProblem | None:
    """Why the sum of these reports is not opened, as far as it can be told without opening a seal;
    None if it is.
    """
    reports, terms = named.reports, task.terms
    earliest = named.round - terms.max_staleness
    unknown = [
        each
        for each in reports
        if not earliest <= each.round <= named.round or keys.private.get(each.round) is None
    ]
    if unknown:
        rounds = sorted({each.round for each in unknown})
        of = f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"
        return _no(Refusal.UNKNOWN_ROUND, f"no key of {of} is here, or not any more", unknown)
    fewest = max(terms.fewest, rules.least)
    if len(reports) < fewest:
        return _no(Refusal.TOO_FEW, f"expected at least {fewest} reports, found {len(reports)}")
    if len(reports) > terms.most:
        return _no(Refusal.TOO_MANY, f"expected at most {terms.most} reports, found {len(reports)}")
    times = Counter(each.public_key for each in reports)
    twice = [each for each in reports if times[each.public_key] > 1]
    if twice:
        return _no(Refusal.NAMED_BEFORE, "a device is named twice", twice)
    forged = [each for each in reports if not _is_signed(each, task, keys)]
    if forged:
        return _no(
            Refusal.BAD_SIGNATURE,
            f"{len(forged)} seals are not signed by their devices for this task and round",
            forged,
        )
    if rules.enrolment_key:
        enrolled = sum(_is_enrolled(each, rules.enrolment_key) for each in reports)
        if enrolled < fewest:
            return _no(
                Refusal.NOT_ENROLLED,
                f"expected at least {fewest} devices certified by {rules.enrolment_key[:16]}, "
                f"found {enrolled}",
            )
    before = [each for each in reports if (each.round, each.public_key) in history.named]
    if before:
        return _no(Refusal.NAMED_BEFORE, "a report is in the answer of an earlier round", before)
    soon = [
        each
        for each in reports
        if not separation.may_join(named.round, history.last.get(each.public_key), task.separation)
    ]
    if soon:
        return _no(
            Refusal.TOO_SOON,
            f"{len(soon)} devices were counted less than {task.separation} rounds ago",
            soon,
        )
    return None


def seeds(named: Named, task: Task, keys: SealKeys) -> list[bytes] | HelperProblem:
    """The seeds in the seals of reports that `why_not` has nothing against."""
    opened = [_opened(each, task, keys) for each in named.reports]
    bad = [each for each, seed in zip(named.reports, opened, strict=True) if seed is None]
    if bad:
        return _no(Refusal.BAD_SEAL, f"{len(bad)} seals hold no seed for this task and round", bad)
    return [seed for seed in opened if seed is not None]


def finished(masks: NDArray[np.uint64], noise: NDArray[np.int64], task: Task) -> NDArray[np.uint64]:
    """What the leader is given of a sum of masks where the sum it opens is to carry noise, whole
    codes [values]: it never has the one without.
    """
    by = task.layout
    return packing.subtract(masks, packing.pack_noise(noise, task.terms.room, by), by)


def _is_signed(report: SealedReport, task: Task, keys: SealKeys) -> bool:
    message = _bound(report, task, keys).signed(bytes.fromhex(report.seal))
    return signing.verified(report.public_key, message, bytes.fromhex(report.signature))


def _is_enrolled(report: SealedReport, enrolment_key: str) -> bool:
    return enrolments.is_certified(report.public_key, report.enrolment, enrolment_key)


def _opened(report: SealedReport, task: Task, keys: SealKeys) -> bytes | None:
    private = keys.private[report.round]
    assert private is not None
    return masking.open_seal(bytes.fromhex(report.seal), _bound(report, task, keys), private)


def _bound(report: SealedReport, task: Task, keys: SealKeys) -> Bound:
    return Bound(
        task.server,
        task.task_id,
        report.round,
        task.policy or task.terms.name,
        report.public_key,
        keys.public[report.round],
    )


def _no(refusal: Refusal, detail: str, whose: Sequence[SealedReport] = ()) -> HelperProblem:
    devices = sorted({signing.name_of(each.public_key) for each in whose})
    return HelperProblem(refusal, detail, tuple(devices[:MOST_TOLD]))

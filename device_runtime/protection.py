"""Protection: the numbers of a report -> the bytes that travel, and whom they can be read by.

    plain:   numbers ------------------------------------------> header | codes
    helper:  numbers -> words --(+)---------------------------> header | seal | signature | words
                                 |                                        ^       ^
                        mask <-- seed, fresh --> sealed to the helper ----+       |
                                                 signed by the device ------------+

One way for every vector of small whole numbers: an update's codes and the scores of an evaluation.
Whoever keeps the bytes keeps them before they leave: a report that is made anew has another seed.
"""

from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from device_runtime import chain, log_wire, masking, packing, signing, update
from device_runtime.config import from_json
from device_runtime.errors import ConfigError
from device_runtime.helper_wire import SEAL_KEY, SealKey
from device_runtime.masking import SEED_BYTES, Bound, Random
from device_runtime.packing import Layout
from device_runtime.terms import Aggregation, Terms
from device_runtime.update import Form, Header, Sealed
from device_runtime.weights import digest
from device_runtime.wire import Assignment


@dataclass(frozen=True)
class Addressed:
    """What a report is for, and for nothing else."""

    terms: Terms
    server: str  # random name of its database
    task_id: str
    round: int  # that the device was assigned in
    seal_key: str = ""  # the helper's public key of the round, hexadecimal
    policy: str = ""  # `log_wire.Policy.name`; empty where the server keeps no log


def addressed(assignment: Assignment, terms: Terms) -> Addressed | str:
    """What a report of an assignment is for, or why there is none: where a helper takes the masks
    off, it must have signed the key of this round that seeds are sealed to.
    """
    agreed = None
    if assignment.certificate is not None:
        agreed = log_wire.policy_of(chain.certificate_of(assignment))
    about = Addressed(
        terms,
        assignment.server,
        assignment.task_id,
        assignment.round,
        policy="" if agreed is None else agreed.name,
    )
    if terms.aggregation is not Aggregation.HELPER:
        return about
    key = _seal_key(assignment, terms)
    return key if isinstance(key, str) else Addressed(**{**vars(about), "seal_key": key.key})


def layout(count: int, largest: int, terms: Terms) -> Layout:
    """How so many numbers up to `largest` lie in masked words: those of an update or a table with
    room for noise.
    """
    if (count, largest) == (terms.values, terms.largest):
        return terms.layout
    return packing.layout(count, largest, terms.most)


def protected(
    numbers: NDArray[Any], largest: int, about: Addressed, key: Ed25519PrivateKey, random: Random
) -> bytes:
    """The body of a report: whole numbers of at most `largest`, [n], as the terms have it, by the
    device that holds the key. Each call takes a fresh seed of `random`.

    Raises ValueError for numbers out of range, and where no message of one device can protect them.
    """
    if about.terms.aggregation is Aggregation.PLAIN:
        return open_report(numbers, largest, about)
    _require(numbers, largest)
    named = about.round, len(numbers), about.terms.name
    if about.terms.aggregation is not Aggregation.HELPER:
        raise ValueError(f"expected plain or helper, found {about.terms.aggregation}")
    by = layout(len(numbers), largest, about.terms)
    bound = bound_of(about, signing.public_hex(key))
    seed = random(SEED_BYTES)
    seal = masking.seal(seed, bound, random)
    words = masking.masked(numbers, seed, by)
    sealed = Sealed(seal, key.sign(bound.signed(seal)), words)
    return update.of_sealed(sealed, Header(Form.SEALED, *named), by)


def open_report(numbers: NDArray[Any], largest: int, about: Addressed) -> bytes:
    """The body of a report that anybody can read, of whole numbers of at most `largest`, [n].
    Raises ValueError for numbers out of range.
    """
    _require(numbers, largest)
    named = about.round, len(numbers), about.terms.name
    return update.of_codes(numbers, Header(Form.CODES, *named), largest.bit_length())


def _require(numbers: NDArray[Any], largest: int) -> None:
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) <= largest:
        raise ValueError(
            f"expected whole numbers of 0 to {largest}, found {numbers.min()} to {numbers.max()}"
        )


def bound_of(about: Addressed, device: str) -> Bound:
    """What the seal of a device is for; `device` is its public key, hexadecimal."""
    of = about.server, about.task_id, about.round, about.policy or about.terms.name
    return Bound(*of, device, about.seal_key)


def repeating(secret: bytes) -> Random:
    """Random bytes of a simulation: the same ones, in the same order, of the same secret."""
    key = bytes.fromhex(digest(secret))
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: stream.update(bytes(count))


def _seal_key(assignment: Assignment, terms: Terms) -> SealKey | str:
    signed = assignment.seal_key
    if signed is None:
        return f"seal key: expected one of helper {terms.helper[:16]}, found none"
    text = signing.text_of(signed, SEAL_KEY, frozenset({terms.helper}))
    if text is None:
        return (
            f"seal key: expected one that helper {terms.helper[:16]} signed, found one by "
            f"{signed.signer[:16]}"
        )
    try:
        key = from_json(SealKey, text, "seal key")
    except ConfigError:
        return "seal key: is none of this version"
    expected: dict[str, tuple[object, object]] = {
        "task_id": (assignment.task_id, key.task_id),
        "round": (assignment.round, key.round),
        "terms": (terms.name, key.terms),
    }
    for name, (wanted, actual) in expected.items():
        if wanted != actual:
            return f"seal key: expected {name} {str(wanted)[:16]}, found {str(actual)[:16]}"
    if not masking.can_be_sealed_to(key.key):
        return f"seal key: expected an X25519 key, found {key.key[:16]}, which is of small order"
    return key

"""A toy helper for tests: three devices at least, fifty weights, and a leader that is a function.

Devices make masked updates of whole numbers without training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import chain, config, masking, packing, signing
from device_runtime.helper_wire import (
    SEAL_KEY,
    KeysAsked,
    Named,
    Noised,
    Registration,
    SealedReport,
    SealKey,
    SealKeys,
    from_answer,
)
from device_runtime.masking import Bound, Random
from device_runtime.noise import Mechanism, Noise
from device_runtime.packing import Layout
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import Kind, Signed
from helper.desk import Desk, places_in
from helper.store import Store
from helper.tasks import Rules, Task
from tests.toy_server import OPERATOR, key

IDENTITY = key(9000)
HELPER = signing.public_hex(IDENTITY)
CERTIFIER = key(9001)
SERVER, TASK_ID = "5e" * 16, "7a" * 16
LEAST = 3
TERMS = Terms(
    Aggregation.HELPER,
    bits=4,
    clipping_norm=1.0,
    dimension=50,
    shapes="50" * 32,
    rotation_seed=7,
    most=8,
    fewest=LEAST,
    min_separation=2,
    helper=HELPER,
)
RULES = Rules(HELPER, LEAST)
NOISE = Noise(
    Mechanism.BLT,
    multiplier=2.0,
    epsilon=100.0,
    delta=1e-6,
    rounds=50,
    participations=20,
    decays=(0.9, 0.5),
    scales=(0.3, 0.2),
)
NOISED = replace(TERMS, noise=NOISE, min_separation=1)


def certificate(terms: Terms | None = TERMS, by: Ed25519PrivateKey = OPERATOR, **other) -> Signed:
    """What the maker of the devices' bundle has signed of the toy task."""
    values = {
        "round_key": "0e" * 32,
        "server": SERVER,
        "task": "words",
        "task_id": TASK_ID,
        "population": "default",
        "plan": "aa" * 32,
        "policy": "bb" * 32,
        "first_round": 1,
        "rounds": 1000,
        "expires_at": 1e9,
        "terms": terms,
    }
    text = config.to_json(chain.Certificate(**{**values, **other}))
    return signing.sign_text(by, chain.CERTIFICATE, text)


def registration(terms: Terms | None = TERMS, **other) -> Registration:
    return Registration(certificate(terms, **other), "words", TASK_ID)


def new(
    folder: Path,
    rules: Rules = RULES,
    database: str | None = None,
    random: Random | None = None,
) -> Desk:
    """A desk in a folder, or what goes on with the one that was there."""
    folder.mkdir(exist_ok=True)
    store = Store(database or folder / "helper.sqlite", rules.helper)
    return Desk(store, places_in(folder), IDENTITY, rules, random or np.random.default_rng().bytes)


def begun(folder: Path, terms: Terms = TERMS, rules: Rules = RULES, **other) -> Desk:
    """A desk that knows the toy task."""
    desk = new(folder, rules, **other)
    assert desk.register(registration(terms), 0.0).terms == terms.name
    return desk


def seal_keys(answered: SealKeys) -> dict[int, str]:
    """The keys of rounds, as devices read them: signed by the helper."""
    keys = {}
    for signed in answered.keys:
        key_ = config.from_json(
            SealKey, signing.text_of(signed, SEAL_KEY, frozenset({HELPER})), "seal key"
        )
        assert key_.task_id == TASK_ID
        keys[key_.round] = key_.key
    return keys


def keys_of(desk: Desk, first: int, rounds: int = 1) -> dict[int, str]:
    return seal_keys(desk.seal_keys(KeysAsked(TASK_ID, first, rounds)))


@dataclass(frozen=True)
class Report:
    """What one device sends, and what only it knows."""

    sealed: SealedReport
    words: np.ndarray  # masked
    numbers: np.ndarray
    seed: bytes


def layout(terms: Terms = TERMS) -> Layout:
    return Task(TASK_ID, "words", SERVER, Kind.TRAINING, terms).layout


def bound(number: int, round: int, seal_key: str, terms: Terms = TERMS) -> Bound:
    """What the seal of device `number` is for."""
    return Bound(SERVER, TASK_ID, round, terms.name, signing.public_hex(key(number)), seal_key)


def report(
    number: int,
    round: int,
    seal_key: str,
    terms: Terms = TERMS,
    sealed_for: Bound | None = None,
) -> Report:
    """The report of device `number`: always the same for a round and a key. `sealed_for`: what its
    seal is for, where that is not what it says and signs.
    """
    by, about = layout(terms), bound(number, round, seal_key, terms)
    rng = np.random.default_rng([number, round, int(seal_key[:8], 16)])
    numbers, seed = rng.integers(0, terms.encoding.largest + 1, by.count), rng.bytes(32)
    seal = masking.seal(seed, sealed_for or about, rng.bytes)
    signature = key(number).sign(about.signed(seal))
    sealed = SealedReport(about.device, round, seal.hex(), signature.hex())
    return Report(sealed, masking.masked(numbers, seed, by), numbers, seed)


def reports(
    numbers: range | list[int], round: int, keys: Mapping[int, str], terms: Terms = TERMS
) -> list[Report]:
    return [report(number, round, keys[round], terms) for number in numbers]


def named(of: list[Report], round: int) -> Named:
    return Named(TASK_ID, round, tuple(each.sealed for each in of))


def opened(body: bytes, of: list[Report], terms: Terms = TERMS) -> list[int]:
    """The sum that the leader finds: what the devices sent, less the masks."""
    by = layout(terms)
    total = np.zeros(by.words, np.uint64)
    for each in of:
        total = packing.add(total, each.words, by)
    masks = packing.from_bytes(from_answer(body, by.bytes)[1], by)
    return packing.unpack(packing.subtract(total, masks, by), by).tolist()


def noise_in(body: bytes, of: list[Report], terms: Terms = NOISED) -> np.ndarray:
    """The noise in the sum that the leader finds, in codes: int64 [values]."""
    return np.array(opened(body, of, terms)) - terms.room - np.array(expected(of))


def noised(body: bytes, terms: Terms = NOISED) -> Noised:
    """What the leader is told of the noise."""
    return from_answer(body, layout(terms).bytes)[0]


def expected(of: list[Report]) -> list[int]:
    return sum(each.numbers for each in of).tolist()

"""What opening a round costs a helper, beside the bar and beside the masks alone.

python -m benchmarks.helper [--devices 100 1000] [--dimension 1423511] [--noise]

Reports have seals and signatures as devices make them; no device trains. The floor is the stream
of all masks, made and thrown away: what is over it is verified, opened, added and kept. Seconds are
of one core's work, of all threads.

--noise: what noise adds to that, whatever the number of devices, part by part. The floor is the
cipher's stream that the normals are made of. What is kept is timed by the clock, for most of it is
waiting for a disk; the same bytes are put into a row of a database to compare.
"""

import argparse
import contextlib
import os
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from device_runtime import chain, config, masking, packing, signing, strategy
from device_runtime.helper_wire import (
    AnswerTaken,
    KeysAsked,
    Named,
    Registration,
    SealedReport,
    SealKey,
    from_answer,
    most_bytes,
)
from device_runtime.noise import Mechanism, Noise
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import Kind
from fedboard import console
from helper import answers
from helper.desk import Desk, places_in
from helper.store import Store
from helper.tasks import Rules, Task
from server import noising, normals
from server.slots import Folder

GBOARD = 1_423_511  # values of the reference bundle
BITS = 4
BAR_S = 10.0  # of one core, for a thousand devices
NOISE_BAR_S = 0.5  # of the clock, for all that noise adds to an answer
SERVER, TASK_ID = "5e" * 16, "7a" * 16
_ONE = Noise(Mechanism.GAUSSIAN, 7.0, 1e6, 1e-10, 2000, 2000)
NOISES = (
    _ONE,
    replace(  # of 2,000 sums, a device in every 314th: docs/privacy.md
        _ONE,
        mechanism=Mechanism.BLT,
        decays=(1.0, 0.9925, 0.7944),
        scales=(0.0076, 0.1277, 0.3278),
    ),
)


@dataclass(frozen=True)
class Cost:
    """Of one round."""

    devices: int
    megabytes: float  # of one mask
    read_s: float  # the message
    answer_s: float  # all else: signatures, ledger, seals, masks, keeping
    masks_s: float  # of that: the sum of the masks
    floor_s: float  # the masks' stream alone
    memory_mb: float  # peak of the process

    @property
    def seconds(self) -> float:
        """The whole of it."""
        return self.read_s + self.answer_s


def measured(devices: int, dimension: int) -> Cost:
    """The cost of opening a round of so many devices."""
    identity = Ed25519PrivateKey.generate()
    terms = _terms(identity, devices, dimension)
    task = Task(TASK_ID, "words", SERVER, Kind.TRAINING, terms)
    with tempfile.TemporaryDirectory() as folder:
        desk = _desk(Path(folder), identity, task)
        (signed,) = desk.seal_keys(KeysAsked(TASK_ID, 1)).keys  # type: ignore[union-attr]
        seal_key = config.from_json(SealKey, signed.text.encode(), "seal key").key
        reports = tuple(_report(task, seal_key) for _ in range(devices))
        body, limit = config.to_json(Named(TASK_ID, 1, reports)), most_bytes(devices)
        named, read_s = _timed(lambda: config.from_json(Named, body, "Named", limit))
        answer, answer_s = _timed(lambda: desk.answer(named, 1.0))
        assert isinstance(answer, bytes)
        assert len(from_answer(answer, task.layout.bytes)[1]) == task.layout.bytes
        desk.close()
    seeds = [os.urandom(masking.SEED_BYTES) for _ in range(devices)]
    _, masks_s = _timed(lambda: masking.mask_sum(seeds, task.layout))
    return Cost(
        devices,
        task.layout.bytes / 1e6,
        read_s,
        answer_s,
        masks_s,
        _floor(seeds, task.layout.bytes),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


@dataclass(frozen=True)
class NoiseCost:
    """Of the noise of one sum, seconds of one core; where it says so, of the clock."""

    mechanism: str
    megabytes: float  # of the buffers
    opened_s: float  # the buffers
    drawn_s: float  # normals
    floor_s: float  # their stream alone
    correlated_s: float  # with the buffers, and the new ones
    packed_s: float  # rounded to codes, packed and taken off the mask
    sealed_s: float  # the new buffers
    slot_s: float  # of the clock: the new buffers on disk, where those before the last were
    row_s: float  # of the clock: in a row of a database instead
    answer_s: float  # a whole answer to one device
    clock_s: float  # of the clock: the same
    memory_mb: tuple[float, float]  # peak of the process after two sums, and after all

    @property
    def computed_s(self) -> float:
        """All but what is kept."""
        parts = self.opened_s, self.drawn_s, self.correlated_s, self.packed_s, self.sealed_s
        return sum(parts)


def noise_measured(noise: Noise, dimension: int, sums: int) -> NoiseCost:
    """The cost of so many sums of one device with noise; of each part, the least."""
    identity, peaks, whole, computed = Ed25519PrivateKey.generate(), [], [], []
    terms = replace(_terms(identity, 100, dimension), fewest=1, noise=noise)
    task = Task(TASK_ID, "words", SERVER, Kind.TRAINING, terms)
    with tempfile.TemporaryDirectory() as folder:
        desk = _desk(Path(folder), identity, task)
        for round in range(1, sums + 1):
            (signed,) = desk.seal_keys(KeysAsked(TASK_ID, round)).keys  # type: ignore[union-attr]
            seal_key = config.from_json(SealKey, signed.text.encode(), "seal key").key
            named = Named(TASK_ID, round, (_report(task, seal_key, round),))
            began = time.perf_counter()
            answer, answer_s = _timed(lambda named=named: desk.answer(named, 1.0))
            whole.append(time.perf_counter() - began)
            computed.append(answer_s)
            assert isinstance(answer, bytes)
            desk.taken(AnswerTaken(TASK_ID, round))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        desk.close()
        parts = [_noise_parts(task, Path(folder)) for _ in range(sums)]
    least = [min(each) for each in zip(*parts, strict=True)]
    megabytes = noising.sealed_bytes(terms) / 1e6
    least += [min(computed), min(whole)]
    return NoiseCost(noise.mechanism.value, megabytes, *least, (peaks[1], peaks[-1]))


def _noise_parts(task: Task, folder: Path) -> tuple[float, ...]:
    """Seconds of each part of one sum's noise, as `NoiseCost` has them."""
    terms, by, key = task.terms, task.layout, os.urandom(32)
    assert terms.noise is not None
    values = terms.encoding.values
    sealed = noising.sealed(noising.begin(terms), key, "")
    buffers, opened_s = _timed(lambda: noising.opened(sealed, key, "", terms))
    drawn, drawn_s = _timed(lambda: normals.normals(values, os.urandom(32)))
    floor_s = _floor([key], 8 * (values + values % 2))
    (made, after), correlated_s = _timed(
        lambda: strategy.advance(terms.noise, buffers, lambda: drawn)
    )
    masks = masking.mask_sum([key], by)

    def packed() -> None:
        codes = np.rint(made * terms.deviation).astype(np.int64)
        packing.to_bytes(answers.finished(masks, codes, task), by)

    _, packed_s = _timed(packed)
    sealed, sealed_s = _timed(lambda: noising.sealed(after, key, ""))
    began = time.perf_counter()
    Folder(folder / "buffers").put("slot", sealed)
    slot_s = time.perf_counter() - began
    return (
        opened_s,
        drawn_s,
        floor_s,
        correlated_s,
        packed_s,
        sealed_s,
        slot_s,
        _row(sealed, folder),
    )


def _row(sealed: bytes, folder: Path) -> float:
    """Seconds to keep that in a row of an SQLite database instead, as in its steady state."""
    with contextlib.closing(sqlite3.connect(folder / "rows.sqlite")) as connection:
        for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("CREATE TABLE IF NOT EXISTS noises (task TEXT PRIMARY KEY, body BLOB)")
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            with connection:
                connection.execute("INSERT OR REPLACE INTO noises VALUES (1, ?)", (sealed,))
            seconds.append(time.perf_counter() - began)
    return min(seconds)


def _room(devices: int) -> int:
    """The most devices that codes have room for in as many bytes as for these."""
    return {100: 108, 1000: 1092}.get(devices, devices)


def _terms(identity: Ed25519PrivateKey, devices: int, dimension: int) -> Terms:
    return Terms(
        Aggregation.HELPER,
        BITS,
        1.0,
        dimension,
        "50" * 32,
        7,
        most=_room(devices),
        fewest=min(devices, 100),
        min_separation=1,
        helper=signing.public_hex(identity),
    )


def _desk(folder: Path, identity: Ed25519PrivateKey, task: Task) -> Desk:
    public = signing.public_hex(identity)
    least = task.terms.fewest
    store = Store(folder / "helper.sqlite", public)
    desk = Desk(store, places_in(folder), identity, Rules(public, least), os.urandom)
    certificate = chain.Certificate(
        "0e" * 32, SERVER, "words", TASK_ID, "default", "aa" * 32, "bb" * 32, 1, 1000, 1e11,
        task.terms,
    )  # fmt: skip
    text = config.to_json(certificate)
    signed = signing.sign_text(identity, chain.CERTIFICATE, text)
    desk.register(Registration(signed, "words", TASK_ID), 0.0)
    return desk


def _report(task: Task, seal_key: str, round: int = 1) -> SealedReport:
    key = Ed25519PrivateKey.generate()
    device = signing.public_hex(key)
    about = masking.Bound(SERVER, TASK_ID, round, task.terms.name, device, seal_key)
    seal = masking.seal(os.urandom(masking.SEED_BYTES), about, os.urandom)
    return SealedReport(device, round, seal.hex(), key.sign(about.signed(seal)).hex())


def _floor(seeds: list[bytes], size: int) -> float:
    """Seconds to make every mask's stream, in pieces that stay in the processor's cache."""
    piece = 1 << 17
    zeros, room = memoryview(bytes(piece)), bytearray(piece + 16)

    def streams() -> None:
        for seed in seeds:
            stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
            for start in range(0, size, piece):
                stream.update_into(zeros[: min(piece, size - start)], room)

    return _timed(streams)[1]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    done = work()
    return done, time.process_time() - began


def _print_noise(costs: list[NoiseCost]) -> None:
    def ms(seconds: float) -> str:
        return f"{1000 * seconds:.1f}"

    console.table(
        "what the noise of a sum costs a helper, milliseconds of one core; slot and row by the "
        "clock too",
        [
            "mechanism",
            "buffers MB",
            "open",
            "draw",
            "floor",
            "correlate",
            "round, pack",
            "seal",
            "all",
            "slot",
            "row",
            "answer",
            "by the clock",
            "MB",
        ],
        [
            [
                cost.mechanism,
                f"{cost.megabytes:.1f}",
                ms(cost.opened_s),
                ms(cost.drawn_s),
                ms(cost.floor_s),
                ms(cost.correlated_s),
                ms(cost.packed_s),
                ms(cost.sealed_s),
                ms(cost.computed_s),
                ms(cost.slot_s),
                ms(cost.row_s),
                ms(cost.answer_s),
                ms(cost.clock_s),
                f"{cost.memory_mb[0]:.0f} -> {cost.memory_mb[1]:.0f}",
            ]
            for cost in costs
        ],
    )
    for cost in costs:  # an answer to one device is noise and little else
        verdict = "within" if cost.clock_s <= NOISE_BAR_S else "over"
        console.say(
            f"{cost.mechanism}: {cost.clock_s:.2f} s with all that is kept, {verdict} the bar of "
            f"{NOISE_BAR_S:g} s"
        )


def main() -> None:
    """Measure, and print one row a round."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--dimension", type=int, default=GBOARD)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--sums", type=int, default=10)
    asked = parser.parse_args()
    if asked.noise:
        _print_noise([noise_measured(each, asked.dimension, asked.sums) for each in NOISES])
        return
    costs = [measured(devices, asked.dimension) for devices in asked.devices]
    console.table(
        f"what opening a round costs a helper: {asked.dimension:,} values of {BITS} bits, seconds "
        "of one core",
        [
            "devices",
            "mask MB",
            "read",
            "answer",
            "masks",
            "floor",
            "masks/floor",
            "all/floor",
            "MB",
        ],
        [
            [
                str(cost.devices),
                f"{cost.megabytes:.2f}",
                f"{cost.read_s:.2f}",
                f"{cost.answer_s:.2f}",
                f"{cost.masks_s:.2f}",
                f"{cost.floor_s:.2f}",
                f"{cost.masks_s / cost.floor_s:.2f}",
                f"{cost.seconds / cost.floor_s:.2f}",
                f"{cost.memory_mb:.0f}",
            ]
            for cost in costs
        ],
    )
    for cost in costs:
        bar = BAR_S * max(1.0, cost.devices / 1000)
        verdict = "within" if cost.seconds <= bar else "over"
        console.say(f"{cost.devices} devices: {cost.seconds:.2f} s, {verdict} the bar of {bar:g} s")


if __name__ == "__main__":
    main()

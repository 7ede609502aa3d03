"""What opening a round costs a helper, beside the bar and beside the masks alone.

python -m benchmarks.helper [--devices 100 1000] [--dimension 1423511]

Reports have seals and signatures as devices make them; no device trains. The floor is the stream
of all masks, made and thrown away: what is over it is verified, opened, added and kept. Seconds are
of one core's work, of all threads.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from device_runtime import chain, config, masking, signing
from device_runtime.helper_wire import (
    KeysAsked,
    Named,
    Registration,
    SealedReport,
    SealKey,
    from_answer,
    most_bytes,
)
from device_runtime.terms import Aggregation, Terms
from device_runtime.wire import Kind
from fedboard import console
from helper.desk import Desk, Places
from helper.store import Store
from helper.tasks import Rules, Task
from server.slots import Folder

GBOARD = 1_423_511  # values of the reference bundle
BITS = 4
BAR_S = 10.0  # of one core, for a thousand devices
SERVER, TASK_ID = "5e" * 16, "7a" * 16


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
    terms = Terms(
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


def _room(devices: int) -> int:
    """The most devices that codes have room for in as many bytes as for these."""
    return {100: 108, 1000: 1092}.get(devices, devices)


def _desk(folder: Path, identity: Ed25519PrivateKey, task: Task) -> Desk:
    public = signing.public_hex(identity)
    places = Places(*(Folder(folder / each) for each in ("keys", "answers", "noise")))
    least = task.terms.fewest
    store = Store(folder / "helper.sqlite", public)
    desk = Desk(store, places, identity, Rules(public, least), os.urandom)
    certificate = chain.Certificate(
        "0e" * 32, SERVER, "words", TASK_ID, "default", "aa" * 32, "bb" * 32, 1, 1000, 1e11,
        task.terms,
    )  # fmt: skip
    text = config.to_json(certificate)
    signed = signing.sign_text(identity, chain.CERTIFICATE, text)
    desk.register(Registration(signed, "words", TASK_ID), 0.0)
    return desk


def _report(task: Task, seal_key: str) -> SealedReport:
    key = Ed25519PrivateKey.generate()
    device = signing.public_hex(key)
    about = masking.Bound(SERVER, TASK_ID, 1, task.terms.name, device, seal_key)
    seal = masking.seal(os.urandom(masking.SEED_BYTES), about, os.urandom)
    return SealedReport(device, 1, seal.hex(), key.sign(about.signed(seal)).hex())


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


def main() -> None:
    """Measure, and print one row a round."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--dimension", type=int, default=GBOARD)
    asked = parser.parse_args()
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

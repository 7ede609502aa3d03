"""What `fedboard release make` takes at the size of the reference bundle, step by step.

A server whose task starts from that bundle, two rounds of devices that send made-up updates, a
release made and offered of the first, and then, timed, one of the second; beside it the patch
alone, with the memory it takes above the bundle's own.

.venv/bin/python -m benchmarks.release_make [--data chitchat]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, chain, durable, signing, update
from device_runtime.shown import command
from device_runtime.terms import Aggregation
from device_runtime.wire import Ack, Assignment, CheckIn, Conditions, Enrolment, Reject
from fedboard.__main__ import program
from fedboard.run import REFERENCE
from model import child_process
from server import operators, tasks
from server.contract import ADDRESS
from server.coordinator import Coordinator, open_folder
from server.eligibility import Policy
from server.requests import Answer, CheckingIn, Reporting
from server.rounds import Rules
from server.task import TaskSettings, for_bundle

ROUNDS = 2
DEVICES = 2
RULES = Rules(report_goal=DEVICES, over_selection=1.0, selection_s=0.0, retry_s=0.0)
STEP = 0.005  # of each weight in a round, about what twenty clients move it by
PATCH = """
import sys, time, tracemalloc
from pathlib import Path
from device_runtime import bundle, patch, weights
opened = bundle.open_verified(Path(sys.argv[1]), frozenset({sys.argv[2]}))
constants, half = opened.manifest.constants, weights.as_sent(opened.weights)
template, seconds = opened.predict_graph, []
for _ in range(20):
    began = time.perf_counter()
    patch.predict(template, constants, half)
    seconds.append(time.perf_counter() - began)
tracemalloc.start()  # numpy's arrays too
patch.predict(template, constants, half)
print(sorted(seconds)[10] * 1000, tracemalloc.get_traced_memory()[1] / 1e6)
"""


class Learning:
    """A server's folder whose task starts from a bundle; no socket is needed to teach it."""

    def __init__(self, folder: Path, opened: bundle.Bundle, key: Ed25519PrivateKey):
        self.coordinator, self.opened = Coordinator(*open_folder(folder)), opened
        settings = for_bundle(
            TaskSettings(
                rules=RULES,
                policy=Policy(min_separation=1),
                seed=1,
                aggregation=Aggregation.PLAIN,
            ),
            opened.plan,
        )
        task = tasks.create(self.coordinator, settings, time.time(), opened.checkpoint)
        self.norm = task.plan.clipping_norm
        proposed = operators.round_key(self.coordinator, settings.name)
        signed = proposed.certified(key, 1000, time.time() + 86_400)
        operators.certify(self.coordinator, settings.name, signed, time.time())
        keys = [Ed25519PrivateKey.from_private_bytes(i.to_bytes(32, "big")) for i in (1, 2)]
        self.devices = [
            self.coordinator.enrol(Enrolment(signing.public_hex(each)), time.time()).device
            for each in keys
        ]

    def ask(self, request: CheckingIn | Reporting) -> Answer:
        """What one request is answered."""
        (answer,) = self.coordinator.handle([request], time.time())
        return answer

    def learn(self, rng: np.random.Generator) -> None:
        """A round of made-up updates."""
        message = CheckIn(
            Conditions(True, True, True), examples=50, tokenizer=self.opened.manifest.tokenizer
        )
        for device in self.devices:
            work = self.ask(CheckingIn(device, message))
            while isinstance(work, Reject):
                time.sleep(work.retry_in_s)
                work = self.ask(CheckingIn(device, message))
            assert isinstance(work, Assignment), work
            values = sum(array.size for array in self.opened.weights.values())
            delta = rng.normal(0, STEP, values).astype(np.float32)
            longest = np.float32(self.norm)
            delta *= min(np.float32(1), longest / np.linalg.norm(delta))
            body = update.of_delta({"all": delta}, work.round, chain.terms_of(work), rng)
            reply = self.ask(Reporting(device, work.assignment, body))
            assert isinstance(reply, Ack) and reply.counted, reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="chitchat")
    data = parser.parse_args().data
    reference = frozenset({REFERENCE.with_suffix(".pub").read_text().strip()})
    key = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory(prefix="fedboard-release-") as temporary:
        folder = Path(temporary)
        opened = bundle.open_verified(REFERENCE, reference)
        bundle.write(folder / "first", opened.manifest, opened.content, key)
        durable.write(folder / "maker.key", key.private_bytes_raw().hex().encode(), 0o600)
        began = Learning(folder / "server", opened, key)
        rng = np.random.default_rng(0)
        for _ in range(ROUNDS):
            began.learn(rng)
        began.coordinator.close()
        patch = [sys.executable, "-c", PATCH, folder / "first", signing.public_hex(key)]
        milliseconds, megabytes = map(float, run(patch).split())
        print(
            f"patch alone: {milliseconds:.0f} ms, {megabytes:.1f} MB at most, the "
            "new file among them"
        )
        with serving(folder / "server") as where:
            first = ("--bundle", folder / "first", "--round", opened.checkpoint.round + 1)
            first = (*first, "--data", "none")
            make(folder, where, "one", *first)
            share = ("release", "publish", folder / "one", "--share", "100%")
            run(program(*share, "--key", folder / "maker.key", *where))
            print(make(folder, where, "two", "--data", data))


class serving:
    """A server process of a folder, and how commands name it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> tuple[object, ...]:
        self.process = child_process.start(
            program("serve", "--dir", self.folder, "--port", "0"), self.folder / "log"
        )
        while not (self.folder / ADDRESS).is_file():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)
        return ("--dir", self.folder)

    def __exit__(self, *_: object) -> None:
        child_process.end(self.process)


def make(folder: Path, where: tuple[object, ...], name: str, *words: object) -> str:
    """The steps of `fedboard release make` as a table, and what it took as a whole."""
    asked = program(
        *("release", "make", "--task", "default", "--out", folder / name),
        *("--key", folder / "maker.key", *where, *words, "--json"),
    )
    before = time.perf_counter()
    report = json.loads(run(asked))
    whole = time.perf_counter() - before
    lines = [f"{step}: {seconds:.3f} s" for step, seconds in report["seconds"].items()]
    peak = f"whole command: {whole:.1f} s"
    return "\n".join([command("release", "make"), *lines, *report["notes"], peak])


def run(words: list) -> str:
    """What a command prints."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    main()

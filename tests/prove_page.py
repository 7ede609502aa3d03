"""docs/prove.md: which proofs ran last, at which commit, and whether they held."""

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Proof:
    """One proof that ran: its name, what it did in its own words, its seconds, whether it held."""

    name: str
    did: str
    seconds: float
    held: bool


def page(proofs: Sequence[Proof], commit: str, machine: str, seconds: float) -> str:
    """The page in Markdown: one line a proof, in the order of their names."""
    held = sum(proof.held for proof in proofs)
    return "\n".join(
        [
            "# What was proven last",
            "",
            "`make prove` runs what takes longer than `make test` may, and writes this page.",
            "",
            f"{held} of {len(proofs)} proofs held at commit {commit}, {machine}, "
            f"in {seconds / 60:.0f} minutes.",
            "",
            "| proof | what it did | seconds | held |",
            "|---|---|---|---|",
            *(
                f"| {sentence(proof.name)} | {proof.did} | {proof.seconds:.0f} | "
                f"{'yes' if proof.held else 'NO'} |"
                for proof in sorted(proofs, key=lambda proof: proof.name)
            ),
            "",
        ]
    )


def sentence(name: str) -> str:
    """A test's name as a sentence: `test_a_log_is_kept[cut]` is "a log is kept: cut"."""
    words, _, case = name.removeprefix("test_").partition("[")
    return words.replace("_", " ") + (f": {case.removesuffix(']')}" if case else "")


def commit() -> str:
    """The commit of the working tree, and whether files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!docs/prove.md")
    return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")


@dataclass
class Page:
    """A plugin of pytest that collects the proofs of a session and writes their page."""

    path: Path
    started: float = field(default_factory=time.monotonic)
    proofs: list[Proof] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed):
            name = report.nodeid.rpartition("::")[2]
            did = dict(report.user_properties).get("did", "")
            self.proofs.append(Proof(name, did, report.duration, report.passed))

    def pytest_sessionfinish(self) -> None:
        if self.proofs:
            cores = len(os.sched_getaffinity(0))
            machine = f"Python {platform.python_version()} on {cores} cores"
            seconds = time.monotonic() - self.started
            self.path.write_text(page(self.proofs, commit(), machine, seconds))

"""Release: a task's checkpoint -> the signed bundle that its devices should run next, or why not.

Nothing is written to the server; `publishing` offers what is made here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from conversion import release, sampled
from conversion.release import Clock, Corpus, Fleet, Measured, Parts, Text
from device_runtime import bounds, bundle, signing, weights
from device_runtime.bundle import Bundle, Lineage, Manifest
from device_runtime.errors import BundleError, CorpusError, RunError
from device_runtime.examples import rows
from device_runtime.folder import require_free
from device_runtime.releases import WHOLE
from device_runtime.wire import Kind, Phase, RoundReport
from fedboard import audit, source
from fedboard.operator import Operator
from fedboard.publishing import maker_key, statement_of
from fedboard.run import open_bundle, trusted_keys
from model import corpora
from model.corpus import Corpus as TextCorpus
from model.corpus import token_lists
from server import evaluations
from server.contract import ReleaseReport, ReleaseState, TaskReport

NONE = "none"  # of --data: no corpus
UTTERANCES = 1000  # of validation users, that int8 is measured on
SAMPLED, SEED = 1000, 0  # texts that the network says itself, and how they are drawn
MOST_NUMBER = 2**31 - 1  # of a release
MOST_REASON = 400  # characters


@dataclass(frozen=True)
class Asked:
    """What a release is made with. None is the default that is told."""

    task: str
    round: int | None = None  # that made the checkpoint: the newest
    bundle: Path | None = None  # whose graphs are patched: the release now served
    trust: list[Path] | None = None  # keys of that bundle's maker: the one that signs
    data: str | None = None  # corpus to measure on, or NONE: the built-in one, if it is here
    key: Path | None = None  # private key to sign with: our own
    release: int | None = None  # number: one above every number before
    even_if_worse: str = ""  # why it is made though it does worse than the release served
    audit: Path | None = None  # report that must have let the checkpoint pass

    def __post_init__(self) -> None:
        """Raises ConfigError for a number no release could have."""
        if self.release is not None:
            bounds.within("--release", self.release, 1, MOST_NUMBER)
        if len(self.even_if_worse) > MOST_REASON or not self.even_if_worse.isprintable():
            raise RunError(
                "--even-if-worse",
                f"expected a reason of at most {MOST_REASON} printable characters",
                "say it in a sentence or two",
            )


@dataclass(frozen=True)
class Made:
    """A release, and what was measured before it was signed."""

    path: Path
    manifest: Manifest
    measured: Measured
    notes: tuple[str, ...]  # sentences, as they stand in its card
    seconds: dict[str, float]  # of each step
    population: str  # of its task


def make(operator: Operator, out: Path, asked: Asked, corpus: TextCorpus | None = None) -> Made:
    """Write the bundle of a task's checkpoint to `out`. Loads no TensorFlow, but for the corpora
    that are TFF's. `corpus` is the one that is asked for, where it is open already.

    Nothing is written unless the template can be patched to the checkpoint, the gate lets the
    release pass and it does no worse than the release served. Raises the error of whatever is
    wrong.
    """
    clock = Clock()
    require_free(out, bundle.FOLDER)
    key = maker_key(asked.key)
    trusted = frozenset({signing.public_hex(key)})
    if asked.trust:
        trusted |= trusted_keys(asked.trust)
    with clock.step("fetch from the server"):
        task = operator.task(asked.task)
        round, sha = operator.checkpoint_of(asked.task, asked.round)
        past = ancestry(operator.all_rounds(asked.task), sha)
        _require_learnt(task, round, past)
        checkpoint = weights.from_bytes(operator.checkpoint(asked.task, sha), f"round {round}")
        published = [each for each in operator.releases() if each.population == task.population]
        served = serving(published)
        running = None if served is None else fetch(operator, served, trusted)
        fleet = _fleet(operator, task.name, running, sha)
    passed = None if asked.audit is None else audit.required(asked.audit, sha)
    template = _template(asked, running, trusted)
    number = _number(asked, template, published)
    lineage = Lineage(
        template.manifest.lineage.corpus,
        round,
        sha,
        task.privacy or bundle.NO_PRIVACY,
        task=task.name,
        rounds=len(past),
        participants=sum(report.counted for report in past),
        epsilon=task.epsilon,
        delta=task.delta,
        audit=passed,
        aggregation=task.aggregation,
        words=template.manifest.lineage.words,
    )
    parts = Parts(template, checkpoint, lineage, number, running)
    with clock.step("patch"):
        content = release.patched(template, checkpoint)
    with clock.step("open the text"):
        text = _text(asked.data, template, checkpoint, corpus)
    measured = release.measure(parts, content, text, fleet, clock)
    notes = _notes(text, running, measured, asked.even_if_worse)
    with clock.step("sign and write"):
        manifest = release.package(out, parts, content, measured, key, notes, asked.even_if_worse)
    return Made(out, manifest, measured, notes, clock.seconds, task.population)


def ancestry(reports: Iterable[RoundReport], sha: str) -> tuple[RoundReport, ...]:
    """The committed rounds that a checkpoint comes of, by its SHA-256, oldest first: those that a
    roll-back left aside are none of them.
    """
    makers = {
        report.checkpoint: report
        for report in reports
        if report.phase is Phase.COMMITTED and report.checkpoint
    }
    past: list[RoundReport] = []
    while (maker := makers.pop(sha, None)) is not None:
        past.append(maker)
        sha = maker.base
    return tuple(reversed(past))


def serving(published: Sequence[ReleaseReport]) -> ReleaseReport | None:
    """The release that most devices run, of those of one population, newest first: the newest that
    is offered to all, else the newest that is offered at all; None if none is.
    """
    offered = [each for each in published if each.state is ReleaseState.OFFERED]
    whole = [each for each in offered if each.share == WHOLE]
    return next(iter(whole or offered), None)


def fetch(operator: Operator, published: ReleaseReport, trusted: frozenset[str]) -> Bundle:
    """A release's bundle, verified: its statement and manifest by a trusted key, its files by
    their hashes. Raises ServerError or BundleError if the server has another than was signed.
    """
    where = f"release {published.release} of the server"
    statement = statement_of(published, trusted)
    if statement is None:
        raise BundleError(
            where,
            f"its statement is signed by {published.statement.signer[:16]}, which is not trusted",
            "sign with the key it was published with, or name its maker's with --trust",
        )
    encoded = operator.release_file(statement.manifest)
    signed = published.signature.encode()
    listed = bundle.signed_manifest(encoded, signed, trusted, Path(where)).files

    def read(name: str, most: int) -> bytes:
        if name == bundle.MANIFEST:
            return encoded
        if name == bundle.SIGNATURE:
            return signed
        return operator.release_file(listed[name].sha256)

    return bundle.of_files(Path(where), trusted, read)


def _require_learnt(task: TaskReport, round: int, past: Sequence[RoundReport]) -> None:
    """Raises RunError for a checkpoint that no device has had a part in."""
    if past:
        return
    if not task.committed:
        problem = "has not committed a round: there is nothing to release yet"
        raise RunError(f"task {task.name}", problem, "wait for a round that commits")
    raise RunError(
        f"task {task.name}",
        f"the checkpoint of round {round} is the one it started from: nothing was learnt in it",
        "name a later one with --round",
    )


def _template(asked: Asked, running: Bundle | None, trusted: frozenset[str]) -> Bundle:
    if asked.bundle is not None:
        if asked.trust:
            return open_bundle(asked.bundle, asked.trust)
        return bundle.open_verified(asked.bundle, trusted)
    if running is None:
        raise RunError(
            "--bundle",
            "no release is served whose graphs could be patched",
            "give the bundle that the task was started with",
        )
    return running


def _number(asked: Asked, template: Bundle, published: Sequence[ReleaseReport]) -> int:
    """The number of the release. Raises RunError for one that is not above all before it."""
    least = 1 + max([template.manifest.release, *(each.release for each in published)])
    if asked.release is not None and asked.release < least:
        raise RunError(
            "--release",
            f"expected {least} or more, above every release before it, found {asked.release}",
            "leave it out: it is chosen then",
        )
    return asked.release or least


def _fleet(operator: Operator, task: str, running: Bundle | None, sha: str) -> Fleet | None:
    """What evaluations of the task say of the checkpoint served and of this one."""
    if running is None:
        return None
    reports = [
        report
        for each in operator.tasks()
        if each.kind is Kind.EVALUATION and each.evaluates == task
        for report in operator.all_rounds(each.name)
    ]
    gain = evaluations.gain(reports, running.manifest.lineage.checkpoint, sha)
    if gain is None:
        return None
    devices = gain.old.devices, gain.new.devices
    return Fleet(devices, 100 * gain.change, 100 * gain.error, gain.worse)


def _text(
    data: str | None,
    template: Bundle,
    checkpoint: weights.Checkpoint,
    corpus: TextCorpus | None,
) -> Text:
    """What is measured on."""
    vocabulary, length = template.vocabulary, template.plan.length
    said = "no corpus was wanted"
    if data != NONE:
        try:
            corpus = corpus or corpora.load(data or source.DEFAULT)
        except CorpusError:
            if data is not None:
                raise
            said = f"the corpus {source.DEFAULT} is not installed here"
        else:
            spelled = islice(token_lists(corpus.validation), UTTERANCES)
            examples = rows((vocabulary.ids(tokens) for tokens in spelled), length)
            if not len(examples):
                raise CorpusError(
                    data or source.DEFAULT,
                    "no validation utterance to measure on",
                    f"give a corpus with validation users, or --data {NONE}",
                )
            name = Path(data or source.DEFAULT).name
            return Text(examples, f"validation users of the corpus {name}", corpus.validation)
    drawn = sampled.rows(
        weights.as_sent(checkpoint.weights), SAMPLED, length, np.random.default_rng(SEED)
    )
    return Text(drawn, f"text that the network says itself, drawn with seed {SEED}: {said}")


def _notes(
    text: Text, running: Bundle | None, measured: Measured, even_if_worse: str
) -> tuple[str, ...]:
    """What was measured and what was not, a sentence each."""
    notes = [f"Measured on {text.said}."]
    if running is None:
        notes.append("It was compared with no release: none is served.")
    else:
        served = f"release {running.manifest.release}, which is served"
        notes.append(
            f"Compared with {served}, on the same words: {_compared(measured.corpus)}."
            if measured.corpus
            else f"It was not compared with {served}, on text: no corpus was at hand."
        )
        notes.append(
            f"By the task's federated evaluations: {_evaluated(measured.fleet)}."
            if measured.fleet
            else "No rounds of a federated evaluation have scored both its checkpoint and the one "
            "served."
        )
    if measured.worse and even_if_worse:
        notes.append(f"Released even though it does worse ({'; '.join(measured.worse)}).")
        notes.append(f"The reason given: {even_if_worse}")
    return tuple(notes)


def _compared(corpus: Corpus) -> str:
    low, high = corpus.interval
    return (
        f"{corpus.points:+.2f} points of top-1 ({low:+.2f} to {high:+.2f}) on {corpus.words:,} "
        f"words of {corpus.users:,} users; a loss of {corpus.seen:.2f} points would have been "
        "refused in 95 of 100 comparisons"
    )


def _evaluated(fleet: Fleet) -> str:
    old, new = fleet.devices
    return (
        f"{fleet.points:+.2f} points of top-1 (standard error {fleet.error:.2f}) by {new:,} and "
        f"{old:,} devices"
    )

"""Package: a checkpoint, its vocabulary and a plan -> a signed bundle, once its graphs are right.

They are when the gate has shown that they agree with the network.
"""

import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conversion import card, classes, costs, export, gate, metadata, parity
from device_runtime import bundle, config, patch, signing, weights
from device_runtime.agreement import Pins
from device_runtime.errors import BundleError
from device_runtime.examples import batches
from device_runtime.text import FIRST_WORD, Vocabulary
from device_runtime.wire import Plan
from model import network

PARITY_STEPS = 50
SUGGESTED = 64  # rows of text that suggestions are timed along
# words no keyboard should put into a mouth
DEFAULT_BLOCKED = Path(__file__).with_name("blocked.txt")


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of."""

    checkpoint: weights.Checkpoint
    vocabulary: Vocabulary
    plan: Plan
    corpus: str  # its name, for the lineage
    release: int | None = None  # by default the checkpoint's round
    blocked: frozenset[str] | None = None  # words never suggested; by default our own list
    privacy: str = bundle.NO_PRIVACY
    server_factor: float | None = None  # as in the manifest
    device_limits: str = "unknown"  # whether it was trained within a device's own limits
    device_class: classes.Class | None = None  # whose budget it must keep
    pins: Pins = field(default_factory=Pins)  # who alone may see its devices' updates
    audit: str | None = None  # SHA-256 of the audit's report, which let the checkpoint pass
    words: str | None = None  # as in the lineage
    written: bytes = b""  # how words are usually written, one a line
    notes: tuple[str, ...] = ()  # sentences of the card
    language: str = ""  # of the corpus, where it is known


def package(
    path: Path,
    parts: Parts,
    examples: np.ndarray,
    key: Ed25519PrivateKey,
    steps: int = PARITY_STEPS,
) -> tuple[bundle.Manifest, gate.Gate]:
    """Export, measure, sign and write a bundle; returns its manifest and what was measured.

    examples are rows (int32 [n, plan.length + 1]) of real text to measure on, steps those of the
    parity with TensorFlow. Raises BundleError, and writes nothing, if the vocabulary does not fit
    the checkpoint, the quality gate does not let the graphs pass, or the bundle takes more than its
    device class has.
    """
    checkpoint, vocabulary, plan = parts.checkpoint, parts.vocabulary, parts.plan
    arrays = weights.as_sent(checkpoint.weights)  # what is measured is what devices get
    size = network.size_of(arrays)
    if checkpoint.tokenizer != vocabulary.hash or len(vocabulary) != len(arrays["embedding"]):
        raise BundleError(
            path,
            f"the model scores {len(arrays['embedding'])} ids but the vocabulary has "
            f"{len(vocabulary)}",
            "package both from one run",
        )
    about = metadata.predict(vocabulary.tokens)
    train = metadata.add(export.train_graph(arrays, plan), metadata.train())
    predict = export.patchable(arrays, partial(metadata.add, about=about))
    trained = _parity_batches(examples, plan, steps)
    apart = parity.training_difference(train, arrays, trained, plan)
    measured = gate.measure(len(trained), apart, predict.file, arrays, examples)
    if measured.problems:
        raise BundleError(
            path,
            "not signed: " + "; ".join(measured.problems),
            "train or export again; if the graphs differ from TensorFlow, report it",
        )
    encoded = weights.to_bytes(checkpoint)
    content = {
        bundle.TRAIN: train,
        bundle.PREDICT: predict.file,
        bundle.TOKENIZER: vocabulary.model,
        bundle.CHECKPOINT: weights.to_bytes(checkpoint, np.float16),  # as it travels
        bundle.PLAN: config.to_json(plan),
    }
    if words := sorted(_default_blocked() if parts.blocked is None else parts.blocked):
        content[bundle.BLOCKED] = "".join(f"{word}\n" for word in words).encode()
    if parts.written:
        content[bundle.WRITTEN] = parts.written
    name = next((name for name, known in network.SIZES.items() if known == size), "own")
    of = parts.corpus, checkpoint.round, weights.digest(encoded), parts.privacy
    lineage = bundle.Lineage(*of, audit=parts.audit, words=parts.words)
    chosen = parts.device_class
    figures = measured.manifest | (chosen.budget.manifest if chosen else {})
    said = card.Card(name, size, len(vocabulary), lineage, parts.device_limits, figures, content)
    content[bundle.CARD] = card.text(
        replace(
            said,
            pins=parts.pins,
            notes=parts.notes,
            language=parts.language,
            text_rules=vocabulary.rules,
        )
    ).encode()
    manifest = bundle.Manifest(
        network=name,
        embedding=size.embedding,
        units=size.units,
        vocabulary=len(vocabulary),
        tokenizer=vocabulary.hash,
        shapes=weights.shapes_hash(arrays),
        lineage=lineage,
        files=bundle.describe(content),
        gate=figures,
        release=checkpoint.round if parts.release is None else parts.release,
        server_factor=parts.server_factor,
        device_class=chosen.name if chosen else None,
        aggregation=parts.pins.aggregation,
        helper=parts.pins.helper,
        noise=parts.pins.noise,
        epsilon=parts.pins.epsilon,
        delta=parts.pins.delta,
        constants=predict.constants,
        graph=patch.graph_hash(predict.file, predict.constants),
        rules=vocabulary.rules if vocabulary.rules > 1 else None,
        language=parts.language or None,
    )
    if chosen:
        texts = _texts(examples[:SUGGESTED], vocabulary)
        taken = _costs(manifest, content, key, texts)
        if missed := classes.problems(chosen.budget, taken, manifest.files):
            raise BundleError(
                path,
                f"not signed for class {chosen.name}: " + "; ".join(missed),
                "see configs/device-classes.toml",
            )
    bundle.write(path, manifest, content, key)
    return manifest, measured


def _default_blocked() -> frozenset[str]:
    return frozenset(DEFAULT_BLOCKED.read_text().split())


def _costs(
    manifest: bundle.Manifest,
    content: dict[str, bytes],
    key: Ed25519PrivateKey,
    texts: tuple[str, ...],
) -> costs.Costs:
    """What a bundle takes, measured on a copy that nobody gets."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "bundle"
        bundle.write(trial, manifest, content, key)
        return costs.measure(costs.Task(str(trial), (signing.public_hex(key),), texts))


def _texts(rows: np.ndarray, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The words of some rows of ids, each as one text."""
    texts = ("".join(_spaced(row, vocabulary)).strip() for row in rows)
    return tuple(text for text in texts if text)


def _spaced(row: np.ndarray, vocabulary: Vocabulary) -> list[str]:
    """The words of a row of ids, a space before each; pieces that go on with one have none."""
    return [
        " " * (i < vocabulary.first_inner) + vocabulary.tokens[i] for i in row if i >= FIRST_WORD
    ]


def _parity_batches(examples: np.ndarray, plan: Plan, steps: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    epochs = -(-steps * plan.batch_size // len(examples)) + 1
    return [
        batch
        for batch, _ in zip(
            batches(examples, plan.batch_size, epochs, rng), range(steps), strict=False
        )
    ]

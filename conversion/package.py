"""Package: a checkpoint, its vocabulary and a plan -> a signed bundle, once its graphs are right.

They are when the gate has shown that they agree with the network.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conversion import export
from conversion.gate import Gate, measure
from device_runtime import bundle, config, weights
from device_runtime.errors import BundleError
from device_runtime.examples import batches
from device_runtime.text import Vocabulary
from device_runtime.wire import Plan
from model import network

PARITY_STEPS = 50
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


def package(
    path: Path,
    parts: Parts,
    examples: np.ndarray,
    key: Ed25519PrivateKey,
    steps: int = PARITY_STEPS,
) -> tuple[bundle.Manifest, Gate]:
    """Export, measure, sign and write a bundle; returns its manifest and what was measured.

    examples are rows (int32 [n, plan.length + 1]) of real text to measure on, steps those of the
    parity with TensorFlow. Raises BundleError, and writes nothing, if the vocabulary does not fit
    the checkpoint or the quality gate does not let the graphs pass; VocabularyError for a
    vocabulary of pieces.
    """
    checkpoint, vocabulary, plan = parts.checkpoint, parts.vocabulary, parts.plan
    vocabulary.require_words("a bundle")  # its `predict` graph ranks ids, not words
    arrays = checkpoint.weights
    size = network.size_of(arrays)
    if checkpoint.tokenizer != vocabulary.hash or len(vocabulary) != len(arrays["embedding"]):
        raise BundleError(
            path,
            f"the model scores {len(arrays['embedding'])} ids but the vocabulary has "
            f"{len(vocabulary)}",
            "package both from one run",
        )
    train, predict = export.train_graph(arrays, plan), export.predict_graph(arrays)
    gate = measure(train, predict, arrays, examples, _parity_batches(examples, plan, steps), plan)
    if gate.problems:
        raise BundleError(
            path,
            "not signed: " + "; ".join(gate.problems),
            "train or export again; if the graphs differ from TensorFlow, report it",
        )
    encoded = weights.to_bytes(checkpoint)
    content = {
        bundle.TRAIN: train,
        bundle.PREDICT: predict,
        bundle.TOKENIZER: vocabulary.model,
        bundle.CHECKPOINT: weights.to_bytes(checkpoint, np.float16),  # as it travels
        bundle.PLAN: config.to_json(plan),
    }
    if words := sorted(_default_blocked() if parts.blocked is None else parts.blocked):
        content[bundle.BLOCKED] = "".join(f"{word}\n" for word in words).encode()
    name = next((name for name, known in network.SIZES.items() if known == size), "own")
    lineage = bundle.Lineage(parts.corpus, checkpoint.round, weights.digest(encoded), parts.privacy)
    content[bundle.CARD] = _card(name, size, parts, lineage, gate.manifest, content).encode()
    manifest = bundle.Manifest(
        network=name,
        embedding=size.embedding,
        units=size.units,
        vocabulary=len(vocabulary),
        tokenizer=vocabulary.hash,
        shapes=weights.shapes_hash(arrays),
        lineage=lineage,
        files=bundle.describe(content),
        gate=gate.manifest,
        release=checkpoint.round if parts.release is None else parts.release,
        server_factor=parts.server_factor,
    )
    bundle.write(path, manifest, content, key)
    return manifest, gate


def _default_blocked() -> frozenset[str]:
    return frozenset(DEFAULT_BLOCKED.read_text().split())


def _parity_batches(examples: np.ndarray, plan: Plan, steps: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    epochs = -(-steps * plan.batch_size // len(examples)) + 1
    return [
        batch
        for batch, _ in zip(
            batches(examples, plan.batch_size, epochs, rng), range(steps), strict=False
        )
    ]


def figure(value: float) -> str:
    """Whole numbers in full, others to three digits.

    >>> figure(1234.0), figure(0.012345)
    ('1,234', '0.0123')
    """
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def _card(
    name: str,
    size: network.NetworkSize,
    parts: Parts,
    lineage: bundle.Lineage,
    gate: dict[str, float],
    content: dict[str, bytes],
) -> str:
    """MODEL_CARD.md with the front matter model hubs read."""
    files = "".join(f"| `{file}` | {len(data):,} |\n" for file, data in sorted(content.items()))
    figures = "".join(f"| {key} | {figure(value)} |\n" for key, value in sorted(gate.items()))
    return f"""---
language: en
license: apache-2.0
library_name: tflite
pipeline_tag: text-generation
tags: [next-word-prediction, federated-learning, on-device, keyboard]
datasets: [{lineage.corpus}]
---
# Next-word model `{name}`

CIFG-LSTM ({size.units} units, embedding {size.embedding}, {len(parts.vocabulary):,} ids), \
trained by federated averaging.
Corpus: {lineage.corpus}. Round: {lineage.round}. Checkpoint: `{lineage.checkpoint}`. \
Privacy: {lineage.privacy}.
Within the limits of a device: {parts.device_limits}.

| file | bytes |
|---|---|
{files}
| measured before signing | |
|---|---|
{figures}
Intended use: suggestions on a keyboard. It repeats what its corpus taught it, \
including what is rude or wrong.
"""

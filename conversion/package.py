"""Package: a checkpoint, its vocabulary and a plan -> a signed bundle, once the graphs were shown to agree with the network."""

from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conversion import export, parity
from device_runtime import bundle, config, weights
from device_runtime.errors import BundleError
from device_runtime.examples import batches
from device_runtime.text import Vocabulary
from device_runtime.wire import Plan
from model import network

PARITY_STEPS = 50


def package(
    path: Path,
    checkpoint: weights.Checkpoint,
    vocabulary: Vocabulary,
    plan: Plan,
    examples: np.ndarray,
    corpus: str,
    key: Ed25519PrivateKey,
    steps: int = PARITY_STEPS,
) -> bundle.Manifest:
    """Export, measure, sign and write a bundle; returns its manifest.

    examples are rows (int32 [n, plan.length + 1]) to measure parity on. Raises BundleError, and writes nothing, if the vocabulary does not fit
    the checkpoint or the graphs do not agree with the network; VocabularyError for a vocabulary of pieces.
    """
    vocabulary.require_words("a bundle")  # its `predict` graph ranks ids, not words
    arrays = checkpoint.weights
    size = network.size_of(arrays)
    if checkpoint.tokenizer != vocabulary.hash or len(vocabulary) != len(arrays["embedding"]):
        raise BundleError(
            path, f"the model scores {len(arrays['embedding'])} ids but the vocabulary has {len(vocabulary)}", "package both from one run"
        )
    train, predict = export.train_graph(arrays, plan), export.predict_graph(arrays)
    found = parity.measure(train, predict, arrays, _parity_batches(examples, plan, steps), plan)
    if found.problems:
        raise BundleError(path, "; ".join(found.problems), "the exported graphs are not shipped: report this with the checkpoint")
    encoded = weights.to_bytes(checkpoint)
    content = {
        bundle.TRAIN: train,
        bundle.PREDICT: predict,
        bundle.TOKENIZER: vocabulary.model,
        bundle.CHECKPOINT: weights.to_bytes(checkpoint, np.float16),  # as it travels
        bundle.PLAN: config.to_json(plan),
    }
    name = next((name for name, known in network.SIZES.items() if known == size), "own")
    lineage = bundle.Lineage(corpus, checkpoint.round, weights.digest(encoded))
    gate = {"parity_steps": float(found.steps), "parity_weights": found.weights, "parity_loss": found.loss}
    gate |= {"int8_same_best_word": found.int8_top1, "int8_extra_nats": found.int8_nats}
    content[bundle.CARD] = _card(name, size, vocabulary, lineage, gate, content).encode()
    manifest = bundle.Manifest(
        network=name,
        embedding=size.embedding,
        units=size.units,
        vocabulary=len(vocabulary),
        tokenizer=vocabulary.hash,
        shapes=weights.shapes_hash(arrays),
        lineage=lineage,
        files=bundle.describe(content),
        gate=gate,
    )
    bundle.write(path, manifest, content, key)
    return manifest


def _parity_batches(examples: np.ndarray, plan: Plan, steps: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    epochs = -(-steps * plan.batch_size // len(examples)) + 1
    return [batch for batch, _ in zip(batches(examples, plan.batch_size, epochs, rng), range(steps), strict=False)]


def _card(
    name: str, size: network.NetworkSize, vocabulary: Vocabulary, lineage: bundle.Lineage, gate: dict[str, float], content: dict[str, bytes]
) -> str:
    """MODEL_CARD.md with the front matter model hubs read."""
    files = "".join(f"| `{file}` | {len(data):,} |\n" for file, data in sorted(content.items()))
    figures = "".join(f"| {key} | {value:.3g} |\n" for key, value in sorted(gate.items()))
    return f"""---
language: en
license: apache-2.0
library_name: tflite
tags: [next-word-prediction, federated-learning, on-device, keyboard]
---
# Next-word model `{name}`

CIFG-LSTM ({size.units} units, embedding {size.embedding}, {len(vocabulary):,} ids), trained by federated averaging.
Corpus: {lineage.corpus}. Round: {lineage.round}. Checkpoint: `{lineage.checkpoint}`. Privacy: {lineage.privacy}.

| file | bytes |
|---|---|
{files}
| measured before signing | |
|---|---|
{figures}
Intended use: suggestions on a keyboard. It repeats what its corpus taught it, including what is rude or wrong.
"""

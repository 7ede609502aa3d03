"""The export stage: a checkpoint of a run -> two TFLite files, checked against TensorFlow, in a signed bundle."""

import itertools
from dataclasses import replace
from pathlib import Path

from device_runtime import weights
from device_runtime.bundle import Manifest
from device_runtime.errors import ConfigError, CorpusError
from device_runtime.examples import rows
from device_runtime.wire import Plan
from fedboard import console
from fedboard.run import checkpoint_of, require_fit, run_of, signing_key, vocabulary_of
from model import corpus

PARITY_UTTERANCES = 400  # of validation users


def export(
    target: Path,
    out: Path | None = None,
    data: str | None = None,
    tokenizer: Path | None = None,
    key: Path | None = None,
    learning_rate: float = 0.1,
    clipping_norm: float = 10.0,
    bits: int = 8,
    users: corpus.Corpus | None = None,
) -> tuple[Manifest, Path]:
    """Write the bundle of `target`'s checkpoint; returns its manifest and folder. Nothing is written unless parity holds."""
    path = checkpoint_of(target)
    checkpoint, vocabulary = weights.read(path), vocabulary_of(path, tokenizer)
    require_fit(checkpoint, vocabulary, path)
    run = run_of(path)
    settings = run.settings() if run else None
    plan = settings.recipe.plan if settings else Plan()
    for name, value, low, high in (("learning rate", learning_rate, 0, 100), ("clipping norm", clipping_norm, 0, 1e6), ("bits", bits, 0, 16)):
        if not low < value <= high:
            raise ConfigError(name, f"expected more than {low} and at most {high}, found {value}", "correct it")
    plan = replace(plan, learning_rate=learning_rate, clipping_norm=clipping_norm, bits=bits)
    name = data or (settings.data if settings else "chitchat")
    found = users or corpus.load(name)
    sample = itertools.islice(corpus.token_lists(found.validation), PARITY_UTTERANCES)
    examples = rows((vocabulary.ids(tokens) for tokens in sample), plan.length)
    if not len(examples):
        raise CorpusError(name, "no validation utterance to check parity on", "give a corpus with validation users")
    private = signing_key(key)
    out = Path(out) if out else (run.path if run else path.parent) / "bundle"

    from conversion.package import package  # TensorFlow

    manifest = package(out, checkpoint, vocabulary, plan, examples, name, private)
    gate = manifest.gate
    console.say(
        f"parity with TensorFlow over {gate['parity_steps']:.0f} training steps: weights within {gate['parity_weights']:.1e}, "
        f"loss within {gate['parity_loss']:.1e}; int8 keeps the best word in {gate['int8_same_best_word']:.1%} of contexts"
    )
    files = manifest.files
    console.say(f"train.tflite {files['train.tflite'].bytes:,} bytes, predict.tflite (int8) {files['predict.tflite'].bytes:,} bytes -> {out}")
    return manifest, out

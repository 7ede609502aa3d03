"""The export stage: a checkpoint of a run -> two TFLite files, checked against TensorFlow, in a
signed bundle.
"""

import itertools
from dataclasses import replace
from pathlib import Path

from device_runtime import weights
from device_runtime.bundle import NO_PRIVACY, Manifest
from device_runtime.errors import ConfigError, CorpusError
from device_runtime.examples import rows
from device_runtime.text import normalise, tokenise
from device_runtime.wire import Plan
from fedboard import console
from fedboard.run import Settings, checkpoint_of, require_fit, run_of, signing_key, vocabulary_of
from model import corpora, corpus

MEASURED_UTTERANCES = 2000  # of validation users


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
    release: int | None = None,
    blocked: Path | None = None,
) -> tuple[Manifest, Path]:
    """Write the bundle of `target`'s checkpoint; returns its manifest and folder. Nothing is
    written unless the quality gate lets it pass.
    """
    path = checkpoint_of(target)
    checkpoint, vocabulary = weights.read(path), vocabulary_of(path, tokenizer)
    require_fit(checkpoint, vocabulary, path)
    run = run_of(path)
    settings = run.settings() if run else None
    plan = settings.recipe.plan if settings else Plan()
    plan = replace(plan, learning_rate=learning_rate, clipping_norm=clipping_norm, bits=bits)
    name = data or (settings.data if settings else "chitchat")
    found = users or corpora.load(name)
    sample = itertools.islice(corpus.token_lists(found.validation), MEASURED_UTTERANCES)
    examples = rows((vocabulary.ids(tokens) for tokens in sample), plan.length)
    if not len(examples):
        raise CorpusError(
            name,
            "no validation utterance to check parity on",
            "give a corpus with validation users",
        )
    private = signing_key(key)
    words = None if blocked is None else word_list(blocked)
    out = Path(out) if out else (run.path if run else path.parent) / "bundle"

    from conversion.package import package  # TensorFlow

    manifest, gate = package(
        out,
        checkpoint,
        vocabulary,
        plan,
        examples,
        Path(name).name,
        private,
        release=release,
        blocked=words,
        privacy=_privacy(settings),
    )
    console.say(
        f"parity with TensorFlow over {gate.steps} training steps: weights within "
        f"{gate.weights_apart:.1e}, loss within {gate.loss_apart:.1e}; "
        f"int8 keeps the best word in {gate.int8.same_best:.1%} of {gate.int8.positions:,} "
        f"contexts and loses {gate.int8.top1_lost:.2f} points of "
        f"top-1; {gate.step_ms:.2f} ms a step"
    )
    files = manifest.files
    console.say(
        f"train.tflite {files['train.tflite'].bytes:,} bytes, predict.tflite (int8) "
        f"{files['predict.tflite'].bytes:,} bytes -> {out}"
    )
    return manifest, out


def word_list(path: Path) -> frozenset[str]:
    """Words of a file, one a line, as the vocabulary writes them. Raises ConfigError if it cannot
    be read or a line is not one word.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(
            path, f"cannot be read ({reason})", "give a file with one word a line"
        ) from None
    for number, line in enumerate(lines, 1):
        if tokenise(line) != [normalise(line)]:
            raise ConfigError(
                f"{path}, line {number}", "expected one word", "put every word on a line of its own"
            )
    return frozenset(map(normalise, lines))


def _privacy(settings: Settings | None) -> str:
    """What the manifest says of privacy: what is known, and no more."""
    if settings is None:
        return "unknown: the checkpoint came without its run"
    if settings.central:
        return "none: trained with all text in one place"
    found = settings.recipe.privacy
    if found.mechanism == "none":
        return NO_PRIVACY
    return (
        f"{found.mechanism} noise of multiplier {found.noise_multiplier:g} was added in training, "
        "but nothing accounts for what was spent"
    )

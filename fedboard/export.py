"""The export stage: a checkpoint of a run -> two TFLite files, checked, in a signed bundle."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from conversion import classes
from conversion.classes import Class
from device_runtime import bounds, config, offensive, weights
from device_runtime.agreement import Pins
from device_runtime.bounds import Within
from device_runtime.bundle import FOLDER, Manifest, require_pins
from device_runtime.errors import ConfigError, CorpusError
from device_runtime.examples import rows
from device_runtime.folder import require_free
from device_runtime.terms import Aggregation
from device_runtime.text import fold, tokenise
from device_runtime.wire import Plan
from fedboard import audit, console, source, spent, word_lists
from fedboard.run import (
    Run,
    checkpoint_of,
    helper_key,
    limits_of,
    require_fit,
    run_of,
    signing_key,
    used_of,
    vocabulary_of,
)
from model import spellings
from model.corpus import Corpus, token_lists

MEASURED_UTTERANCES = 2000  # of validation users
LISTED = 100  # words of one kind that a card names
DELTA = 1e-10  # of a budget that names none


@dataclass(frozen=True)
class Asked:
    """What a bundle is made with, beside its checkpoint. None is the default that is told."""

    data: str | None = None  # corpus to check parity on: the run's
    tokenizer: Path | None = None  # tokenizer.model: the run's
    key: Path | None = None  # private key to sign with: our own
    # of local training on devices, and the largest L2 norm of a device's delta: what a device's
    # float32, and a server's sum, can hold
    learning_rate: Annotated[float, Within(1e-9, 100.0)] = 0.1
    clipping_norm: Annotated[float, Within(1e-9, 1e6)] = Plan().clipping_norm
    bits: Annotated[int, Within(1, 16)] = 8  # of one value of an upload
    release: int | None = None  # devices never go back to a lower one: the checkpoint's round
    blocked: Path | None = None  # file of words never suggested: our own list
    # largest step of a server / clipping norm, for devices to measure its checkpoints by
    server_factor: float | None = None
    # of a train step and one of its rows: the run's plan
    batch_size: int | None = None
    length: int | None = None
    device_class: str | None = None  # whose budget the bundle must keep
    classes: Path | None = None  # file of device classes: our own
    pins: Pins = field(default_factory=Pins)  # who alone may see its devices' updates
    audit: Path | None = None  # report that must have let the checkpoint pass

    def __post_init__(self) -> None:
        """Raises ConfigError for a number no device could work by."""
        bounds.check(self)
        if self.release is not None:
            bounds.within("release", self.release, 0, 2**31 - 1)
        if self.server_factor is not None:
            bounds.within("server_factor", self.server_factor, 1e-6, 1e6)
        require_pins(self.pins, "export")


def export(
    target: Path, out: Path | None, asked: Asked, corpus: Corpus | None = None
) -> tuple[Manifest, Path]:
    """Write the bundle of `target`'s checkpoint; returns its manifest and folder.

    Nothing is written unless the quality gate lets it pass.
    """
    chosen = _class_of(asked)
    path = checkpoint_of(target)
    checkpoint, vocabulary = weights.read(path), vocabulary_of(path, asked.tokenizer)
    require_fit(checkpoint, vocabulary, path)
    passed = None
    if asked.audit is not None:
        passed = audit.required(asked.audit, weights.digest(weights.to_bytes(checkpoint)))
    run = run_of(path)
    settings = run.settings() if run else None
    plan = settings.recipe.plan if settings else Plan()
    plan = replace(
        plan,
        batch_size=asked.batch_size or plan.batch_size,
        length=asked.length or plan.length,
        learning_rate=asked.learning_rate,
        clipping_norm=asked.clipping_norm,
        bits=asked.bits,
    )
    out = Path(out) if out else (run.bundle if run else path.parent / "bundle")
    require_free(out, FOLDER)
    name = asked.data or (settings.data if settings else source.DEFAULT)
    if corpus is None:
        corpus, name, notes = source.for_targets([str(path)], asked.data)
        for note in notes:
            console.say(note)
    sample = itertools.islice(token_lists(corpus.validation), MEASURED_UTTERANCES)
    examples = rows((vocabulary.ids(tokens) for tokens in sample), plan.length)
    if not len(examples):
        raise CorpusError(
            name,
            "no validation utterance to check parity on",
            "give a corpus with validation users",
        )
    blocked = None if asked.blocked is None else word_list(asked.blocked)
    private = signing_key(asked.key)

    from conversion.package import Parts, package  # TensorFlow

    parts = Parts(
        checkpoint,
        vocabulary,
        plan,
        Path(settings.data if settings else name).name,
        asked.release,
        blocked,
        spent.privacy_of(settings, spent.of(run) if run else None),
        asked.server_factor,
        limits_of(settings, used_of(run)),
        chosen,
        asked.pins,
        passed,
        None if run is None or settings is None else word_lists.of_run(run, settings),
        run.written.read_bytes() if run and run.written.is_file() else b"",
        _left_out(run),
        corpus.language,
    )
    manifest, gate = package(out, parts, examples, private)
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


def pins_of(
    aggregation: str | None,
    helper: str | None,
    require_noise: bool = False,
    epsilon: float | None = None,
    delta: float | None = None,
) -> Pins:
    """Who alone may see updates, and the noise on their sums, as the command line names them.
    Raises ConfigError for another aggregation than those there are, or a delta without an epsilon,
    RunError for a helper that is no key.
    """
    if delta is not None and epsilon is None:
        raise ConfigError(
            "--at-delta", f"expected --max-epsilon with it, found {delta:g} alone", "give both"
        )
    if aggregation is not None and aggregation not in tuple(Aggregation):
        raise ConfigError(
            "--aggregation", f"expected {', '.join(Aggregation)}, found {aggregation!r}", "name one"
        )
    chosen = None if aggregation is None else Aggregation(aggregation)
    if epsilon is not None and delta is None:
        delta = DELTA
    is_noised = require_noise or epsilon is not None
    return Pins(chosen, helper_key(helper), is_noised or None, epsilon, delta)


def _left_out(run: Run | None) -> tuple[str, ...]:
    """What a card says of the words that stayed out of a run's vocabulary."""
    if run is None or not run.left_out.is_file():
        return ()
    said = config.from_json(spellings.Summary, run.left_out.read_bytes(), str(run.left_out))
    return (
        f"Left out of the vocabulary: {said.rare:,} words that fewer than {said.least_people} "
        "people used.",
        *(
            f"Left out for the usual spelling, {kind}: {_some(pairs)}."
            for kind, pairs in (("stretched", said.stretched), ("misspelt", said.misspelt))
            if pairs
        ),
    )


def _some(pairs: Mapping[str, str]) -> str:
    """The first words that stayed out and what is usual, but for offensive ones."""
    from conversion.package import DEFAULT_BLOCKED  # TensorFlow

    listed = offensive.stems(DEFAULT_BLOCKED.read_text().split())
    decent = [
        f"{word} ({usual})"
        for word, usual in sorted(pairs.items())
        if not any(offensive.is_blocked(each, listed) for each in (word, usual))
    ]
    more = f" and {len(pairs) - LISTED:,} more" if len(pairs) > LISTED else ""
    return ", ".join(decent[:LISTED]) + more


def _class_of(asked: Asked) -> Class | None:
    if asked.device_class is None:
        return None
    return Class(asked.device_class, classes.named(asked.device_class, asked.classes))


def word_list(path: Path) -> frozenset[str]:
    """Words of a file, one a line, as the vocabulary writes them.

    Raises ConfigError if it cannot be read or a line is not one word.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(
            path, f"cannot be read ({reason})", "give a file with one word a line"
        ) from None
    for number, line in enumerate(lines, 1):
        if tokenise(line) != [fold(line)]:
            raise ConfigError(
                f"{path}, line {number}", "expected one word", "put every word on a line of its own"
            )
    return frozenset(map(fold, lines))

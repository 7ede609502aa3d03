"""The evaluation stage: a target by name -> its accuracy by protocol nwp-v1, as a table and as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from device_runtime import bundle, config, weights
from device_runtime.errors import ConfigError, RunError
from device_runtime.text import Vocabulary
from fedboard.run import checkpoint_of, require_fit, vocabulary_of
from model import corpus, evaluation, ngram, vocabulary

BASELINES = {"unigram": 1, "kn2": 2, "kn3": 3, "kn4": 4}
TITLES = {"unigram": "unigram", "kn2": "Kneser-Ney 2-gram", "kn3": "Kneser-Ney 3-gram", "kn4": "Kneser-Ney 4-gram"}


@dataclass(frozen=True)
class Scored:
    """One row of the table."""

    name: str
    kind: str  # checkpoint, bundle or baseline
    summary: evaluation.Summary
    users: dict[str, float]  # top-1 recall of each user with enough targets


def score(
    target: str,
    found: corpus.Corpus,
    split: str,
    trusted: Callable[[], frozenset[str]],
    tokenizer: Path | None = None,
    words: int = vocabulary.SIZE,
    seed: int = 0,
    name: str = "",
    predictions: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Score a checkpoint, run, bundle or baseline on one split. Loads no TensorFlow.

    Raises the error of whatever the target turns out to be, before anything is written.
    """
    kind, engine, known = _engine(target, found, trusted, tokenizer, words)
    users = found.split(split)

    def run(on_prediction: Callable[[evaluation.Prediction], None] | None) -> evaluation.Evaluation:
        return evaluation.evaluate(engine, users, known, progress=progress, on_prediction=on_prediction)

    if predictions is None:
        result = run(None)
    else:
        with evaluation.predictions_file(predictions) as write:
            result = run(write)
    per_user = {user: evaluation.recall(counts, "top1") for user, counts in result.users.items() if counts.targets >= 20}
    return Scored(name or TITLES.get(target, target), kind, evaluation.summarise(result, np.random.default_rng(seed)), per_user)


def _engine(
    target: str, found: corpus.Corpus, trusted: Callable[[], frozenset[str]], tokenizer: Path | None, words: int
) -> tuple[str, evaluation.Engine, Vocabulary]:
    if target in BASELINES:
        known = Vocabulary.read(tokenizer) if tokenizer else vocabulary.build(corpus.token_lists(found.train), words)
        sequences = [known.ids(tokens) for tokens in corpus.token_lists(found.train)]
        return "baseline", evaluation.ngram_engine(ngram.train(sequences, BASELINES[target], len(known))), known
    if (Path(target) / bundle.MANIFEST).is_file():
        from conversion.scoring import bundle_engine

        opened = bundle.open_verified(Path(target), trusted())
        return "bundle", bundle_engine(opened), opened.vocabulary
    if not Path(target).exists():
        raise RunError(target, "no such run, bundle, checkpoint or baseline", f"give a path, or one of {', '.join(BASELINES)}")
    path = checkpoint_of(Path(target))
    checkpoint, known = weights.read(path), vocabulary_of(path, tokenizer)
    require_fit(checkpoint, known, path)
    return "checkpoint", evaluation.network_engine(checkpoint.weights), known


def to_json(scored: Scored) -> str:
    return json.dumps(asdict(scored))


def read(path: Path) -> Scored:
    """What `to_json` wrote to a file. Raises RunError for anything else."""
    try:
        return config.from_json(Scored, path.read_bytes(), str(path))
    except (OSError, ConfigError) as error:
        raise RunError(path, f"not a result of `fedboard evaluate` ({error})", "evaluate again") from None


def row(scored: Scored) -> list[str]:
    """The cells of one system, in the order of COLUMNS."""
    s = scored.summary
    return [scored.name, _share(s.top1, s.top1_interval), _share(s.top3, s.top3_interval), f"{s.perplexity:.0f}", f"{s.keystroke_saving:.1%}"]


COLUMNS = ["system", "top-1 %", "top-3 %", "ppl", "keys saved"]


def _share(value: float, interval: tuple[float, float]) -> str:
    """Per cent, with half the width of its 95 % interval."""
    return f"{100 * value:.1f} ±{50 * (interval[1] - interval[0]):.1f}"

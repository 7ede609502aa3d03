"""The evaluation stage: a target by name -> its accuracy, two targets -> their difference.

By protocol nwp-v2, as tables and as JSON.
"""

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from device_runtime import bounds, bundle, config, weights
from device_runtime.errors import ConfigError, RunError
from device_runtime.metrics import MACRO_TARGETS, recall
from device_runtime.text import Vocabulary
from fedboard.run import (
    checkpoint_of,
    limits_of,
    require_fit,
    require_result_file,
    run_of,
    used_of,
    vocabulary_of,
)
from model import comparison, evaluation, measures, ngram, vocabulary
from model.corpus import Corpus, few, sample, token_lists
from model.pieces import Decoder
from model.recipe import VOCABULARY

OWN = "+own"  # after a target: with the user's own words
COUNTED = 3_000_000  # train words that a baseline is counted of, at most, where that is known
BASELINES = {"unigram": 1, "kn2": 2, "kn3": 3, "kn4": 4}
TITLES = {
    "unigram": "unigram",
    "kn2": "Kneser-Ney 2-gram",
    "kn3": "Kneser-Ney 3-gram",
    "kn4": "Kneser-Ney 4-gram",
}


@dataclass(frozen=True)
class Measured:
    """A target and its sums per user: what rows and differences are made of."""

    name: str
    kind: str  # checkpoint, bundle or baseline
    evaluation: measures.Evaluation
    served: int | None = None  # users who saw their own words mixed in; None without own words
    corpus: str = ""  # digest of the one it was scored on
    device_limits: str = ""  # whether it was trained within them; empty for a baseline


@dataclass(frozen=True)
class Scored:
    """One row of the table."""

    name: str
    kind: str  # checkpoint, bundle or baseline
    summary: measures.Summary
    users: dict[str, float]  # top-1 recall of each user with enough targets
    corpus: str = ""  # digest of the one it was scored on; empty: by an earlier version
    # whether it was trained within them; empty for a baseline, and of an earlier version
    device_limits: str = ""


@dataclass(frozen=True)
class Asked:
    """How a target is scored."""

    split: str = "test"
    tokenizer: Path | None = None  # vocabulary of a baseline or a bare checkpoint
    # of a baseline's vocabulary, where no tokenizer is named
    words: int = vocabulary.SIZE
    name: str = ""  # in the table; by default the target's own
    predictions: Path | None = None  # file for one JSON line a target position
    personal: bool = False  # by the personal protocol
    users: int | None = None  # scored at most; None: all, or as many as the corpus says

    def __post_init__(self) -> None:
        """Raises ConfigError for a vocabulary of no size."""
        bounds.within("--vocabulary", self.words, VOCABULARY.low, VOCABULARY.high)


def measure(
    target: str,
    corpus: Corpus,
    trusted: Callable[[], frozenset[str]],
    asked: Asked,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Score a checkpoint, run, bundle or baseline on one split.

    Loads no TensorFlow but for TFF's own corpora.

    Raises the error of whatever the target turns out to be, before anything is written.
    """
    plain = target.removesuffix(OWN)
    kind, engine, known, blocked = _engine(plain, corpus, trusted, asked.tokenizer, asked.words)
    users = sample(corpus.split(asked.split), asked.users or corpus.most)
    scope = evaluation.Scope(personal=asked.personal, blocked=blocked)
    mixed = plain != target
    if mixed:
        known.require_words("own words")

    def run(
        on_prediction: Callable[[measures.Prediction], object] | None,
    ) -> tuple[measures.Evaluation, int | None]:
        if mixed and not isinstance(engine, Decoder):  # which knows pieces, not words
            from conversion import strip

            life = strip.evaluate(engine, users, known, scope, progress, on_prediction)
            return life.evaluation, life.served
        return evaluation.evaluate(engine, users, known, scope, progress, on_prediction), None

    if asked.predictions is None:
        result, served = run(None)
    else:
        with measures.predictions_file(asked.predictions) as write:
            result, served = run(write)
    if not result.total.targets:
        raise RunError(
            asked.split,
            "no word to score",
            f"give users with {evaluation.PERSONAL} utterances or more"
            if asked.personal
            else "give another corpus",
        )
    return Measured(
        asked.name or TITLES.get(plain, plain) + (" + own words" if mixed else ""),
        kind,
        result,
        served,
        corpus.digest,
        "" if kind == "baseline" else _device_limits(Path(plain)),
    )


def scored(measured: Measured, seed: int = 0) -> Scored:
    """The numbers people compare; the seed draws the intervals."""
    per_user = {
        user: recall(counts, "top1")
        for user, counts in measured.evaluation.users.items()
        if counts.targets >= MACRO_TARGETS
    }
    return Scored(
        measured.name,
        measured.kind,
        measures.summarise(measured.evaluation, np.random.default_rng(seed)),
        per_user,
        measured.corpus,
        measured.device_limits,
    )


def compare(first: Measured, second: Measured, seed: int = 0) -> comparison.Comparison:
    """The second minus the first, user by user; the seed draws the intervals.

    Raises RunError if they did not score the same targets.
    """
    try:
        return comparison.compare(second.evaluation, first.evaluation, np.random.default_rng(seed))
    except ValueError as error:
        raise RunError(
            "--paired",
            f"{first.name} and {second.name} cannot be compared ({error})",
            "score both on one corpus and split",
        ) from None


def _device_limits(target: Path) -> str:
    """What is known of a checkpoint's training, by the run it lies in."""
    run = run_of(target)
    try:
        return limits_of(run.settings() if run else None, used_of(run))
    except ConfigError:  # an evaluation needs no config
        return limits_of(None)


def _engine(
    target: str,
    corpus: Corpus,
    trusted: Callable[[], frozenset[str]],
    tokenizer: Path | None,
    words: int,
) -> tuple[str, evaluation.Engine | Decoder, Vocabulary, frozenset[str]]:
    if target in BASELINES:
        known = (
            Vocabulary.read(tokenizer)
            if tokenizer
            else vocabulary.build(token_lists(few(corpus, vocabulary.COUNTED)), words)
        )
        known.require_words("a baseline")
        sequences = [known.ids(tokens) for tokens in token_lists(few(corpus, COUNTED))]
        return (
            "baseline",
            evaluation.ngram_engine(ngram.train(sequences, BASELINES[target], len(known))),
            known,
            frozenset(),
        )
    if (Path(target) / bundle.MANIFEST).is_file():
        from conversion.scoring import bundle_engine

        opened = bundle.open_verified(Path(target), trusted())
        return (
            "bundle",
            bundle_engine(opened),
            opened.vocabulary,
            getattr(opened, "blocked", frozenset()),
        )
    if not Path(target).exists():
        raise RunError(
            target,
            "no such run, bundle, checkpoint or baseline",
            f"give a path, or one of {', '.join(BASELINES)}",
        )
    path = checkpoint_of(Path(target))
    checkpoint, known = weights.read(path), vocabulary_of(path, tokenizer)
    require_fit(checkpoint, known, path)
    return "checkpoint", evaluation.engine_of(checkpoint.weights, known), known, frozenset()


def to_json(scored: Scored) -> str:
    """As `read` takes it."""
    return json.dumps(asdict(scored))


def read(path: Path) -> Scored:
    """What `to_json` wrote to a file. Raises RunError for anything else."""
    try:
        return config.from_json(Scored, path.read_bytes(), str(path))
    except (OSError, ConfigError) as error:
        raise RunError(
            path, f"not a result of `fedboard evaluate` ({error})", "evaluate again"
        ) from None


def require_files(predictions: Path | None, results: list[Path]) -> None:
    """Raises RunError if predictions or results cannot go to these files, or to one of them twice.

    An earlier result, or earlier predictions, may be replaced; nothing else.
    """
    if predictions is not None:
        require_result_file(predictions, "predictions", measures.are_predictions)
    for path in results:
        require_result_file(path, "a result of `fedboard evaluate`", _is_result)
    places = [path.resolve() for path in (*results, *([predictions] if predictions else []))]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise RunError(twice, "is named for two results", "name a file for each")


def _is_result(path: Path) -> bool:
    try:
        read(path)
    except RunError:
        return False
    return True


def row(scored: Scored) -> list[str]:
    """The cells of one system, in the order of COLUMNS."""
    s = scored.summary
    return [
        scored.name,
        _share(s.top1, s.top1_interval),
        _share(s.top3, s.top3_interval),
        _perplexity(s),
        f"{s.keystroke_saving:.1%}",
    ]


COLUMNS = ["system", "top-1 %", "top-3 %", "ppl", "keys saved"]


def partly(corpus: Corpus, asked: Asked, targets: Sequence[str]) -> list[str]:
    """What is said beside a table where not all of a corpus was read: a sentence each."""
    sentences = []
    everyone, most = len(corpus.split(asked.split)), asked.users or corpus.most
    if most and everyone > most:
        sentences.append(f"read at most {most:,} of {everyone:,} {asked.split} users")
    counted = len(few(corpus, COUNTED))
    if counted < len(corpus.train) and BASELINES.keys() & targets:
        sentences.append(
            f"n-grams were counted of {counted:,} of {len(corpus.train):,} train users: a baseline "
            f"reads at most {COUNTED:,} words"
            if corpus.noted
            else f"n-grams were counted of {counted:,} of {len(corpus.train):,} train users"
        )
    return sentences


def footnote(systems: list[Scored]) -> str:
    """What the star at a perplexity means; empty if none has one."""
    if not any(system.summary.open_vocabulary for system in systems):
        return ""
    return (
        "* of all words, spelled in pieces; without a star, of known words only. Perplexities "
        "compare at equal vocabulary only."
    )


def full_tables(systems: list[Scored]) -> list[tuple[list[str], list[list[str]]]]:
    """Every measure of the protocol, a row each, with a column per system.

    Columns and rows of as many tables as 80 columns need.
    """
    return [
        _full_table(systems[start : start + BESIDE]) for start in range(0, len(systems), BESIDE)
    ]


BESIDE = 4  # systems in one full table
# the longest label, between two columns, the whole table with 2 on each side
LABEL, GAP, WIDTH = 24, 3, 80


def _full_table(systems: list[Scored]) -> tuple[list[str], list[list[str]]]:
    widest = (WIDTH - 4 - LABEL) // len(systems) - GAP
    headings = ["\n".join(textwrap.wrap(system.name, widest)) for system in systems]
    summaries = [system.summary for system in systems]
    rows: list[tuple[str, Callable[[measures.Summary], str]]] = [
        ("top-1 %", lambda s: _share(s.top1, s.top1_interval)),
        ("top-3 %", lambda s: _share(s.top3, s.top3_interval)),
        ("keys saved %", lambda s: _percent(s.keystroke_saving)),
        ("perplexity", _perplexity),
        ("OOV rate %", lambda s: _percent(s.oov_rate)),
        ("in vocabulary, top-1 %", lambda s: _percent(s.in_vocabulary_top1)),
        ("in vocabulary, top-3 %", lambda s: _percent(s.in_vocabulary_top3)),
        ("first word, top-1 %", lambda s: _percent(s.first_word_top1)),
        ("punctuation too, top-1 %", lambda s: _percent(s.with_punctuation_top1)),
        ("punctuation too, top-3 %", lambda s: _percent(s.with_punctuation_top3)),
    ]
    for i, part in enumerate(SPREAD):
        rows.append((f"users' top-1 %, {part}", partial(_spread, "macro_top1", i)))
    for i, part in enumerate(SPREAD):
        rows.append((f"users' top-3 %, {part}", partial(_spread, "macro_top3", i)))
    return ["measure", *headings], [[label, *map(cell, summaries)] for label, cell in rows]


def _spread(field: str, part: int, summary: measures.Summary) -> str:
    """One part of how a measure is spread over users, in the order of SPREAD."""
    return _percent(getattr(summary, field)[part])


SPREAD = ["mean", "p10", "p50", "p90"]
MEASURES = {"top-1": "top1", "top-3": "top3", "keys saved": "keystroke_saving"}


def difference_tables(
    first: str, second: str, compared: comparison.Comparison
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of each table, in points.

    The difference over all words with its interval and the users it gains or loses; then how it is
    spread over users, if any has enough words.
    """
    gains = [(label, getattr(compared, field)) for label, field in MEASURES.items()]
    whole = [
        [
            label,
            _points(gain.change),
            f"{_points(gain.interval[0])} to {_points(gain.interval[1])}",
            f"{gain.gained}",
            f"{gain.lost}",
            f"{gain.same}",
        ]
        for label, gain in gains
    ]
    tables = [
        (
            f"{second} minus {first}, all words, in points",
            ["measure", "points", "95 % interval", "users gaining", "losing", "within 1"],
            whole,
        )
    ]
    if compared.users:
        title = f"the same over users with {MACRO_TARGETS} or more words: {compared.users} users"
        tables.append(
            (
                title,
                ["measure", *SPREAD],
                [[label, *map(_points, gain.by_user)] for label, gain in gains],
            )
        )
    return tables


def sentence(first: str, second: str, compared: comparison.Comparison) -> str:
    """The top-1 difference in plain words, from the side of the better system.

    No winner if the interval holds 0.
    """
    gain, (low, high) = compared.top1, compared.top1.interval
    if low <= 0 <= high:
        said = (
            f"No clear difference in top-1: {second} minus {first} is {_points(gain.change)} "
            f"points ({_points(low)} to {_points(high)})"
        )
        return said + _users(compared.users, second, gain.gained, gain.lost)
    sign, better, gained, lost = (
        (1, second, gain.gained, gain.lost) if low > 0 else (-1, first, gain.lost, gain.gained)
    )
    low, high = sorted((sign * low, sign * high))
    said = (
        f"{better} is better by {_percent(sign * gain.change)} points of top-1 ({_percent(low)} "
        f"to {_percent(high)})"
    )
    return said + _users(compared.users, "it", gained, lost)


def _users(users: int, system: str, gained: int, lost: int) -> str:
    if not users:
        return "."
    return (
        f"; {100 * gained / users:.0f} % of users gain more than a point with {system}, "
        f"{100 * lost / users:.0f} % lose more than one."
    )


def _share(value: float, interval: tuple[float, float]) -> str:
    """Per cent, with half the width of its 95 % interval."""
    return f"{_percent(value)} ±{50 * (interval[1] - interval[0]):.1f}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _perplexity(summary: measures.Summary) -> str:
    """Starred over an open vocabulary: see `footnote`."""
    return (
        "–"
        if math.isnan(summary.perplexity)
        else f"{summary.perplexity:.0f}" + "*" * summary.open_vocabulary
    )


def _points(value: float) -> str:
    """A difference of shares in points, with its sign; what rounds to nothing has none."""
    return f"{100 * value:+.1f}" if abs(value) >= 0.0005 else "0.0"

"""The report's material: what is read from a run's folder. Every part is optional.

A missing part is None or empty; a damaged one is an error that names its file.
"""

import csv
import io
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime import config
from device_runtime.bundle import MANIFEST, Manifest
from device_runtime.errors import ConfigError, RunError
from device_runtime.wire import RoundReport, RoundReports
from fedboard import score, spent
from fedboard.run import Run, Settings, Source, Used, limits_of, mark_of, used_of
from fedboard.saved import whole_lines
from fedboard.source import SHORT
from model.recipe import LOOKS

# first rows of the table; others follow by name
SYSTEMS = ("unigram", "kn2", "kn3", "kn4", "before", "after", "shipped")
NETWORKS = ("after", "before", "shipped")  # the first that is there stands for the network
_WRITE_AGAIN = "remove it, or run the stage that writes it again"


@dataclass(frozen=True)
class RoundMetrics:
    """One row of metrics.csv; shares are 0..1, None where the round was not evaluated, or by an
    earlier version that did not measure it.

    p10, p50 and p90 are percentiles: of a round's clients, or of the validation users of a look.
    """

    round: int
    loss: float  # mean over the cohort's targets, nats
    loss_p10: float | None = None
    loss_p50: float | None = None
    loss_p90: float | None = None
    train_top1: float | None = None  # of the cohort's targets, while they were trained on
    train_top1_p10: float | None = None
    train_top1_p50: float | None = None
    train_top1_p90: float | None = None
    top1: float | None = None
    top1_p10: float | None = None
    top1_p50: float | None = None
    top1_p90: float | None = None
    top3: float | None = None
    perplexity: float | None = None
    epsilon: float | None = None  # spent in all rounds so far; None where there was no noise


@dataclass(frozen=True)
class Example:
    """One strip before and after the device rounds: words and their probabilities, best first."""

    context: str
    prefix: str
    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Upgrade:
    """How a device came from the release it began with to the one of what the rounds taught."""

    before: int  # release
    release: int
    how: str  # a word: by a difference, or whole
    bytes_down: int
    bundle_bytes: int  # of the whole bundle
    seconds: float


@dataclass(frozen=True)
class Totals:
    """summary.json: what a run took."""

    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    sizes: dict[str, int] = field(default_factory=dict)  # bytes by file
    bytes_per_upload: int | None = None
    memory_mb: dict[str, float] = field(default_factory=dict)  # peak, by process
    seed: int | None = None
    devices: int | None = None
    processes: int | None = None
    interpreters: dict[str, int] = field(default_factory=dict)  # devices that trained with each
    upgrade: Upgrade | None = None
    verdict: str = ""  # one sentence: does the network beat the bigram


@dataclass(frozen=True)
class Material:
    """Everything the page is made of; a part that is missing is None or empty."""

    corpus: Source | None  # what it was trained on; None: not known

    settings: Settings | None
    metrics: tuple[RoundMetrics, ...]
    systems: dict[str, score.Scored]  # in the order of the table
    rounds: tuple[RoundReport, ...]
    examples: tuple[Example, ...]
    totals: Totals | None
    privacy: str  # in the words of the bundle's lineage; empty if nothing is known of it
    device_limits: str  # whether it was trained within them; empty if nothing is known of it


def read(run: Run) -> Material:
    """The parts of a run's folder. Raises RunError naming the file that is damaged."""
    files = {path.stem: path for path in sorted(run.evaluations.glob("*.json"))}
    settings = _settings(run) if run.config.exists() else None
    mark = mark_of(run.path)
    corpus = mark.corpus if mark else None
    material = Material(
        corpus=corpus,
        settings=settings,
        metrics=_metrics(run.metrics),
        systems={
            stem: _scored(files[stem], corpus)
            for stem in sorted(files, key=lambda stem: (*SYSTEMS, stem).index(stem))
        },
        rounds=_message(RoundReports, run.path / "rounds.json", RoundReports()).rounds,
        examples=_examples(run.path / "suggestions.json"),
        totals=_message(Totals, run.path / "summary.json", None),
        privacy=_privacy(run, settings),
        device_limits="" if settings is None else limits_of(settings, _used(run)),
    )
    if not any(
        getattr(material, part)
        for part in ("settings", "metrics", "systems", "rounds", "examples", "totals")
    ):
        raise RunError(
            run.path, "holds nothing to report on", "give the folder of a run, such as runs/demo"
        )
    return material


def _privacy(run: Run, settings: Settings | None) -> str:
    exported = _message(Manifest, run.bundle / MANIFEST, None)
    if exported is not None:
        return exported.lineage.privacy
    return "" if settings is None else spent.privacy_of(settings, spent.of(run))


def _used(run: Run) -> Used | None:
    try:
        return used_of(run)
    except (ConfigError, OSError) as error:
        raise _damaged(run.users, error) from None


def _settings(run: Run) -> Settings:
    try:
        return run.settings()
    except ConfigError as error:
        raise RunError(
            run.config,
            f"is no run's ({error})",
            "give the folder of a run, such as runs/demo; nothing there was touched",
        ) from None


def _scored(path: Path, corpus: Source | None) -> score.Scored:
    scored = score.read(path)
    if corpus and scored.corpus and scored.corpus != corpus.digest:
        raise RunError(
            path,
            f"was scored on the corpus with digest {scored.corpus[:SHORT]}, expected the run's, "
            f"{corpus.digest[:SHORT]}",
            "move it away, or evaluate again without --data",
        )
    if len(scored.summary.top1_interval) != 2 or len(scored.summary.top3_interval) != 2:
        raise _damaged(path, "an interval needs two ends")
    return scored


def _message(kind: type, path: Path, missing: Any) -> Any:
    """The dataclass in a JSON file, or `missing` if there is no such file."""
    data = _bytes(path)
    if data is None:
        return missing
    try:
        return config.from_json(kind, data, path.name)
    except ConfigError as error:
        raise _damaged(path, error) from None


def _metrics(path: Path) -> tuple[RoundMetrics, ...]:
    data = _bytes(path)
    if data is None:
        return ()
    try:
        return tuple(
            _round_metrics(row)
            # whoever was killed while it wrote left half a line
            for row in csv.DictReader(io.StringIO(whole_lines(data).decode(), newline=""))
        )
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged(
            path, f"expected numbers in the columns round and loss, found {error}"
        ) from None


def _round_metrics(row: dict[str, str]) -> RoundMetrics:
    optional = [field.name for field in fields(RoundMetrics)][2:]
    others = {name: float(row[name]) if row.get(name) else None for name in optional}
    return RoundMetrics(int(row["round"]), float(row["loss"]), **others)


def best_look(metrics: tuple[RoundMetrics, ...]) -> RoundMetrics | None:
    """The first round of the best top-1 on validation users; None without a look."""
    looks = [row for row in metrics if row.top1 is not None]
    return max(looks, key=lambda row: row.top1 or 0.0, default=None)


def stopped(metrics: tuple[RoundMetrics, ...], settings: Settings | None) -> int:
    """Looks without a better top-1 after which patience ended training; 0 if it did not."""
    best = best_look(metrics)
    if best is None or settings is None:
        return 0
    rounds = LOOKS if settings.central else settings.recipe.rounds
    since = sum(row.top1 is not None for row in metrics if row.round > best.round)
    is_short = metrics[-1].round < rounds
    return since if is_short and 0 < settings.recipe.patience <= since else 0


def _examples(path: Path) -> tuple[Example, ...]:
    data = _bytes(path)
    if data is None:
        return ()
    try:
        return tuple(
            Example(
                str(row["context"]),
                str(row["prefix"]),
                *(
                    tuple((str(word), float(p)) for word, p in row[when])
                    for when in ("before", "after")
                ),
            )
            for row in json.loads(data)
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _damaged(
            path,
            "expected a list of contexts with suggestions before and after, found "
            f"{type(error).__name__} {error}",
        ) from None


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(path, error.strerror) from None


def _damaged(path: Path, problem: object) -> RunError:
    return RunError(path, f"cannot be used ({problem})", _WRITE_AGAIN)


@dataclass(frozen=True)
class Pair:
    """Top-1 recall of users with enough targets, under the network and under its rival."""

    network: str
    rival: str  # empty without one
    # (rival, network) of each user both scored; without a rival (nan, network)
    users: tuple[tuple[float, float], ...]

    @property
    def better(self) -> int:
        """Users for whom the network is better."""
        return sum(network > rival for rival, network in self.users)

    @property
    def worse(self) -> int:
        """Users for whom the rival is better."""
        return sum(network < rival for rival, network in self.users)

    @property
    def median_gain(self) -> float:
        """What the network gains for the median user, as a difference of shares."""
        return float(np.median([network - rival for rival, network in self.users]))


def pair(systems: dict[str, score.Scored]) -> Pair | None:
    """The network beside the bigram, or without one beside itself before the device rounds.

    None if no user has enough targets.
    """
    network = next(
        (name for name in (*NETWORKS, *systems) if name in systems and systems[name].users), None
    )
    if network is None:
        return None
    shares = systems[network].users
    for rival in ("kn2", "before"):
        if (
            rival != network
            and rival in systems
            and (common := [user for user in shares if user in systems[rival].users])
        ):
            return Pair(
                network, rival, tuple((systems[rival].users[user], shares[user]) for user in common)
            )
    return Pair(network, "", tuple((math.nan, share) for share in shares.values()))

"""Source: the corpus a run was trained on, found again by its digest and told from another."""

import os
from collections.abc import Sequence
from pathlib import Path

from device_runtime.bundle import MANIFEST
from device_runtime.errors import RunError
from fedboard.run import Run, Source, mark_of, run_of
from model import corpora
from model.corpus import Corpus

DEFAULT = "chitchat"
SHORT = 12  # hexadecimal digits of a digest that a person compares


def known(name: str, corpus: Corpus) -> Source:
    """What a run keeps of a corpus that was loaded by this name."""
    is_directory = name != DEFAULT and name not in corpora.TFF_CORPORA
    return Source(name, os.path.abspath(name) if is_directory else "", corpus.digest)


def of(run: Run) -> Source:
    """The corpus of a run; its digest is empty where an earlier version did not note it.

    Raises ConfigError for a run whose config.toml cannot be read.
    """
    mark = mark_of(run.path)
    if mark is not None and mark.corpus is not None:
        return mark.corpus
    return Source(run.settings().data, "", "")


def load(run: Run, elsewhere: str | None = None) -> tuple[Corpus, Source]:
    """A run's own corpus, from where it was or is now (`elsewhere`), and what to keep of it.

    Raises RunError, naming both digests, for another corpus; and for none, saying where it was.
    """
    source = of(run)
    place = elsewhere or source.path or source.name
    if not elsewhere and source.path and not Path(source.path).is_dir():
        raise RunError(
            run.path,
            f"was trained on the corpus with digest {short(source)}, expected at {source.path}, "
            "found none there",
            "name its new place with --data",
        )
    corpus = corpora.load(place)
    if source.digest and corpus.digest != source.digest:
        raise RunError(
            run.path,
            f"was trained on the corpus with digest {short(source)} at "
            f"{source.path or source.name}, found digest {corpus.digest[:SHORT]} at {place}",
            "name the corpus it was trained on with --data, or train a new run",
        )
    return corpus, known(elsewhere, corpus) if elsewhere else source


def of_target(target: str) -> Run | None:
    """The run that a target of a command belongs to: a run, its checkpoint, or a bundle in it."""
    path = Path(target)
    run = run_of(path)
    if run is None and (path / MANIFEST).is_file() and (path.parent / "config.toml").is_file():
        run = Run(path.parent)
    return run if run is not None and mark_of(run.path) is not None else None


def shared(targets: Sequence[str]) -> Run | None:
    """The run whose corpus all targets are scored on; None if none of them belongs to a run.

    Raises RunError if they were trained on different ones.
    """
    runs = [run for target in targets if (run := of_target(target)) is not None]
    if not runs:
        return None
    sources = [of(run) for run in runs]
    for run, source in zip(runs, sources, strict=True):
        if not is_same(source, sources[0]):
            raise RunError(
                "--data",
                f"expected runs of one corpus, found {_named(sources[0])} in {runs[0].path} and "
                f"{_named(source)} in {run.path}",
                "name the corpus to score them on",
            )
    # one that is there, if the corpus was moved
    there = (run for run, source in zip(runs, sources, strict=True) if os.path.isdir(source.path))
    return next(there, runs[0])


def is_same(one: Source, other: Source) -> bool:
    """Whether two are of one corpus: by digest, or by name where a digest is not known."""
    if one.digest and other.digest:
        return one.digest == other.digest
    return one.name == other.name


def for_targets(targets: Sequence[str], data: str | None) -> tuple[Corpus, str, list[str]]:
    """The corpus that targets are scored or checked on, its name, and what to say of it.

    It is the one named by `data`, else their runs' own, else `chitchat`. Raises RunError or
    CorpusError if there is none.
    """
    if data is not None:
        corpus = corpora.load(data)
        runs = [run for target in targets if (run := of_target(target)) is not None]
        return corpus, data, [note for run in runs if (note := _other(run, data, corpus))]
    run = shared(targets)
    if run is None:
        return corpora.load(DEFAULT), DEFAULT, []
    corpus, source = load(run)
    return corpus, source.name, unknown(run)


def unknown(run: Run) -> list[str]:
    """What to say of a run that does not know its corpus by digest; nothing of one that does."""
    source = of(run)
    if source.digest:
        return []
    return [
        f"{run.path} does not hold the digest of its corpus: taking {source.name} by its name alone"
    ]


def _other(run: Run, data: str, corpus: Corpus) -> str:
    source = of(run)
    if not source.digest or source.digest == corpus.digest:
        return ""
    return (
        f"{run.path} was trained on another corpus ({_named(source)}) than {data} (digest "
        f"{corpus.digest[:SHORT]})"
    )


def short(source: Source) -> str:
    """As much of a digest as a person compares."""
    return source.digest[:SHORT] or "unknown"


def _named(source: Source) -> str:
    return f"{source.path or source.name}, digest {short(source)}"

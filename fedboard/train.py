"""The training stage: corpus -> vocabulary -> federated rounds in TFF -> a run's folder.

The folder gets checkpoints, metrics and curves. What a run needs to go on is saved every few rounds
as TFF's program state. Rounds are deterministic, so a run that was killed anywhere and resumed ends
with the same bytes as one that was not: what was written after the last saved state is simply
written again.
"""

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime import bounds, config, durable, folder, weights
from device_runtime.errors import CheckpointError, RunError
from device_runtime.metrics import perplexity, recall
from device_runtime.optimizers import OPTIMIZERS
from device_runtime.shown import command
from device_runtime.text import Vocabulary
from fedboard import console
from fedboard.run import (
    TRAINED,
    Run,
    Settings,
    checkpoint_of,
    create,
    folder_kind,
    mark_of,
    require_fit,
    require_free,
    vocabulary_of,
)
from model import cohorts, corpora, evaluation, memory, network, vocabulary, worker
from model.clients import Clients
from model.corpus import Corpus, Users, token_lists
from model.recipe import Recipe


@dataclass(frozen=True)
class Best:
    """What the next evaluation is compared and linked with."""

    top1: float = -1.0
    parent: str = ""  # digest of the checkpoint evaluated last

    def values(self) -> list:
        """As a saved state keeps it."""
        return [np.float64(self.top1), self.parent]


@dataclass(frozen=True)
class How:
    """How a training runs, whatever it trains."""

    overwrite: bool = False  # replace an earlier run of its kind in the folder
    resume: bool = False  # go on from the folder's last saved state, or from the start without one
    workers: tuple[str, ...] = ()  # addresses of TFF workers on other machines
    deadline_s: float | None = None  # of a round
    kind: str = TRAINED  # whose run it is

    def __post_init__(self) -> None:
        """Raises ConfigError for a deadline that no round could keep or miss."""
        if self.deadline_s is not None:
            bounds.within("--round-deadline", self.deadline_s, 0.001, 1e9)


def train(
    settings: Settings,
    out: Path,
    how: How,
    corpus: Corpus | None = None,
    emit: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Train by `settings.recipe` and write the run's folder.

    Files appear whole, after each evaluation.

    A central run trains with all text in one place, the ceiling of what rounds can reach; its looks
    stand where rounds would. emit is called with a dict after every round. Raises CorpusError,
    ConfigError, CheckpointError or RunError before anything is written, CheckpointError if training
    diverges, and KeyboardInterrupt, the state saved, if Ctrl-C ended it.
    """
    recipe = settings.recipe
    if how.workers:
        worker.checked(list(how.workers))
    corpus = corpus or corpora.load(settings.data)
    if not settings.central:
        # refuses a population that is too small
        cohorts.start(len(corpus.train), recipe.cohort, recipe.min_separation)
    if not how.resume:
        require_free(out, how.overwrite, how.kind)
    mark = mark_of(out) if how.resume else None
    with folder.writing(out, folder_kind(mark.kind if mark else how.kind)):
        return _train(settings, Run(Path(out)), how, corpus, emit)


def _train(
    settings: Settings,
    run: Run,
    how: How,
    corpus: Corpus,
    emit: Callable[[dict[str, Any]], None] | None,
) -> Run:
    """`train` while no other process writes the run's folder."""
    recipe = settings.recipe
    words, first = beginning(settings, run, corpus, how.resume)
    console.say(
        f"network `{recipe.size}`: {network.parameters(first.weights):,} parameters, vocabulary "
        f"of {len(words):,} ids"
    )
    if recipe.encoded and recipe.plan.bits < 8 and OPTIMIZERS[recipe.server.algorithm].adaptive:
        console.say(
            f"{recipe.plan.bits} bits suit fedavgm better than {recipe.server.algorithm}, which "
            "scales their noise up: docs/results.md"
        )

    if not settings.central:  # which trains in this process, in many threads
        memory.use_one_heap()  # before TensorFlow starts its own
    from model import central, simulation  # TensorFlow and TFF, which take long

    population = Clients(corpus.train, words, recipe.plan.length)
    trainer = central if settings.central else simulation
    look_every, save_every = (
        (1, 1) if settings.central else (recipe.evaluate_every, recipe.save_every)
    )
    with contextlib.ExitStack() as stack:
        stop, loop = (
            stack.enter_context(_finish_on_interrupt()),
            stack.enter_context(asyncio.Runner()),
        )
        call = stack.enter_context(_computing(settings.central, how))
        machines = {"machines": len(how.workers)} if how.workers else {}
        training = trainer.Training(first.weights, population, recipe, **machines)
        state = call(training.start, "start")
        if not how.resume:
            create(run.path, settings, how.overwrite, how.kind)
        states, best = _States(run.state, loop.run), Best()
        # before anything is written: it may be damaged
        saved = states.load([*trainer.to_values(state), *best.values()])
        _write_beginning(run, settings, words, first)
        curves = _Curves(run, loop.run)
        if saved:
            *values, top1, parent = saved
            state, best = trainer.from_values(values, state), Best(float(top1), parent.decode())
            console.say(f"going on after round {state.round}")
        advance = stack.enter_context(console.progress("training", training.rounds))
        stack.enter_context(_quick_collections())
        seen = ""
        while state.round < training.rounds and not stop.is_set():
            done = call(lambda state=state: training.next(state), f"round {state.round + 1}")
            # TFF leaves a round's weights behind in cycles, and among so many objects Python would
            # not look for them soon
            gc.collect()
            state, measured = done.state, done.measured()
            if is_due(done.number, look_every, training.rounds) or done.number == 1:
                looked, best = look(run, done, corpus.validation, words, recipe, best)
                seen = f", top-1 {looked['top1']:.1%}"
                measured |= looked
            curves.release(done.number, measured)
            if is_due(done.number, save_every, training.rounds) or stop.is_set():
                states.save([*trainer.to_values(state), *best.values()], state.round)
            if emit:
                emit({"round": done.number, "rounds": training.rounds, **measured})
            if measured.get("dropped"):
                console.say(
                    f"  round {done.number}: {measured['dropped']} of {recipe.cohort} clients "
                    "dropped, their updates were not finite"
                )
            advance(
                done.number,
                f"loss {done.loss:.2f}{seen}, {done.targets / max(done.seconds, 1e-9):,.0f} "
                "tokens/s",
            )
        # if Ctrl-C came after the round's own
        states.save([*trainer.to_values(state), *best.values()], state.round)
    if state.round < training.rounds:
        console.say(
            f"stopped after round {state.round}; to go on: "
            f"{command('train', '--out', run.path, '--resume')}"
        )
        raise KeyboardInterrupt
    return run


def beginning(
    settings: Settings, run: Run, corpus: Corpus, resume: bool
) -> tuple[Vocabulary, weights.Checkpoint]:
    """Vocabulary and first weights: the run's own if it is resumed, those of `settings.init`, or
    new ones. Writes nothing.

    Raises CheckpointError if what it starts from is missing or of another size, ConfigError for a
    size that is none.
    """
    recipe = settings.recipe
    size = network.size_named(recipe.size)
    if (resume and run.first.is_file()) or settings.init:
        path = run.first if resume and run.first.is_file() else checkpoint_of(Path(settings.init))
        first, words = weights.read(path), vocabulary_of(path)
        require_fit(first, words, path)
        if network.size_of(first.weights) != size:
            raise CheckpointError(
                path, f"holds a network of another size than `{recipe.size}`", "pass its --size"
            )
        return words, first
    tokens = token_lists(corpus.train, corpus.most)
    words = (vocabulary.build_unigram if recipe.tokenizer == "unigram" else vocabulary.build)(
        tokens, recipe.vocabulary
    )
    return words, weights.Checkpoint(
        network.initial_weights(size, words, np.random.default_rng([recipe.seed, 0])),
        tokenizer=words.hash,
    )


def resumed(out: Path, rounds: int | None) -> Settings:
    """The settings of the run in a folder, with more rounds if asked.

    Raises RunError if there is no run, or it has done more rounds than asked.
    """
    run = Run(Path(out))
    if not run.config.is_file():
        raise RunError(
            run.path, "holds no run to go on with", "leave out --resume, or name its folder"
        )
    settings = run.settings()
    if rounds is None:
        return settings
    if settings.central:
        raise RunError("--rounds", "a central run has none", "leave it out")
    done = max(
        (
            int(number)
            for saved in run.state.glob(f"{STATE}*")
            if (number := saved.name.removeprefix(STATE)).isdigit()
        ),
        default=0,
    )
    if done > rounds:
        raise RunError(
            "--rounds",
            f"expected {done} or more, which the run has done, found {rounds}",
            "raise it",
        )
    return replace(settings, recipe=replace(settings.recipe, rounds=rounds))


def _write_beginning(
    run: Run, settings: Settings, words: Vocabulary, first: weights.Checkpoint
) -> None:
    """What a run is from its first moment.

    The weights go last, so that where they are, the rest is.
    """
    run.checkpoints.mkdir(exist_ok=True)
    durable.share(run.config, config.to_toml(settings).encode())
    durable.share(run.tokenizer, words.model)
    durable.share(run.first, weights.to_bytes(first))


def look(
    run: Run,
    done: Any,
    validation: Users,
    words: Vocabulary,
    recipe: Recipe,
    best: Best,
) -> tuple[dict[str, float], Best]:
    """Score a round's weights and write them as the last checkpoint, and as the best if they are.

    done is what the trainer's `next` gives: it has a `number` and `weights`.
    """
    total = evaluation.evaluate(
        evaluation.engine_of(done.weights, words),
        validation,
        words,
        evaluation.Scope(recipe.evaluate_utterances, recipe.evaluate_users),
    ).total
    measured = {
        "top1": recall(total, "top1"),
        "top3": recall(total, "top3"),
        "perplexity": perplexity(total),
    }
    checkpoint = weights.to_bytes(
        weights.Checkpoint(done.weights, done.number, best.parent, words.hash)
    )
    durable.share(run.last, checkpoint)
    if measured["top1"] > best.top1:
        durable.share(run.best, checkpoint)
    console.say(
        f"  {done.number}: validation top-1 {measured['top1']:.1%}, top-3 {measured['top3']:.1%}, "
        f"perplexity {measured['perplexity']:.0f}"
    )
    return measured, Best(max(best.top1, measured["top1"]), weights.digest(checkpoint))


@contextlib.contextmanager
def _computing(centrally: bool, how: How) -> Iterator[Callable[[Callable, str], Any]]:
    """A function that calls another one where training is computed; the other has a name.

    The name is said if it misses the deadline.
    """
    if centrally:
        yield lambda compute, what: compute()
        return
    addresses = list(how.workers)
    with worker.remote(addresses) if addresses else worker.running(_cores(), restarts=3) as on:
        yield lambda compute, what: on.call(compute, how.deadline_s, what)


def is_due(number: int, every: int, rounds: int) -> bool:
    """Whether something done every so many rounds, and in the last, is due.

    >>> [number for number in range(1, 8) if is_due(number, 3, 7)]
    [3, 6, 7]
    """
    return number % every == 0 or number == rounds


STATE = "program_state_"  # what TFF calls a saved state, before its round


class _States:
    """Saved program states, the last two, in TFF's own format.

    A state half written when the process was killed is not one.
    """

    def __init__(self, folder: Path, run: Callable[[Coroutine], Any]):
        import tensorflow_federated as tff

        for leftover in folder.glob("*_temp*"):
            shutil.rmtree(leftover)
        self._folder, self._run = folder, run
        self._manager = tff.program.FileProgramStateManager(
            folder, STATE, keep_total=2, keep_first=False
        )

    def save(self, values: list, version: int) -> None:
        from model.simulation import release_memory

        if version not in (self._run(self._manager.get_versions()) or []):
            self._run(self._manager.save(values, version))
            release_memory()

    def load(self, like: list) -> list | None:
        """The newest state, or None.

        Raises CheckpointError for one that is damaged or of another training.
        """
        versions = self._run(self._manager.get_versions())
        if not versions:
            return None
        try:
            return self._run(self._manager.load(versions[-1], like))
        except Exception as error:  # TensorFlow's errors have no base of their own
            remedy = "remove it to go on from the one before"
            raise CheckpointError(
                self._folder / f"{STATE}{versions[-1]}",
                f"cannot be read ({type(error).__name__})",
                remedy,
            ) from error


class _Curves:
    """metrics.csv and TensorBoard, by TFF's own release managers.

    A round released again replaces what followed it.
    """

    def __init__(self, run: Run, wait: Callable[[Coroutine], Any]):
        import tensorflow_federated as tff

        self._wait = wait
        self._managers = [
            tff.program.CSVFileReleaseManager(run.metrics, key_fieldname="round"),
            tff.program.TensorBoardReleaseManager(run.path / "tensorboard"),
        ]

    def release(self, number: int, measured: dict[str, float]) -> None:
        async def both() -> None:
            for manager in self._managers:
                await manager.release(measured, number)

        self._wait(both())


@contextlib.contextmanager
def _quick_collections() -> Iterator[None]:
    """Spare the garbage collector what is there already.

    TensorFlow's objects are so many that looking through them takes long.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _finish_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one leaves at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def first(*_) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.note("finishing the round; Ctrl-C again leaves at once")

    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        # whoever stops is leaving: one more Ctrl-C has nothing to add
        signal.signal(signal.SIGINT, signal.SIG_IGN if stop.is_set() else before)


def _cores() -> int:
    return len(os.sched_getaffinity(0))

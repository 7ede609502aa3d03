"""The training stage: corpus -> vocabulary -> federated rounds in TFF -> checkpoints, metrics and curves in a run's folder.

What a run needs to go on is saved every few rounds as TFF's program state. Rounds are deterministic, so a run that was killed anywhere and
resumed ends with the same bytes as one that was not: what was written after the last saved state is simply written again.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from device_runtime import config, weights
from device_runtime.errors import CheckpointError, RunError
from device_runtime.text import Vocabulary
from fedboard import console
from fedboard.run import Run, Settings, checkpoint_of, create, require_fit, vocabulary_of, write_whole
from model import cohorts, corpus, evaluation, network, vocabulary, worker
from model.clients import Clients
from model.recipe import Recipe


@dataclass(frozen=True)
class Best:
    """What the next evaluation is compared and linked with."""

    top1: float = -1.0
    parent: str = ""  # digest of the checkpoint evaluated last


def train(
    settings: Settings,
    out: Path,
    overwrite: bool = False,
    users: corpus.Corpus | None = None,
    resume: bool = False,
    init: Path | None = None,
    workers: tuple[str, ...] = (),
    deadline_s: float | None = None,
    emit=None,
) -> Run:
    """Train by `settings.recipe` and write the run's folder. Files appear whole, after each evaluation.

    resume goes on from the folder's last saved state, or from the start if there is none; init takes first weights and tokenizer from a
    checkpoint; workers are addresses of TFF workers on other machines; emit is called with a dict after every round.
    Raises CorpusError, ConfigError or RunError before anything is written, CheckpointError if training diverges, and KeyboardInterrupt, the
    state saved, if Ctrl-C ended it.
    """
    recipe = settings.recipe
    if workers:
        worker.checked(list(workers))
    users = users or corpus.load(settings.data)
    cohorts.start(len(users.train), recipe.cohort, recipe.min_separation)  # refuses a population that is too small
    found, run, words, initial = prepare(settings, out, overwrite, users, resume, init)

    from model import simulation  # TensorFlow and TFF: some twenty seconds

    population = Clients(found.train, words, recipe.plan.length)
    where = worker.remote(list(workers)) if workers else worker.running(_cores(), restarts=3)
    with contextlib.ExitStack() as stack:
        curves, stop = _Curves(run), stack.enter_context(_finish_on_interrupt())
        on = stack.enter_context(where)
        training = simulation.Training(initial, population, recipe)
        state = on.call(training.start, deadline_s, "start")
        states, best = _States(run.checkpoints / "state"), Best()
        if resume and (saved := states.load([*simulation.to_values(state), best.top1, best.parent])):
            *values, top1, parent = saved
            state, best = simulation.from_values(values, state), Best(float(top1), parent.decode())
            console.say(f"going on after round {state.round}")
        advance = stack.enter_context(console.progress("training", recipe.rounds))
        seen = ""
        while state.round < recipe.rounds and not stop.is_set():
            done = on.call(lambda state=state: training.next(state), deadline_s, f"round {state.round + 1}")
            state = done.state
            measured = {"loss": done.loss, "targets": done.targets, "dropped": done.dropped, "step": done.step, "seconds": done.seconds}
            if is_due(done.number, recipe.evaluate_every, recipe.rounds) or done.number == 1:
                looked, best = look(run, done.weights, done.number, found, words, recipe, best)
                seen = f", top-1 {looked['top1']:.1%}"
                measured |= looked
            curves.release(done.number, measured)
            if is_due(done.number, recipe.save_every, recipe.rounds) or stop.is_set():
                states.save([*simulation.to_values(state), best.top1, best.parent], state.round)
            if emit:
                emit({"round": done.number, "rounds": recipe.rounds, **measured})
            if done.dropped:
                console.say(f"  round {done.number}: {done.dropped} of {done.clients} clients dropped, their updates were not finite")
            advance(done.number, f"loss {done.loss:.2f}{seen}, {done.targets / max(done.seconds, 1e-9):,.0f} tokens/s")
    if state.round < recipe.rounds:
        console.say(f"stopped after round {state.round}; `fedboard train --out {run.path} --resume` goes on")
        raise KeyboardInterrupt
    return run


def train_centrally(
    settings: Settings, out: Path, overwrite: bool = False, users: corpus.Corpus | None = None, init: Path | None = None, emit=None
) -> Run:
    """The same network trained with all train users' text in one place: the ceiling. Writes the same folder; a look stands where a round would."""
    recipe = settings.recipe
    found, run, words, initial = prepare(settings, out, overwrite, users, False, init)

    from model import central  # TensorFlow

    best = Best()
    curves = _Curves(run)
    with console.progress("training centrally", central.LOOKS) as advance:
        for done in central.train(initial, Clients(found.train, words, recipe.plan.length), recipe):
            looked, best = look(run, done.weights, done.number, found, words, recipe, best)
            measured = {"loss": done.loss, "targets": done.targets, "seconds": done.seconds, **looked}
            curves.release(done.number, measured)
            if emit:
                emit({"look": done.number, **measured})
            advance(done.number, f"loss {done.loss:.2f}, top-1 {looked['top1']:.1%}, {done.targets / max(done.seconds, 1e-9):,.0f} tokens/s")
    return run


def prepare(
    settings: Settings, out: Path, overwrite: bool, users: corpus.Corpus | None, resume: bool, init: Path | None
) -> tuple[corpus.Corpus, Run, Vocabulary, weights.Weights]:
    """Corpus, run folder, vocabulary and first weights. Everything that can be refused is refused before the folder is written."""
    recipe = settings.recipe
    size = network.size_named(recipe.size)
    found = users or corpus.load(settings.data)
    run = Run(Path(out))
    rng = np.random.default_rng([recipe.seed, 0])
    start = None
    if init:
        path = checkpoint_of(init)
        start, words = weights.read(path), vocabulary_of(path)
        require_fit(start, words, path)
        if network.size_of(start.weights) != size:
            raise CheckpointError(path, f"holds a network of another size than `{recipe.size}`", "pass its --size")
    elif resume and run.tokenizer.is_file():
        words = Vocabulary.read(run.tokenizer)
    elif recipe.tokenizer == "unigram":
        words = vocabulary.build_unigram(corpus.token_lists(found.train, found.most), recipe.vocabulary)
    else:
        words = vocabulary.build(corpus.token_lists(found.train, found.most), recipe.vocabulary)
    if resume:
        if not run.config.is_file():
            raise RunError(run.path, "holds no run to go on with", "leave out --resume, or name its folder")
        run.checkpoints.mkdir(exist_ok=True)
    else:
        run = create(out, settings, overwrite)
    write_whole(run.config, config.to_toml(settings).encode())
    write_whole(run.tokenizer, words.model)
    if init or (resume and (run.checkpoints / "first.safetensors").is_file()):
        first = start or weights.read(run.checkpoints / "first.safetensors")
        initial = first.weights
        write_whole(run.checkpoints / "first.safetensors", weights.to_bytes(first))
    else:
        initial = network.initial_weights(size, words, rng)
    console.say(f"network `{recipe.size}`: {network.parameters(initial):,} parameters, vocabulary of {len(words):,} ids")
    return found, run, words, initial


def resumed(out: Path, rounds: int | None) -> Settings:
    """The settings of the run in a folder, with more rounds if asked. Raises RunError if there is no run."""
    run = Run(Path(out))
    if not run.config.is_file():
        raise RunError(run.path, "holds no run to go on with", "leave out --resume, or name its folder")
    settings = run.settings()
    return replace(settings, recipe=replace(settings.recipe, rounds=rounds)) if rounds else settings


def look(
    run: Run, found_weights: weights.Weights, number: int, found: corpus.Corpus, words: Vocabulary, recipe: Recipe, best: Best
) -> tuple[dict[str, float], Best]:
    """Score weights on validation users and write them as the last checkpoint, and as the best if they are."""
    total = evaluation.evaluate(
        evaluation.network_engine(found_weights), found.validation, words, recipe.evaluate_utterances, recipe.evaluate_users
    ).total
    measured = {"top1": evaluation.recall(total, "top1"), "top3": evaluation.recall(total, "top3"), "perplexity": evaluation.perplexity(total)}
    checkpoint = weights.to_bytes(weights.Checkpoint(found_weights, number, best.parent, words.hash))
    write_whole(run.last, checkpoint)
    if measured["top1"] > best.top1:
        write_whole(run.best, checkpoint)
    console.say(f"  {number}: validation top-1 {measured['top1']:.1%}, top-3 {measured['top3']:.1%}, perplexity {measured['perplexity']:.0f}")
    return measured, Best(max(best.top1, measured["top1"]), weights.digest(checkpoint))


def is_due(number: int, every: int, rounds: int) -> bool:
    return number % every == 0 or number == rounds


class _States:
    """Saved program states, the last two, in TFF's own format; a state half written when the process was killed is not one."""

    def __init__(self, folder: Path):
        import tensorflow_federated as tff

        for leftover in folder.glob("*_temp*"):
            shutil.rmtree(leftover)
        self._manager = tff.program.FileProgramStateManager(folder, keep_total=2, keep_first=False)

    def save(self, values: list, version: int) -> None:
        if version not in (asyncio.run(self._manager.get_versions()) or []):
            asyncio.run(self._manager.save(values, version))

    def load(self, like: list) -> list | None:
        """The newest state, or None."""
        versions = asyncio.run(self._manager.get_versions())
        return asyncio.run(self._manager.load(versions[-1], like)) if versions else None


class _Curves:
    """metrics.csv and TensorBoard, by TFF's own release managers. A round released again replaces what followed it."""

    def __init__(self, run: Run):
        import tensorflow_federated as tff

        self._managers = [
            tff.program.CSVFileReleaseManager(run.metrics, key_fieldname="round"),
            tff.program.TensorBoardReleaseManager(run.path / "tensorboard"),
        ]

    def release(self, number: int, measured: dict[str, float]) -> None:
        async def both() -> None:
            for manager in self._managers:
                await manager.release(measured, number)

        asyncio.run(both())


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
        console.errors.print("finishing the round; Ctrl-C again leaves at once")

    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _cores() -> int:
    return len(os.sched_getaffinity(0))

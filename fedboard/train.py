"""The training stage: corpus -> vocabulary -> federated rounds in TFF -> a run's folder.

The folder gets checkpoints, metrics and curves. What a run needs to go on is saved every few rounds
as TFF's program state. Rounds are deterministic, so a run that was killed anywhere and resumed ends
with the same bytes as one that was not: what was written after the last saved state is simply
written again.
"""

import asyncio
import contextlib
import gc
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime import bounds, config, durable, folder, weights
from device_runtime.errors import CheckpointError, RunError
from device_runtime.metrics import macro, perplexity, recall
from device_runtime.optimizers import OPTIMIZERS
from device_runtime.shown import rounded_up
from device_runtime.text import FIRST_WORD, Vocabulary
from fedboard import console, presence, source, spent, word_lists
from fedboard.run import (
    MARK,
    TRAINED,
    Run,
    Settings,
    Source,
    Used,
    checkpoint_of,
    create,
    folder_kind,
    mark_of,
    require_fit,
    require_free,
    run_of,
    vocabulary_of,
)
from fedboard.saved import ADDED, Best, Curves, States, best_of, going_on, versions_of, writing
from model import (
    cohorts,
    corpora,
    evaluation,
    forms,
    memory,
    network,
    scripts,
    spellings,
    vocabulary,
    worker,
)
from model.clients import Clients
from model.corpus import Corpus, Users, few, token_lists
from model.measures import Evaluation
from model.recipe import Recipe


@dataclass(frozen=True)
class How:
    """How a training runs, whatever it trains."""

    overwrite: bool = False  # replace an earlier run of its kind in the folder
    resume: bool = False  # go on from the folder's last saved state, or from the start without one
    workers: tuple[str, ...] = ()  # addresses of TFF workers on other machines
    deadline_s: float | None = None  # of a round
    kind: str = TRAINED  # whose run it is
    data: str | None = None  # where the corpus of a resumed run is now, if it was moved
    open_worker: bool = False  # let the worker of this machine listen to strangers, if it has to

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
    if how.resume:
        corpus, its_source = source.load(Run(Path(out)), how.data)
        for note in source.unknown(Run(Path(out))):
            console.say(note)
    else:
        corpus = corpus or corpora.load(settings.data)
        its_source = source.known(settings.data, corpus)
    if not settings.central:
        # refuses a population that is too small
        cohorts.start(len(corpus.train), recipe.cohort, recipe.separation)
    if not how.resume:
        require_free(out, how.overwrite, how.kind)
    mark = mark_of(out) if how.resume else None
    with folder.writing(out, folder_kind(mark.kind if mark else how.kind)):
        if not its_source.digest:  # a run of an earlier version: from here on it is known
            its_source = source.known(its_source.name, corpus)
        if mark and mark.corpus != its_source:  # or it was moved
            known = replace(mark, corpus=its_source)
            durable.share(Path(out) / MARK, config.to_json(known))
        return _train(settings, Run(Path(out)), how, (corpus, its_source), emit)


def _train(
    settings: Settings,
    run: Run,
    how: How,
    data: tuple[Corpus, Source],
    emit: Callable[[dict[str, Any]], None] | None,
) -> Run:
    """`train` while no other process writes the run's folder."""
    recipe, (corpus, its_source) = settings.recipe, data
    words, first = beginning(settings, run, corpus, how.resume)
    console.say(
        f"network `{recipe.size}`: {network.parameters(first.weights):,} parameters, vocabulary "
        f"of {len(words):,} ids"
    )
    if recipe.encoded and recipe.plan.bits < 4 and OPTIMIZERS[recipe.server.algorithm].adaptive:
        console.say(
            f"{recipe.plan.bits} bits suit fedavgm better than {recipe.server.algorithm}, which "
            "scales their noise up: docs/results.md"
        )

    there = presence.of_run(run.path, settings.population, len(corpus.train))
    if not settings.central:  # which trains in this process, in many threads
        memory.use_one_heap()  # before TensorFlow starts its own
    from model import central, simulation  # TensorFlow and TFF, which take long

    population = Clients(corpus.train, words, recipe.plan.length)
    trainer = central if settings.central else simulation
    look_every, save_every, unit = (
        (1, 1, "look") if settings.central else (recipe.evaluate_every, recipe.save_every, "round")
    )
    with contextlib.ExitStack() as stack:
        stop, loop = (
            stack.enter_context(_finish_on_interrupt()),
            stack.enter_context(asyncio.Runner()),
        )
        call = stack.enter_context(_computing(settings.central, how))
        options: dict[str, Any] = {"machines": len(how.workers)} if how.workers else {}
        if there is not None:
            options["present"] = there
            console.say(
                f"clients are drawn as the devices of {settings.population} are ready; "
                f"{there.missing:,} of {len(corpus.train):,} have no device"
            )
        training = trainer.Training(first.weights, population, recipe, **options)
        if recipe.device_limits and not settings.central:
            console.say(
                f"{training.left_out:,} of {len(corpus.train):,} train users are left out: of "
                "devices with so little typed nothing is learnt"
            )
        if recipe.noise is not None and not settings.central:
            console.say(_claim(recipe))
        state = call(training.start, "start")
        if not how.resume:
            create(run.path, settings, how.overwrite, how.kind, its_source)
        states, best = States(run, loop.run), Best()
        # before anything is written: it may be damaged
        values = trainer.to_values(state)
        kept = states.load([*values, *best.values()], ADDED)
        with writing(run, run.path):
            _write_beginning(run, settings, words, first, corpus)
            if there is not None:
                presence.keep(there, run.path)
            if recipe.device_limits and not settings.central:
                names = list(corpus.train)
                used = Used(len(names), tuple(names[i] for i in training.members))
                durable.share(run.users, config.to_json(used))
        curves = Curves(run, loop.run)
        if kept:
            state = trainer.from_values(kept[: len(values)], state)
            best = best_of(kept[len(values) :])
            if not best.round and run.best.is_file():
                best = replace(best, round=weights.read(run.best).round)
            console.say(f"going on after {unit} {state.round}")
        best = best.over(training.rounds)
        advance = stack.enter_context(console.progress("training", training.rounds))
        stack.enter_context(_quick_collections())
        seen, over = "", None
        while (
            state.round < training.rounds
            and not best.has_waited(recipe.patience)
            and not stop.is_set()
        ):
            if not settings.central and (over := training.over_budget(state)):
                break
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
                f"loss {done.loss:.2f}{seen}{_so_far(recipe, measured)}, "
                f"{done.targets / max(done.seconds, 1e-9):,.0f} tokens/s",
            )
        # if Ctrl-C came after the round's own
        states.save([*trainer.to_values(state), *best.values()], state.round)
    waited = best.has_waited(recipe.patience)
    if over is not None:
        console.say(
            f"ended before round {state.round + 1}, which would spend epsilon "
            f"{rounded_up(over.epsilon)} of the budget of {recipe.privacy.epsilon:g} at delta "
            f"{over.delta:g}; more noise, a "
            "longer separation or a larger budget give more rounds"
        )
    elif state.round < training.rounds and not waited:
        console.say(f"stopped after {unit} {state.round}; to go on: {going_on(run)}")
        raise KeyboardInterrupt
    console.say(ending(best, f"{unit} {state.round}", unit, recipe.patience if waited else 0))
    return run


def _claim(recipe: Recipe) -> str:
    """What is said of a run's noise before its first round."""
    of = recipe.privacy
    said = f"noise on every sum: {of.mechanism} of multiplier {of.noise_multiplier:g}"
    if goal := spent.stands_for(recipe):
        said += (
            f"; {recipe.cohort:,} clients stand for {goal:,} reports a round, so the noise is "
            f"scaled by {recipe.cohort:,} / {goal:,}, and epsilon is that of such a fleet: no "
            "guarantee for these clients"
        )
    return said


def _so_far(recipe: Recipe, measured: dict[str, Any]) -> str:
    if "epsilon" not in measured:
        return ""
    return f", {spent.in_progress(recipe, measured['epsilon'])}"


def ending(best: Best, last: str, unit: str, patience: int) -> str:
    """What is said of a run's best look, and of its end; of patience where that ended it.

    >>> ending(Best(0.182, "", 80, 3), "round 140", "round", 3)
    'best round 80: validation top-1 18.2%; stopped after round 140: no better for 3 looks; \
raise --patience or --rounds to go on'
    >>> ending(Best(0.182, "", 80), "round 80", "round", 0)
    'best round 80: validation top-1 18.2%'
    """
    number = best.round or "(unknown)"  # saved by an earlier version
    said = f"best {unit} {number}: validation top-1 {best.top1:.1%}"
    if not patience:
        return said
    looks = f"{patience} look{'s' * (patience > 1)}"
    more = "--patience or --rounds" if unit == "round" else "--patience"
    return f"{said}; stopped after {last}: no better for {looks}; raise {more} to go on"


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
    words = new_vocabulary(settings, corpus)
    return words, weights.Checkpoint(
        network.initial_weights(size, words, np.random.default_rng([recipe.seed, 0])),
        tokenizer=words.hash,
    )


def new_vocabulary(settings: Settings, corpus: Corpus) -> Vocabulary:
    """The vocabulary of a new run: of the words a task has counted, or those of the corpus, counted
    by person where so many must have typed each, else by use.

    Raises RunError for counts that cannot be read and for words where most letters are of scripts
    without spaces, VocabularyError where no word is left.
    """
    recipe = settings.recipe
    if recipe.tokenizer == "words":
        _require_spaces(corpus)
    if settings.words:
        counted = word_lists.read_tsv(Path(settings.words))
        if recipe.least_people:
            counted = counted.least(recipe.least_people)
        return vocabulary.of_people(counted.counts, recipe.vocabulary)
    users = few(corpus, vocabulary.COUNTED)
    if recipe.least_people:
        people = word_lists.people_of(users)
        ranked = sorted(people.items(), key=lambda each: (-each[1], each[0]))
        enough = [each for each in ranked if each[1] >= recipe.least_people]
        return vocabulary.of_people(enough, recipe.vocabulary)
    if recipe.tokenizer == "unigram":
        return vocabulary.build_unigram(token_lists(users), recipe.vocabulary)
    return vocabulary.build(token_lists(users), recipe.vocabulary, _left_out(corpus))


def _require_spaces(corpus: Corpus) -> None:
    """Raises RunError if words would be whole sentences: most letters are of scripts without
    spaces.
    """
    some = islice(token_lists(corpus.train), 20_000)  # tell the scripts of all
    share = scripts.share_spaceless(token for tokens in some for token in tokens)
    if share >= scripts.MOST:
        raise RunError(
            "--tokenizer",
            f"expected unigram for a corpus with {share:.0%} of its letters in scripts without "
            "spaces between words, found words",
            f"{scripts.REMEDY}, and with a --vocabulary of some thousand pieces",
        )


def _left_out(corpus: Corpus) -> dict[str, spellings.LeftOut]:
    """Words of a corpus that stay out of its vocabulary."""
    users = few(corpus, vocabulary.COUNTED)
    return spellings.left_out(spellings.uses_of(users), len(users), corpus.language)


def _write_words(run: Run, settings: Settings, words: Vocabulary, corpus: Corpus) -> None:
    """How the words of a new vocabulary are usually written, and which ones stayed out of it."""
    if settings.init:
        before = run_of(checkpoint_of(Path(settings.init)))
        if before and before.written.is_file():
            durable.share(run.written, before.written.read_bytes())
        return
    users = few(corpus, vocabulary.COUNTED)
    if settings.recipe.tokenizer == "words":
        usual = forms.usual_forms(users, words.tokens[FIRST_WORD:], corpus.language)
        durable.share(run.written, forms.encoded(usual))
        if not settings.words and not settings.recipe.least_people:
            said = spellings.summary(_left_out(corpus), len(users))
            durable.share(run.left_out, config.to_json(said))


def resumed(out: Path, rounds: int | None, patience: int | None = None) -> Settings:
    """The settings of the run in a folder, with more rounds or another patience if asked.

    Raises RunError if there is no run, or it has done more rounds than asked.
    """
    run = Run(Path(out))
    if not run.config.is_file():
        raise RunError(
            run.path, "holds no run to go on with", "leave out --resume, or name its folder"
        )
    settings = run.settings()
    if patience is not None:
        settings = replace(settings, recipe=replace(settings.recipe, patience=patience))
    if rounds is None:
        return settings
    if settings.central:
        raise RunError("--rounds", "a central run has none", "leave it out")
    done = max(versions_of(run), default=0)
    if done > rounds:
        raise RunError(
            "--rounds",
            f"expected {done} or more, which the run has done, found {rounds}",
            "raise it",
        )
    return replace(settings, recipe=replace(settings.recipe, rounds=rounds))


def _write_beginning(
    run: Run, settings: Settings, words: Vocabulary, first: weights.Checkpoint, corpus: Corpus
) -> None:
    """What a run is from its first moment.

    The weights go last, so that where they are, the rest is.
    """
    run.checkpoints.mkdir(exist_ok=True)
    durable.share(run.config, config.to_toml(settings).encode())
    durable.share(run.tokenizer, words.model)
    if not run.written.is_file():
        _write_words(run, settings, words, corpus)
    if settings.words and not run.counts.is_file():
        durable.share(run.counts, Path(settings.words).read_bytes())
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
    scored = evaluation.evaluate(
        evaluation.engine_of(done.weights, words),
        validation,
        words,
        evaluation.Scope(recipe.evaluate_utterances, recipe.evaluate_users),
    )
    measured = measures_of(scored)
    checkpoint = weights.to_bytes(
        weights.Checkpoint(done.weights, done.number, best.parent, words.hash)
    )
    with writing(run, run.checkpoints):
        durable.share(run.last, checkpoint)
        if measured["top1"] > best.top1:
            durable.share(run.best, checkpoint)
    console.say(
        f"  {done.number}: validation top-1 {measured['top1']:.1%}, top-3 {measured['top3']:.1%}, "
        f"perplexity {measured['perplexity']:.0f}"
    )
    return measured, best.after(measured["top1"], done.number, weights.digest(checkpoint))


def measures_of(scored: Evaluation) -> dict[str, float]:
    """What a look adds to the curves: recall and perplexity over all targets, and how the top-1 of
    users with enough targets is spread, if there are such users.
    """
    total = scored.total
    _, *spread = macro(list(scored.users.values()), "top1")
    names = ("top1_p10", "top1_p50", "top1_p90")
    return {
        "top1": recall(total, "top1"),
        "top3": recall(total, "top3"),
        "perplexity": perplexity(total),
        **({} if math.isnan(spread[0]) else dict(zip(names, spread, strict=True))),
    }


@contextlib.contextmanager
def _computing(centrally: bool, how: How) -> Iterator[Callable[[Callable, str], Any]]:
    """A function that calls another one where training is computed; the other has a name.

    The name is said if it misses the deadline.
    """
    if centrally:
        yield lambda compute, what: compute()
        return
    addresses = list(how.workers)
    with (
        worker.remote(addresses)
        if addresses
        else worker.running(_cores(), open_worker=how.open_worker, tell=console.note)
    ) as on:
        yield lambda compute, what: on.call(compute, how.deadline_s, what)


def is_due(number: int, every: int, rounds: int) -> bool:
    """Whether something done every so many rounds, and in the last, is due.

    >>> [number for number in range(1, 8) if is_due(number, 3, 7)]
    [3, 6, 7]
    """
    return number % every == 0 or number == rounds


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

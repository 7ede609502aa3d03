"""The training stage: corpus -> vocabulary -> federated rounds in TFF -> checkpoints, metrics and curves in a run's folder."""

import asyncio
from pathlib import Path

import numpy as np

from device_runtime import weights
from device_runtime.errors import CorpusError
from fedboard import console
from fedboard.run import Run, Settings, create, write_whole
from model import corpus, evaluation, network, vocabulary


def train(settings: Settings, out: Path, overwrite: bool = False, users: corpus.Corpus | None = None) -> Run:
    """Train by `settings.recipe` and write the run's folder. Files appear whole, after each evaluation.

    Raises CorpusError, ConfigError or RunError before anything is written, and CheckpointError if training diverges.
    """
    recipe = settings.recipe
    size = network.size_named(recipe.size)
    found = users or corpus.load(settings.data)
    run = create(out, settings, overwrite)
    words = vocabulary.build(corpus.token_lists(found.train), recipe.vocabulary)
    write_whole(run.tokenizer, words.model)
    initial = network.initial_weights(size, words, np.random.default_rng([recipe.seed, 0]))
    console.say(f"network `{recipe.size}`: {network.parameters(initial):,} parameters, vocabulary of {len(words):,} ids")

    from model import simulation, worker  # TensorFlow and TFF: some twenty seconds

    population = [rows for rows in simulation.clients(found.train, words, recipe.plan) if len(rows)]
    if len(population) < recipe.cohort:
        raise CorpusError(settings.data, f"{len(population)} train users, fewer than one cohort of {recipe.cohort}", "lower --cohort")
    best, parent = -1.0, ""
    with _Curves(run) as curves, worker.running(_cores()), console.progress("training", recipe.rounds) as advance:
        for done in simulation.train(initial, population, recipe):
            measured = {"loss": done.loss, "targets": done.targets, "seconds": done.seconds}
            if done.number % recipe.evaluate_every == 0 or done.number in (1, recipe.rounds):
                look = evaluation.evaluate(
                    evaluation.network_engine(done.weights), found.validation, words, recipe.evaluate_utterances, recipe.evaluate_users
                ).total
                top1, top3, perplexity = (evaluation.recall(look, "top1"), evaluation.recall(look, "top3"), evaluation.perplexity(look))
                measured |= {"top1": top1, "top3": top3, "perplexity": perplexity}
                checkpoint = weights.to_bytes(weights.Checkpoint(done.weights, done.number, parent, words.hash))
                parent = weights.digest(checkpoint)
                write_whole(run.last, checkpoint)
                if top1 > best:
                    best = top1
                    write_whole(run.best, checkpoint)
                note = f"round {done.number}: loss {done.loss:.3f}, validation top-1 {top1:.1%}, top-3 {top3:.1%}, perplexity {perplexity:.0f}"
                console.say(f"  {note}")
            curves.release(done.number, measured)
            advance(done.number, f"loss {done.loss:.2f}, {done.targets / max(done.seconds, 1e-9):,.0f} tokens/s")
    return run


class _Curves:
    """metrics.csv and TensorBoard, by TFF's own release managers."""

    def __init__(self, run: Run):
        import tensorflow_federated as tff

        self._managers = [
            tff.program.CSVFileReleaseManager(run.metrics, key_fieldname="round"),
            tff.program.TensorBoardReleaseManager(run.path / "tensorboard"),
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def release(self, number: int, measured: dict[str, float]) -> None:
        async def both() -> None:
            for manager in self._managers:
                await manager.release(measured, number)

        asyncio.run(both())


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))

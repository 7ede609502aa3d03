"""Evaluation on corpora small enough to score on paper."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from device_runtime.errors import RunError
from device_runtime.metrics import Counts
from device_runtime.text import BOS, FIRST_WORD, tokenise
from model import ngram
from model.corpus import Utterance
from model.evaluation import Scope, evaluate, network_engine, ngram_engine
from model.measures import Evaluation, Prediction, predictions_file, summarise
from model.network import NetworkSize, forward, initial_weights, log_probs
from model.vocabulary import build

# the 3, cat 2, dog 1, sat 1
VOCABULARY = build([["the", "the", "cat", "sat", "dog", "."], ["the", "cat"]], size=4)
THE, CAT, DOG, SAT = range(FIRST_WORD, FIRST_WORD + 4)
STOP = VOCABULARY.id(".")


def users(**texts: list[str]) -> dict[str, list[Utterance]]:
    return {
        user: [Utterance(text, tuple(tokenise(text))) for text in own]
        for user, own in texts.items()
    }


def always(chunk: int = 100, **probabilities: float):
    """An engine that gives these words these probabilities after anything, in chunks of so many
    positions.
    """
    row = np.full(len(VOCABULARY), 1e-6, np.float32)
    for word, probability in probabilities.items():
        row[STOP if word == "stop" else VOCABULARY.id(word)] = probability

    def engine(sequences) -> Iterator[np.ndarray]:
        positions = sum(map(len, sequences))
        for start in range(0, positions, chunk):
            yield np.log(np.repeat(row[None], min(chunk, positions - start), axis=0))

    return engine


def test_word_targets_are_counted_and_unknown_ones_are_misses():
    result = evaluate(
        always(the=0.4, cat=0.3, dog=0.2, sat=0.1),
        users(ann=["The cat sat.", "The aardvark"]),
        VOCABULARY,
    )
    # targets: the cat sat the aardvark; the strip is always the, cat, dog; sat needs one letter
    assert result.total.targets == 5
    assert (result.total.top1, result.total.top3) == (2, 3)
    assert result.total.in_vocabulary == 4
    assert result.total.nll == pytest.approx(-math.log(0.4 * 0.3 * 0.1 * 0.4))
    assert (result.total.first, result.total.first_top1) == (2, 2)
    assert result.total.letters == 4 + 4 + 4 + 4 + 9
    assert result.total.keys == 1 + 1 + 2 + 1 + 9


def test_with_punctuation_classes_are_targets_and_compete():
    total = evaluate(
        always(the=0.3, stop=0.4, cat=0.2, dog=0.1), users(ann=["the cat dog."]), VOCABULARY
    ).total
    # ranked with classes: "." the cat dog
    assert (total.targets, total.top1, total.top3) == (3, 1, 3)
    assert (total.tokens, total.tokens_top1, total.tokens_top3) == (4, 1, 3)


def test_only_the_last_utterances_of_each_user_are_scored():
    result = evaluate(
        always(the=0.9),
        users(ann=["cat"] * 5 + ["the"] * 2, bob=["the"]),
        VOCABULARY,
        Scope(last=3),
    )
    assert (
        result.users["ann"]
        == evaluate(always(the=0.9), users(ann=["cat", "the", "the"]), VOCABULARY).total
    )
    assert (result.users["ann"].targets, result.users["bob"].targets, result.total.top1) == (
        3,
        1,
        3,
    )


def test_a_quick_look_scores_the_first_users():
    assert list(
        evaluate(
            always(the=0.9),
            users(ann=["the"], bob=["the"], cid=["cat"]),
            VOCABULARY,
            Scope(max_users=2),
        ).users
    ) == ["ann", "bob"]


def test_chunks_of_any_size_give_the_same_and_progress_ends_at_all():
    people, seen = users(ann=["the cat sat.", "dog"], bob=["the dog"]), []
    whole = evaluate(
        always(the=0.5, dog=0.2),
        people,
        VOCABULARY,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(7, 7)]
    assert all(
        evaluate(always(chunk=size, the=0.5, dog=0.2), people, VOCABULARY) == whole
        for size in (1, 2, 3, 7)
    )


def test_an_engine_reads_what_was_typed_before_in_the_same_utterance_only():
    read = []

    def engine(sequences):
        read.extend(sequences)
        return always()(sequences)

    evaluate(engine, users(ann=["the cat sat.", "the dog"], bob=["cat"]), VOCABULARY)
    assert read == [[BOS, THE, CAT, SAT], [BOS, THE], [BOS]]


@pytest.mark.parametrize(
    "wrong", [np.zeros((3, 5)), np.zeros((9, len(VOCABULARY))), np.zeros((1, len(VOCABULARY)))]
)
def test_an_engine_of_another_vocabulary_or_number_of_positions_is_refused(wrong):
    with pytest.raises(ValueError, match="the engine gave"):
        evaluate(lambda sequences: iter([wrong]), users(ann=["the cat sat"]), VOCABULARY)


def test_the_network_engine_scores_rows_of_all_lengths_as_one_by_one():
    rng = np.random.default_rng(0)
    weights = initial_weights(NetworkSize(4, 6), VOCABULARY, rng)
    sequences = [[BOS, *rng.integers(3, len(VOCABULARY), rng.integers(0, 9))] for _ in range(300)]
    together = np.concatenate(list(network_engine(weights)(sequences)))
    alone = np.concatenate(
        [log_probs(weights, forward(weights, np.array([sequence]))[0]) for sequence in sequences]
    )
    assert np.allclose(together, alone, atol=1e-5)


def test_the_n_gram_engine_knows_what_followed():
    sequences = [[THE, CAT, SAT, STOP]] * 5 + [[THE, DOG]]
    model = ngram.train(sequences, 3, len(VOCABULARY))
    total = evaluate(ngram_engine(model), users(ann=["the cat sat."]), VOCABULARY).total
    assert (total.top1, total.top3, total.targets) == (3, 3, 3)
    assert total.tokens_top1 == total.tokens == 4


def test_predictions_hold_all_that_is_needed_to_score_the_run_again(tmp_path):
    path = tmp_path / "predictions.jsonl"
    people = users(ann=["The cat sat, the aardvark", "dog"], bob=["the"])
    with predictions_file(path) as write:
        result = evaluate(
            always(chunk=2, the=0.4, cat=0.3, dog=0.2, sat=0.1),
            people,
            VOCABULARY,
            on_prediction=write,
        )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[4] == {
        "user": "ann",
        "context": ["the", "cat", "sat", ",", "the"],
        "target": "aardvark",
        "top3": ["the", "cat", "dog"],
        "keys": 9,
        "logp": None,
        "in_vocab": False,
    }
    assert lines[5]["context"] == []
    for user, counts in result.users.items():
        own = [line for line in lines if line["user"] == user]
        again = Counts(
            targets=len(own),
            top1=sum(line["target"] == line["top3"][0] for line in own),
            top3=sum(line["target"] in line["top3"] for line in own),
            in_vocabulary=sum(line["in_vocab"] for line in own),
            nll=-sum(line["logp"] or 0 for line in own),
            letters=sum(len(line["target"]) + 1 for line in own),
            keys=sum(line["keys"] for line in own),
            first=sum(not line["context"] for line in own),
            first_top1=sum(
                not line["context"] and line["target"] == line["top3"][0] for line in own
            ),
            tokens=counts.tokens,
            tokens_top1=counts.tokens_top1,
            tokens_top3=counts.tokens_top3,
        )
        assert asdict(again) == pytest.approx(asdict(counts))


def test_predictions_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("older")
    with pytest.raises(KeyboardInterrupt), predictions_file(path) as write:
        write(Prediction("ann", (), "the", ("the", "cat", "dog"), 1, -0.5, True))
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert path.read_text() == "older"
    with (
        pytest.raises(RunError, match=r"cannot be written \((File exists|Not a directory)"),
        predictions_file(path / "p.jsonl"),
    ):
        pass


def test_the_summary_divides_once():
    total = Counts(
        targets=40,
        top1=10,
        top3=20,
        in_vocabulary=32,
        nll=32 * math.log(5),
        letters=100,
        keys=40,
        first=8,
        first_top1=2,
        tokens=50,
        tokens_top1=15,
        tokens_top3=25,
    )
    summary = summarise(Evaluation({"ann": total}, total), np.random.default_rng(0))
    assert (summary.users, summary.targets, summary.top1, summary.top3, summary.oov_rate) == (
        1,
        40,
        0.25,
        0.5,
        pytest.approx(0.2),
    )
    assert (summary.perplexity, summary.keystroke_saving) == (pytest.approx(5), pytest.approx(0.6))
    assert (summary.in_vocabulary_top1, summary.first_word_top1, summary.with_punctuation_top3) == (
        10 / 32,
        0.25,
        0.5,
    )
    assert summary.top1_interval == (0.25, 0.25)
    assert summary.macro_top1 == (0.25, 0.25, 0.25, 0.25)

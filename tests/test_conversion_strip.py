import numpy as np
import pytest

from conversion import strip
from conversion.scoring import bundle_engine
from device_runtime.own_words import OwnWords
from device_runtime.predictor import Predictor
from device_runtime.text import tokenise
from model import evaluation
from model.corpus import Utterance

NAMES = ("zoe", "anouk", "tariq", "milo")


def utterances(texts):
    return tuple(Utterance(text, tuple(tokenise(text)), float(i)) for i, text in enumerate(texts))


@pytest.fixture(scope="module")
def people():
    """Users with planted habits: each greets one friend the vocabulary lacks, in the same words
    over and over.
    """
    return {
        name: utterances([f"dear {name} call my dog", f"they said {name} will see it"] * 15)
        for name in NAMES
    }


def test_planted_habits_gain_many_points(tiny_bundle, people):
    engine, vocabulary = bundle_engine(tiny_bundle), tiny_bundle.vocabulary
    alone = evaluation.evaluate(engine, people, vocabulary).total
    life = strip.evaluate(engine, people, vocabulary)
    mixed = life.evaluation.total
    assert mixed.targets == alone.targets
    assert mixed.top1 / mixed.targets > alone.top1 / alone.targets + 0.2
    assert mixed.keys < alone.keys
    assert (life.served, life.behind) == (len(NAMES), 0)


def test_the_strip_of_a_device_shows_what_the_evaluation_scores(tiny_bundle, people):
    own = OwnWords(tiny_bundle.vocabulary)
    predictor = Predictor(tiny_bundle, own=own)
    shown = {}
    for place, utterance in enumerate(people["zoe"]):
        for i, token in enumerate(utterance.tokens):
            if token.isalnum():
                shown[place, i] = tuple(
                    s.token for s in predictor.suggest(" ".join(utterance.tokens[:i]))
                )
        predictor.typed(utterance.text)
    scored = []
    strip.evaluate(
        one_by_one(tiny_bundle),
        {"zoe": people["zoe"]},
        tiny_bundle.vocabulary,
        on_prediction=scored.append,
    )
    assert [prediction.top3 for prediction in scored] == list(shown.values())


def one_by_one(bundle):
    """The bundle's network, one text at a time: side by side the last digit can differ, and with it
    the order of two like words.
    """
    predictor = Predictor(bundle)

    def score(sequences):
        for sequence in sequences:
            state = predictor.start(1)
            for token in sequence:
                log_probs, state = predictor.step(np.array([token], np.int32), state)
                yield log_probs

    return score


def test_without_own_words_ahead_the_strip_is_the_network_alone(tiny_bundle, tiny_corpus):
    few = {user: own[:1] for user, own in tiny_corpus.test.items()}
    engine, vocabulary = bundle_engine(tiny_bundle), tiny_bundle.vocabulary
    life = strip.evaluate(engine, few, vocabulary)
    assert life.served == 0
    assert life.evaluation.total.top1 == evaluation.evaluate(engine, few, vocabulary).total.top1


def test_a_blocked_word_is_never_offered(tiny_bundle, people):
    scored = []
    strip.evaluate(
        bundle_engine(tiny_bundle),
        people,
        tiny_bundle.vocabulary,
        evaluation.Scope(blocked=frozenset({"zoe", "my"})),
        on_prediction=scored.append,
    )
    assert not {"zoe", "my"} & {word for prediction in scored for word in prediction.top3}


def test_a_scope_of_fewer_users_and_utterances_scores_those_alone(tiny_bundle, people):
    engine, vocabulary = bundle_engine(tiny_bundle), tiny_bundle.vocabulary
    narrow = evaluation.Scope(last=2, max_users=1)
    mixed = strip.evaluate(engine, people, vocabulary, narrow).evaluation
    alone = evaluation.evaluate(engine, people, vocabulary, narrow)
    assert list(mixed.users) == list(alone.users) == list(people)[:1]
    assert 0 < mixed.total.targets == alone.total.targets


def test_the_personal_protocol_scores_the_newer_half_of_users_with_forty_messages(tiny_bundle):
    users = {"ann": utterances(["call my dog"] * 41), "bob": utterances(["call my dog"] * 39)}
    mixed = strip.evaluate(
        bundle_engine(tiny_bundle), users, tiny_bundle.vocabulary, evaluation.Scope(personal=True)
    ).evaluation
    assert list(mixed.users) == ["ann"]
    assert mixed.total.targets == 20 * 3
    alone = evaluation.evaluate(
        bundle_engine(tiny_bundle),
        users,
        tiny_bundle.vocabulary,
        evaluation.Scope(personal=True),
    )
    assert alone.total.targets == mixed.total.targets


def test_messages_come_back_whole_however_the_engine_cuts_its_answer(
    tiny_bundle, people, monkeypatch
):
    engine = bundle_engine(tiny_bundle)

    def in_threes(sequences):
        scores = np.concatenate(list(engine(sequences)))
        return (scores[start : start + 3] for start in range(0, len(scores), 3))

    expected = strip.evaluate(engine, people, tiny_bundle.vocabulary).evaluation
    monkeypatch.setattr(strip, "BLOCK", 7)
    assert (
        strip.evaluate(in_threes, people, tiny_bundle.vocabulary).evaluation.total.top1
        == expected.total.top1
    )

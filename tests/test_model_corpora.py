"""Corpora by name: the built-in one, and what a name that is none is told."""

import pytest

from device_runtime.errors import CorpusError
from model.corpora import load
from model.corpus import stats, token_lists
from model.vocabulary import build


@pytest.fixture(scope="module")
def chitchat():
    return load("chitchat")


def test_chitchat_has_the_figures_of_the_protocol(chitchat):
    figures = stats(chitchat)
    assert (
        figures.total.users,
        figures.train.users,
        figures.validation.users,
        figures.test.users,
    ) == (
        1314,
        933,
        137,
        244,
    )
    assert (figures.total.utterances, figures.total.words) == (255_836, 2_449_261)
    assert (figures.train.words, figures.validation.words, figures.test.words) == (
        1_725_156,
        222_045,
        502_060,
    )
    assert figures.dropped == {"no word": 1040, "mashing": 1157, "verbatim in train": 112}
    assert (figures.median_utterances, round(figures.largest_ten, 3)) == (17, 0.421)
    vocabulary = build(token_lists(chitchat.train))
    targets = [
        i
        for utterances in chitchat.test.values()
        for u in utterances[-200:]
        for i, t in zip(vocabulary.ids(u.tokens), u.tokens, strict=True)
        if t[0].isalnum()
    ]
    assert len(targets) == 120_457
    assert round(targets.count(3) / len(targets), 3) == 0.026


def test_chitchat_users_speak_in_time_order(chitchat):
    for utterances in chitchat.test.values():
        times = [utterance.time for utterance in utterances]
        assert times == sorted(times)


def test_a_name_that_is_no_corpus_is_told_what_to_use(tmp_path):
    with pytest.raises(CorpusError, match="no such corpus, expected `chitchat` or a directory"):
        load(tmp_path / "nothing")
    path = tmp_path / "log.jsonl"
    path.write_text('{"user": "ann", "text": "hello"}\n')
    with pytest.raises(
        CorpusError, match=r"is a file.*run `fedboard data import .*log\.jsonl --out DIR` first"
    ):
        load(path)

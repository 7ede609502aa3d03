"""A strip from pieces: words are joined, runs of scripts without spaces go on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.metrics import STRIP
from device_runtime.pieced import LOOKED, PLACES, WIDTH, Pieced, Refusal
from device_runtime.text import BOS, EOS, Vocabulary, is_word, normalise, spaceless, tokenise
from device_runtime.writing import accept
from tests.four_languages import CHINESE, JAPANESE, SENTENCES

UTTERANCES = [tokenise(text) for text in SENTENCES]
# pieces of these sentences, as SentencePiece 0.2.0 learns them: another version learns others
_PIECES = Vocabulary.read(Path(__file__).parent / "golden" / "four-languages.model")


class Follows:
    """What followed each piece in some utterances, as a network: counts, and a little for the
    rest.
    """

    def __init__(self, vocabulary: Vocabulary, utterances: Sequence[Sequence[str]]):
        counts = np.full((len(vocabulary), len(vocabulary)), 1e-4)
        for tokens in utterances:
            ids = [BOS, *vocabulary.ids(tokens), EOS]
            np.add.at(counts, (ids[:-1], ids[1:]), 1)
        self._logs = np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
        self.asked = 0

    def at(self, ids):
        self.asked += 1
        return self._logs[ids[-1]], {"last": np.array([[ids[-1]]], np.float32)}

    def step(self, tokens, state):
        self.asked += 1
        return self._logs[tokens], {"last": tokens[:, None].astype(np.float32)}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return _PIECES


@pytest.fixture(scope="module")
def strip(vocabulary) -> Pieced:
    follows = Follows(vocabulary, UTTERANCES)
    return Pieced(vocabulary, follows.at, follows.step)


def words(strip: Pieced, context: str, prefix: str = "") -> list[str]:
    return [word for word, _ in strip.suggest(context, prefix)]


@pytest.mark.parametrize("text", SENTENCES[:450:15])
def test_a_run_goes_on_to_a_sentence_by_what_is_offered(strip, text):
    """Whoever takes an offer that is right, and types a letter where none is, gets there sooner."""
    run = tokenise(text)[0]
    typed, keys = run[0], 1
    while len(typed) < len(run):
        offers = [word for word in words(strip, "", typed) if run.startswith(word)]
        typed = max(offers, key=len, default=run[: len(typed) + 1])
        keys += 1
    assert typed == run
    assert keys < len(run)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("我们", "我们今天"), ("私はご", "私はご飯を"), ("ฉันอยากกิ", "ฉันอยากกินข้าว"), ("喜", "喜欢")],
)
def test_a_piece_that_was_begun_is_completed(strip, typed, expected):
    assert any(word.startswith(expected) for word in words(strip, "", typed))


@pytest.mark.parametrize("typed", ["我", "我们", "你想", "私は", "ฉัน", "ฉันอย", "คุณไ", "i want. 我"])
def test_what_is_taken_leaves_the_letters_typed_and_brings_no_space(strip, typed):
    context, prefix = typed[: typed.rfind(" ") + 1], typed[typed.rfind(" ") + 1 :]
    offers = words(strip, context, prefix)
    assert offers
    for word in offers:
        taken = accept(typed, word)
        assert taken.startswith(typed)
        assert len(taken) > len(typed)
        assert not taken.endswith(" ")
        assert spaceless(tokenise(taken)[-1])


def test_a_run_goes_on_alike_wherever_a_face_cuts_it(strip):
    whole = words(strip, "", "我们")
    assert [f"我们{word}" for word in words(strip, "我们")] == whole
    assert [f"我{word}" for word in words(strip, "我", "们")] == whole


def test_words_of_a_script_with_spaces_are_offered_whole_and_completed(strip):
    assert words(strip, "i ", "w")[0] == "want"
    assert words(strip, "i ", "WA")[0] == "want"
    assert "want" in words(strip, "i ")


def test_a_sentence_may_open_with_a_word_or_a_run(strip):
    offers = words(strip, "")
    assert len(offers) == STRIP
    assert all(is_word(word) for word in offers)


def test_probabilities_are_shares_in_order(strip):
    for context, prefix in (("", ""), ("", "我"), ("i ", "w"), ("i ", ""), ("", "ฉัน")):
        shares = [share for _, share in strip.suggest(context, prefix)]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1 + 1e-6


def test_a_run_goes_on_in_its_own_script(strip):
    assert words(strip, "", "ฉันอยากกิ")[0] == "ฉันอยากกินข้าว"
    for word in words(strip, "", "ฉันอยากกิ"):
        assert not set(word) & set("".join("".join(each) for each in (*CHINESE, *JAPANESE)))


def test_an_unknown_letter_does_not_stop_what_follows_it(strip):
    assert words(strip, "", "龘")
    assert all(word.startswith("龘我") for word in words(strip, "", "龘我"))


def test_a_blocked_word_is_not_offered_as_a_word_nor_within_a_run(vocabulary):
    follows = Follows(vocabulary, UTTERANCES)
    careful = Pieced(vocabulary, follows.at, follows.step, frozenset({"吃饭", "want"}))
    typed = "我想"
    while offers := [word for word in words(careful, "", typed) if len(word) > len(typed)]:
        assert not any("吃饭" in word for word in offers)
        typed = offers[0]
        if len(typed) > 12:
            break
    assert not any("吃饭" in word for word in words(careful, "", "我想吃"))
    assert "want" not in words(careful, "i ", "w")


def test_a_listed_word_is_refused_where_it_comes_to_stand_and_not_for_what_was_typed():
    refused = Refusal(frozenset({"吃饭", "wants"}))
    assert refused.of_run("我想吃", "饭")
    assert refused.of_run("我想", "吃饭了")
    assert not refused.of_run("我吃饭", "了")
    assert not refused.of_run("我想", "吃面")
    assert refused("wants")
    assert not refused("went")


def test_one_suggestion_costs_a_bounded_number_of_steps(vocabulary):
    follows = Follows(vocabulary, UTTERANCES)
    strip = Pieced(vocabulary, follows.at, follows.step)
    for typed in ("", "i ", "我" * 500, "ฉันอยากกินข้าว" * 40, "私はご飯を食べ"):
        follows.asked = 0
        strip.suggest("", typed)
        assert follows.asked <= max(1 + WIDTH, PLACES * (1 + LOOKED))


_FOLLOWS = Follows(_PIECES, UTTERANCES)
ANY = Pieced(_PIECES, _FOLLOWS.at, _FOLLOWS.step)


@settings(max_examples=60, deadline=None)
@given(
    context=st.text(alphabet="我们想吃ฉันอยากกิ้ไ食べます龘ｶﾞabc i'.?\u200b\u0e34 é", max_size=12),
    prefix=st.text(alphabet="我们想ฉันกิ食べ龘ab'\u200b\u0e34", max_size=5),
)
def test_whatever_is_typed_offers_are_words_that_begin_with_it(context, prefix):
    offers = ANY.suggest(context, prefix)
    assert len({word for word, _ in offers}) == len(offers) <= STRIP
    run = (tokenise(context + prefix) or [""])[-1]
    for word, share in offers:
        assert 0 <= share <= 1 + 1e-6
        if run and spaceless(run) and normalise(context + prefix)[-1:] == run[-1:]:
            assert word.startswith(prefix)
            assert len(word) > len(prefix)
        elif not prefix:
            assert tokenise(word) == [word]

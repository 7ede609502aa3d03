import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.own_words import BUCKETS, ORDERS, PRIOR, PRIOR_COUNT, OwnWords, Trust
from device_runtime.text import FIRST_WORD, OOV, tokenise
from model.vocabulary import build

VOCABULARY = build([["the", "cat", "sat", "the", "dog"]], 4)
THE, CAT = VOCABULARY.id("the"), VOCABULARY.id("cat")
EVEN = np.log(np.full(len(VOCABULARY), 1 / len(VOCABULARY), np.float32))


def network(tokens: list[str]) -> np.ndarray:
    """A network that knows nothing: every id is as likely after any context."""
    return np.tile(EVEN, (len(tokens), 1))


def lived(messages: list[str]) -> OwnWords:
    own = OwnWords(VOCABULARY)
    for message in messages:
        own.hold_back(message.split(), network(message.split()))
        own.add(message.split())
    return own


def test_the_mix_by_hand():
    own = OwnWords(VOCABULARY)
    own.add(["cat"])
    # after the sentence start: 1 word in all, and cat once after each of the contexts of 1, 2 and 3
    # tokens
    expected = 1 / len(VOCABULARY)
    for order in range(ORDERS):
        weight = PRIOR[order][0]
        expected = (1 - weight) * expected + weight
    assert np.exp(own.mix(EVEN, []))[CAT] == pytest.approx(expected)


def test_without_anything_typed_the_mix_is_the_network():
    assert OwnWords(VOCABULARY).mix(EVEN, ["the"]) == pytest.approx(EVEN)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["the", "cat", "sat", ".", "zoe", "qux"]), min_size=1, max_size=6),
        max_size=12,
    )
)
def test_the_mix_is_a_distribution_over_known_and_own_words(messages):
    own = lived([" ".join(tokens) for tokens in messages])
    for context in ([], ["the"], ["zoe", "cat"], ["never", "typed", "these"]):
        assert np.exp(own.mix(EVEN, context).astype(float)).sum() == pytest.approx(1, abs=1e-5)


def test_a_habit_is_trusted_more_the_more_often_it_is_right():
    shares = [
        np.exp(lived(["the cat sat"] * times).mix(EVEN, ["the"]))[CAT] for times in (0, 3, 30)
    ]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.5


def test_a_habit_is_served_and_what_the_network_knows_better_is_not():
    assert lived(["the cat sat"] * 10).serves
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "dog"]
    own = OwnWords(VOCABULARY)
    for _ in range(60):
        tokens = [words[i] for i in rng.integers(4, size=5)]
        log_probs = np.log(np.full((5, len(VOCABULARY)), 1e-3, np.float32))
        log_probs[range(5), VOCABULARY.ids(tokens)] = np.log(0.9)  # a network that knows what comes
        own.hold_back(tokens, log_probs)
        own.add(tokens)
    assert own.trust.nats < 0
    assert not own.serves


def test_serving_stops_when_the_mix_falls_behind():
    assert Trust(nats=2.1, hits=0).serves
    assert not Trust(nats=1.9, hits=3).serves
    assert not Trust(nats=9.0, hits=-1).serves


def test_a_word_the_vocabulary_lacks_is_learned_and_completed():
    own = lived(["the zoe sat"] * 8)
    zoe = own.ids(["zoe"])[0]
    assert zoe >= len(VOCABULARY)
    assert own.words[zoe] == "zoe"
    assert int(own.mix(EVEN, ["the"])[FIRST_WORD:].argmax()) + FIRST_WORD == zoe
    words, ids = own.alphabetical
    assert words == sorted(words)
    assert ids[words.index("zoe")] == zoe
    assert own.ids(["unheard"]) == [OOV]


def test_while_the_mix_is_not_served_new_words_come_after_all_known_ones():
    own = OwnWords(VOCABULARY)
    own.add(["zoe"])
    wide = own.extended(EVEN)
    assert wide[: len(VOCABULARY)] == pytest.approx(EVEN)
    assert -np.inf < wide[-1] < wide[:-1].min()


def test_the_oldest_messages_drop_out(monkeypatch):
    monkeypatch.setattr("device_runtime.own_words.MOST_TOKENS", 4)
    forgotten, fresh = OwnWords(VOCABULARY), OwnWords(VOCABULARY)
    for message in ("the dog", "the cat", "sat cat"):
        forgotten.add(message.split())
    for message in ("the cat", "sat cat"):
        fresh.add(message.split())
    for context in ([], ["the"], ["sat"]):
        assert forgotten.mix(EVEN, context) == pytest.approx(fresh.mix(EVEN, context))


def test_a_new_word_whose_messages_dropped_out_can_be_learned_again(monkeypatch):
    monkeypatch.setattr("device_runtime.own_words.MOST_TOKENS", 2)
    own = lived(["zoe", "the cat", "the dog", "zoe", "zoe"])
    assert np.isfinite(own.trust.nats)
    assert np.isfinite(own.mix(EVEN, [])).all()


def test_trust_goes_on_where_it_was():
    own = lived(["the cat sat", "the dog sat", "the cat"])
    again = OwnWords(VOCABULARY, own.trust)
    assert again.trust == own.trust
    assert Trust().seen == ((PRIOR_COUNT,) * len(BUCKETS),) * ORDERS


def test_learning_by_hand():
    own = OwnWords(VOCABULARY)
    own.add(["cat"])
    own.hold_back(["cat"], network(["cat"]))
    # only the longest context is followed here: its part of cat's probability is weight / (weight +
    # the rest)
    below = 1 / len(VOCABULARY)
    for order in range(ORDERS - 1):
        weight = PRIOR[order][0]
        below = (1 - weight) * below + weight
    weight = PRIOR[-1][0]
    part = weight / ((1 - weight) * below + weight)
    assert own.trust.won[-1][0] == pytest.approx(PRIOR_COUNT * weight + part)
    assert own.trust.seen[-1][0] == PRIOR_COUNT + 1


@settings(max_examples=100, deadline=None)
@given(
    messages=st.lists(
        st.lists(st.sampled_from(["the", "cat", "sat", "dog", "."]), min_size=1, max_size=5),
        min_size=1,
        max_size=40,
    )
)
def test_whatever_dropped_out_counts_as_never_typed(messages):
    kept = next(
        messages[n:]
        for n in range(len(messages))
        if sum(map(len, messages[n:])) <= 8 or n == len(messages) - 1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("device_runtime.own_words.MOST_TOKENS", 8)
        all_of_them, newest = OwnWords(VOCABULARY), OwnWords(VOCABULARY)
        for message in messages:
            all_of_them.add(message)
    for message in kept:
        newest.add(message)
    for context in ([], ["the"], ["the", "cat"], messages[-1]):
        np.testing.assert_array_equal(all_of_them.mix(EVEN, context), newest.mix(EVEN, context))
    assert list(all_of_them.messages()) == kept


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["the", "okapi", "'s", "12", "."]), min_size=1)))
def test_the_messages_that_count_can_be_counted_again_by_another_vocabulary(messages):
    own, other = OwnWords(VOCABULARY), OwnWords(build([["okapi", "the"]], 2))
    for message in messages:
        own.add(message)
    for message in own.messages():
        other.add(message)
    assert list(other.messages()) == messages


def told(*messages: str) -> OwnWords:
    own = OwnWords(VOCABULARY)
    for message in messages:
        own.add_message(message, tokenise(message))
    return own


def offered(own: OwnWords) -> list[str]:
    return [word for word, _ in own.offered()]


def test_a_word_is_offered_once_it_was_sent_in_two_messages():
    assert offered(told("see zarnik, zarnik and zarnik")) == []
    assert offered(told("see zarnik", "hello zarnik")) == ["zarnik"]


def test_a_word_that_is_not_offered_completes_nothing_and_is_unknown_to_the_strip():
    own = told("see zarnik")
    assert "zarnik" not in own.alphabetical[0]
    assert own.known_ids(["zarnik"]) == [OOV]
    assert list(own.withheld) == [own.ids(["see"])[0], own.ids(["zarnik"])[0]]


def test_a_likely_slip_of_a_common_word_must_be_insisted_on():
    assert "teh" not in offered(told(*["i saw teh cat"] * 5))
    assert "teh" in offered(told(*["i saw teh cat"] * 6))


def test_what_its_owner_allows_is_offered_before_it_was_ever_sent():
    own = OwnWords(VOCABULARY, allowed=["soooo", "the"])
    assert offered(own) == ["soooo"]
    assert np.isfinite(own.mix(EVEN, ["the"])).all()


def test_a_word_is_shown_as_its_user_writes_it_within_sentences():
    own = told("i met Zarnik", "Zarnik is here", "saw McZarnik", "ask zarnik or Zarnik")
    assert own.written("zarnik") == "Zarnik"
    assert own.written("mczarnik") == "McZarnik"
    assert told("Zarnik came").written("zarnik") is None

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import personal
from device_runtime.bundle import TOKENIZER, Bundle
from device_runtime.errors import VocabularyError
from device_runtime.own_words import OwnWords
from device_runtime.predictor import KEPT, Predictor, Suggestion, best_place, centred, steady
from device_runtime.text import is_word
from model import network
from model.vocabulary import build_unigram


@pytest.fixture(scope="module")
def predictor(tiny_bundle):
    return Predictor(tiny_bundle)


def test_three_words_best_first_and_never_punctuation(predictor):
    strip = predictor.suggest("i will see")
    assert len({s.word for s in strip}) == 3
    assert all(is_word(s.word) for s in strip)
    assert [s.probability for s in strip] == sorted((s.probability for s in strip), reverse=True)


def test_probabilities_are_those_of_the_network(predictor, tiny_bundle, tiny_checkpoint):
    ids = np.array([tiny_bundle.vocabulary.encode("i will see")])
    exact = np.exp(
        network.log_probs(
            tiny_checkpoint.weights, network.forward(tiny_checkpoint.weights, ids)[0]
        )[-1]
    )
    for suggestion in predictor.suggest("i will see"):
        assert suggestion.probability == pytest.approx(
            exact[tiny_bundle.vocabulary.id(suggestion.word)], rel=0.1
        )


def test_a_prefix_gives_the_words_that_start_so_and_their_shares_sum_to_one(predictor):
    strip = predictor.suggest("they said", "TO")
    assert {s.word for s in strip} == {"TO", "TOMORROW"}
    assert {s.token for s in strip} == {"to", "tomorrow"}
    assert sum(s.probability for s in strip) == pytest.approx(1)
    assert predictor.suggest("they said", "xq") == []


def test_typing_on_gives_what_starting_anew_gives(predictor, tiny_bundle):
    for context in ("", "i", "i will", "i will see", "you like", "i will see qwertz my"):
        assert predictor.suggest(context) == Predictor(tiny_bundle).suggest(context)


@pytest.fixture
def counted(tiny_bundle):
    """A predictor and the tokens it stepped over."""
    predictor, stepped = Predictor(tiny_bundle), []
    step = predictor.step
    predictor.step = lambda tokens, state: stepped.extend(tokens.tolist()) or step(tokens, state)
    return predictor, stepped


def test_a_key_within_a_word_costs_no_step_a_finished_word_one_and_a_deleted_word_none(counted):
    predictor, stepped = counted
    for context, prefix, steps in [
        ("", "", 1),
        ("", "i", 0),
        ("i ", "", 1),
        ("i ", "w", 0),
        ("i ", "wi", 0),
        ("i will ", "", 1),
        ("i will see ", "", 1),
        ("i will ", "se", 0),
        ("i ", "", 0),
        ("i like ", "", 1),
        ("", "", 0),
        ("you ", "", 1),
    ]:
        stepped.clear()
        predictor.suggest(context, prefix)
        assert len(stepped) == steps, (context, prefix)


def test_going_back_further_than_states_are_kept_starts_anew_and_says_the_same(
    counted, tiny_bundle
):
    predictor, stepped = counted
    words = ["i", "will", "see", "my", "dog"] * 12
    assert len(words) > KEPT
    predictor.suggest(" ".join(words))
    for length in (len(words) - 1, 40, 30, 20, 1, 0):
        assert predictor.suggest(" ".join(words[:length])) == Predictor(tiny_bundle).suggest(
            " ".join(words[:length])
        )
    stepped.clear()
    predictor.suggest(" ".join(words))
    assert len(stepped) == len(words)


@settings(max_examples=25, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 45),
            st.lists(st.sampled_from(["i", "will", "see", "xqz", "my", "!"]), max_size=5),
        ),
        max_size=8,
    )
)
def test_however_one_types_and_deletes_the_strip_is_that_of_the_text(edits, predictor, tiny_bundle):
    typed = []
    for deleted, added in edits:
        typed = [*typed[: max(len(typed) - deleted, 0)], *added]
        predictor.suggest(" ".join(typed))
    assert predictor.suggest(" ".join(typed)) == Predictor(tiny_bundle).suggest(" ".join(typed))


def test_personal_weights_take_the_place_of_the_bundles(tiny_bundle, predictor):
    weights = {name: array.copy() for name, array in tiny_bundle.checkpoint.weights.items()}
    same = Predictor(tiny_bundle, weights)
    for here, there in zip(
        same.suggest("i will see"), predictor.suggest("i will see"), strict=True
    ):
        assert here.probability == pytest.approx(there.probability, rel=0.1)
    weights["output_bias"][tiny_bundle.vocabulary.id("tomorrow")] += 20
    for own in (weights, personal.shipped(tiny_bundle, weights)):
        assert Predictor(tiny_bundle, own).suggest("i will see")[0].word == "tomorrow"


def test_a_blocked_word_is_suggested_neither_next_nor_as_a_completion(tiny_bundle, predictor):
    best = predictor.suggest("i will see")[0].word
    careful = Predictor(tiny_bundle, blocked=frozenset({best.upper()}))
    assert [s.word for s in careful.suggest("i will see")][:2] == [
        s.word for s in predictor.suggest("i will see")
    ][1:]
    assert best in {s.word for s in predictor.suggest("i will see", best)}
    assert best not in {s.word for s in careful.suggest("i will see", best)}
    assert (
        Predictor(tiny_bundle, blocked=frozenset(tiny_bundle.vocabulary.tokens)).suggest("i") == []
    )


@pytest.mark.parametrize(
    ("best_first", "shown"),
    [("", ""), ("a", "a"), ("ab", "ba"), ("abc", "bac"), ("abcde", "dbace")],
)
def test_the_best_stands_in_the_centre_of_the_strip(best_first, shown):
    assert centred(list(best_first)) == list(shown)


def test_own_words_beside_a_bundle_of_pieces_are_refused_before_its_graph_is_opened(tiny_bundle):
    pieces = build_unigram([["the", "cat"]], size=40)
    bundle = Bundle(tiny_bundle.path, tiny_bundle.manifest, {TOKENIZER: pieces.model})  # no graph
    with pytest.raises(VocabularyError, match="a mix of own words needs whole words"):
        Predictor(bundle, own=OwnWords(tiny_bundle.vocabulary))


def shown(strip) -> list[str]:
    return [each.word for each in strip]


def test_words_are_shown_as_people_write_them_with_a_capital_where_a_sentence_opens(tiny_bundle):
    people = Predictor(tiny_bundle, written={"i": "I", "dog": "DOG"})
    assert shown(people.suggest("and ", "i"))[0] == "I"
    assert "DOG" in shown(people.suggest("i like my ", "d"))
    first, later = people.suggest("See you. "), people.suggest("see you, ")
    assert all(word[0].isupper() for word in shown(first))
    assert [each.word for each in later if each.token != "i"] == [
        each.token for each in later if each.token != "i"
    ]
    small = Predictor(tiny_bundle, written={}, capitals=False)
    assert all(each.word == each.token for each in small.suggest("See you. "))


def test_a_name_of_the_user_is_shown_as_the_user_writes_it(tiny_bundle):
    own = OwnWords(tiny_bundle.vocabulary)
    for _ in range(2):
        own.add_message("i will see Łukasz", ["i", "will", "see", "łukasz"])
    mine = Predictor(tiny_bundle, own=own)
    assert shown(mine.suggest("i like ", "łu")) == ["Łukasz"]
    assert shown(mine.suggest("i like ", "luka")) == ["Łukasz"]  # the stroke was left out
    assert shown(mine.suggest("i like ", "LUKA")) == ["ŁUKASZ"]
    assert shown(mine.suggest("i like ", "lykas")) == ["Łukasz"]  # one slip


def test_a_slip_of_the_finger_is_forgiven_from_three_letters_on(predictor):
    assert shown(predictor.suggest("they said ", "tmo"))[0] == "tomorrow"
    assert shown(predictor.suggest("they said ", "tomorow")) == ["tomorrow"]
    assert shown(predictor.suggest("they said ", "otmo"))[0] == "tomorrow"
    assert predictor.suggest("they said ", "xomorrow") == []  # the first letter is trusted
    assert predictor.suggest("they said ", "tp") == []


def test_a_new_word_that_begins_so_comes_before_known_ones_that_would_but_for_a_slip(tiny_bundle):
    own = OwnWords(tiny_bundle.vocabulary)
    for message in ("see tomcat", "see tomcat too"):
        own.add_message(message, message.split())
    assert not own.serves
    strip = Predictor(tiny_bundle, own=own).suggest("see you ", "tomc")
    assert strip[0].token == "tomcat"
    assert strip[0].probability == max(each.probability for each in strip)


def test_a_word_that_was_typed_fully_keeps_a_place_and_so_does_the_one_that_is_meant(tiny_bundle):
    own = OwnWords(tiny_bundle.vocabulary, allowed=["don't", "dont", "donta", "dontb", "dontc"])
    for word, times in (("donta", 9), ("dontb", 8), ("dontc", 7), ("don't", 2), ("dont", 1)):
        for _ in range(times):
            own.add(["i", word])
    mine = Predictor(tiny_bundle, own=own)
    assert shown(mine.suggest("i ", "don")) == ["donta", "dontb", "dontc"]
    assert sorted(shown(mine.suggest("i ", "dont"))) == ["don't", "dont", "donta"]
    assert shown(mine.suggest("i ", "dont"))[0] == "donta"  # the likeliest


def test_the_lists_of_the_user_come_before_every_other(tiny_bundle):
    listed = frozenset(["dog", "house"])
    strict = Predictor(tiny_bundle, blocked=listed)
    assert not {"dog", "house"} & set(shown(strict.suggest("i see my ", k=99)))
    mine = Predictor(
        tiny_bundle, blocked=listed, allowed=frozenset(["Dog"]), never=frozenset(["Tomórrow"])
    )
    offered = set(shown(mine.suggest("i see my ", k=99)))
    assert "dog" in offered
    assert not {"house", "tomorrow"} & offered
    mine.allow(frozenset(["house"]))  # and no others
    offered = set(shown(mine.suggest("i see my ", k=99)))
    assert "house" in offered
    assert not {"dog", "tomorrow"} & offered


# --- a strip that stands still
# ------------------------------------------------------------------------------------------------


def strip(*words: str, **shares: float) -> list[Suggestion]:
    named = dict.fromkeys(words, 0.1) | shares
    return [Suggestion(word, share, word) for word, share in named.items()]


def places(*words: str | None) -> list[Suggestion | None]:
    return [word and strip(word)[0] for word in words]


def at(strip) -> list[str | None]:
    return [each and each.word for each in strip]


def test_a_word_that_still_fits_keeps_its_place_and_others_come_where_one_is_free():
    assert at(steady([], strip("the", "they", "then"))) == ["they", "the", "then"]
    before = places("they", "the", "then")
    assert at(steady(before, strip("then", "they", "themes"))) == ["they", "themes", "then"]
    assert at(steady(before, strip("then"))) == [None, None, "then"]
    assert at(steady(before, strip("a", "b"))) == ["b", "a", None]
    assert at(steady(places("they", None, "then"), strip("a", "then"))) == [None, "a", "then"]
    assert at(steady(before, [])) == [None, None, None]


def test_the_best_place_is_where_the_likeliest_word_stands():
    they, then = strip(they=0.6, then=0.3)
    assert best_place([then, None, they]) == 2
    assert best_place([None, then, None]) == 1
    assert best_place([None, None, None]) is None


@given(
    before=st.lists(st.sampled_from("abcdef"), unique=True, max_size=3),
    now=st.lists(st.sampled_from("abcdef"), unique=True, max_size=3),
)
def test_no_word_that_stays_in_the_strip_ever_moves(before, now):
    earlier = steady([], strip(*before))
    later = steady(earlier, strip(*now))
    assert sorted(filter(None, at(later))) == sorted(now)
    for first, second in zip(at(earlier), at(later), strict=True):
        assert first == second or first not in now

"""The record of a corpus: what is kept, for whom, in which order."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import CorpusError
from model.corpus import (
    SPLITS,
    LazyUsers,
    Noted,
    Utterance,
    bins,
    cleaned,
    few,
    only,
    prepare,
    sample,
    split_of,
    stats,
    token_lists,
    unfit,
)

TRAIN, VALIDATION, TEST = "user0", "user26", "user13"  # where their names fall
USERS = (TRAIN, VALIDATION, TEST)


def corpus(*rows):
    """Three users who say hello, and these rows."""
    return prepare("toy", "0" * 64, [*((user, "hello", None) for user in USERS), *rows])


def texts(utterances: list[Utterance]) -> list[str]:
    return [utterance.text for utterance in utterances]


# --- preparation ---


def test_users_fall_into_splits_by_name():
    assert [split_of(user) for user in USERS] == list(SPLITS)
    splits = [split_of(f"user{i}") for i in range(2000)]
    assert 0.17 < splits.count("test") / 2000 < 0.23
    assert 0.08 < splits.count("validation") / 2000 < 0.12


def test_utterances_without_a_word_and_mashing_are_dropped():
    toy = corpus(
        (TRAIN, "123 !!", None),
        (TRAIN, "ha ha ha ha ha ha", None),
        (TRAIN, "ha ha ha ha ha", None),
        (TRAIN, "a b a b a b", None),
    )
    assert texts(toy.train[TRAIN]) == ["hello", "ha ha ha ha ha"]
    assert toy.dropped == {"no word": 1, "mashing": 2, "verbatim in train": 0}


def test_a_long_post_is_no_mashing_but_repeats_of_any_length_are():
    prose = [f"word{i * i % 271}" for i in range(3000)]  # 136 words, ever again in another order
    prose = [word if i % 5 else f"rare{i}" for i, word in enumerate(prose)]
    assert [unfit(prose[:words]) for words in (99, 101, 900, 3000)] == [""] * 4
    assert len(set(prose)) < 0.34 * len(prose)
    for mashed in (["ha"] * 900, ["asdf", "jkl"] * 450, prose[:60] * 20, prose[:300] * 4):
        assert unfit(mashed) == "mashing"


def test_long_utterances_of_train_are_dropped_elsewhere_short_ones_stay():
    long, short = "one two three four five six seven eight", "one two three four five six seven"
    toy = corpus(*((user, text, None) for user in USERS for text in (long, long.upper(), short)))
    assert texts(toy.train[TRAIN]) == ["hello", long, long.upper(), short]
    assert texts(toy.validation[VALIDATION]) == texts(toy.test[TEST]) == ["hello", short]
    assert toy.dropped["verbatim in train"] == 4


def test_utterances_are_in_time_order_and_equal_times_keep_theirs():
    toy = prepare(
        "toy",
        "",
        [
            (user, text, time)
            for user in USERS
            for text, time in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 3.0))
        ],
    )
    assert texts(toy.test[TEST]) == ["a", "b", "c", "d"]


def test_without_a_time_for_every_utterance_the_order_given_stands():
    assert texts(corpus((TEST, "later", 9.0), (TEST, "sooner", 1.0)).test[TEST]) == [
        "hello",
        "later",
        "sooner",
    ]


def test_users_come_in_alphabetical_order_whatever_the_order_of_rows():
    rows = [(f"user{i}", "hello", None) for i in range(40)]
    forward, backward = prepare("toy", "", rows), prepare("toy", "", rows[::-1])
    assert forward == backward
    assert list(forward.train) == sorted(forward.train)


def test_too_few_users_to_split_are_counted_and_told_how_many_are_needed():
    with pytest.raises(
        CorpusError,
        match=r"^toy: 1 user, none of whom falls into validation or test; give at least 3 users",
    ):
        prepare("toy", "", [(TRAIN, "hello", None)])
    with pytest.raises(CorpusError, match="no utterance is left after cleaning"):
        prepare("toy", "", [(TRAIN, "123", None)])


def test_stats_count_users_words_and_the_share_of_the_largest():
    figures = stats(corpus((TRAIN, "hello again, 3 times", None)))
    assert (figures.total.users, figures.total.utterances, figures.total.words) == (3, 4, 6)
    assert (
        figures.train.words,
        figures.median_words,
        figures.median_utterances,
        figures.distinct_words,
        figures.largest_ten,
    ) == (4, 1, 1, 3, 1)


def test_an_unknown_split_is_refused():
    with pytest.raises(
        CorpusError, match="expected a split, one of train, validation, test, found 'dev'"
    ):
        corpus().split("dev")


# --- users read when they are asked for ---


def lazy(names, keep=0):
    """Users who say their name, and the list of those who were read."""
    read = []

    def say(name):
        read.append(name)
        return cleaned([(name, None)])

    return LazyUsers(names, say, keep), read


def test_naming_counting_and_finding_users_reads_nobody():
    users, read = lazy(["ann", "bob", "cid"])
    assert (len(users), list(users), "bob" in users, "dan" in users, users.get("dan")) == (
        3,
        ["ann", "bob", "cid"],
        True,
        False,
        None,
    )
    assert list(sample(users, 2)) == ["ann", "bob"]
    assert read == []


def test_a_loop_over_users_reads_them_one_by_one():
    users, read = lazy(["ann", "bob", "cid"])
    assert next(iter(users.items())) == ("ann", (Utterance("ann", ("ann",)),))
    assert read == ["ann"]
    assert list(itertools.islice(token_lists(users), 2)) == [("ann",), ("bob",)]
    assert read == ["ann", "ann", "bob"]


def test_the_users_asked_for_last_are_remembered():
    users, read = lazy(["ann", "bob", "cid"], keep=2)
    for name in ("ann", "bob", "ann", "cid", "ann", "bob"):
        assert texts(users[name]) == [name]
    assert read == ["ann", "bob", "cid", "bob"]


def test_an_unknown_user_is_a_key_error_and_is_not_looked_for():
    users, read = lazy(["ann"])
    with pytest.raises(KeyError):
        users["bob"]
    assert read == []


def test_users_narrowed_by_name_share_what_is_remembered():
    users, read = lazy(["ann", "bob", "cid"], keep=2)
    some = only(users, ["cid", "ann"])
    assert (list(some), texts(some["ann"]), texts(users["ann"]), "bob" in some) == (
        ["cid", "ann"],
        ["ann"],
        ["ann"],
        False,
    )
    assert read == ["ann"]


def test_vocabulary_and_stats_of_a_large_corpus_read_a_few_users_of_each_split():
    users, read = lazy([f"user{i}" for i in range(9)])
    toy = replace(corpus(), train=users, validation=users, test=users, dropped=None, most=2)
    counted = stats(toy)
    assert read == ["user0", "user4"] * 3
    assert (counted.users, counted.most) == ({"train": 9, "validation": 9, "test": 9}, 2)
    assert (counted.train.users, counted.total.words, counted.distinct_words, counted.dropped) == (
        2,
        6,
        2,
        None,
    )
    assert list(token_lists(users, most=3)) == [("user0",), ("user3",), ("user6",)]


def test_users_of_whom_cleaning_leaves_nothing_do_not_count_in_stats():
    silent, _ = lazy(["1", "2"])
    assert stats(replace(corpus(), test=silent)).test.users == 0
    with pytest.raises(CorpusError, match=r"^toy: no utterance is left after cleaning"):
        stats(replace(corpus(), train=silent, validation=silent, test=silent))


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_sample_is_spread_evenly_and_never_larger_than_asked(users, most):
    sampled = [int(name) for name in sample({f"{i:02d}": [] for i in range(users)}, most)]
    even = {users // len(sampled), -(-users // len(sampled))}
    assert (len(sampled), sampled[0]) == (min(users, most), 0)
    assert {later - earlier for earlier, later in itertools.pairwise([*sampled, users])} <= even


def test_a_sample_of_everybody_is_the_users_themselves():
    users = corpus().train
    assert sample(users, None) is sample(users, 1) is users


def noted(**words):
    """A corpus whose train users typed so many words, an utterance a word, and nobody was read."""
    users, read = lazy(words)
    said = LazyUsers(users, lambda name: users[name] * words[name])
    counts = {"train": list(words.values()), "validation": [], "test": []}
    return replace(corpus(), train=said, noted=Noted(0, counts, counts, 1)), read


def test_few_users_are_those_who_typed_at_most_so_many_words_together():
    toy, read = noted(ann=5, bob=3, cid=2, dan=4)
    assert few(toy, 14) is toy.train
    some = few(toy, 9)
    assert sum({"ann": 5, "bob": 3, "cid": 2, "dan": 4}[name] for name in some) <= 9
    assert list(some) == sorted(some) == list(few(toy, 9))
    assert len(some) >= 2
    assert read == []


def test_of_a_user_who_typed_more_than_all_may_the_newest_utterances_are_few():
    toy, _ = noted(ann=50, bob=8)
    assert {name: len(own) for name, own in few(toy, 4).items()} == {"bob": 4}


def test_few_users_of_a_corpus_nobody_counted_are_its_sample():
    users, _ = lazy([f"user{i}" for i in range(9)])
    assert list(few(replace(corpus(), train=users, most=2), 1)) == ["user0", "user4"]
    assert few(replace(corpus(), train=users), 1) is users


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=30))
def test_every_user_is_in_one_bin_and_bins_are_without_gaps(numbers):
    result = bins(numbers)
    assert (sum(each.users for each in result), sum(each.typed for each in result)) == (
        len(numbers),
        sum(numbers),
    )
    assert result[0].least <= min(numbers) <= result[0].most
    assert result[-1].least <= max(numbers) <= result[-1].most
    for before, after in itertools.pairwise(result):
        assert after.least == before.most + 1

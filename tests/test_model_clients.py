"""Clients: the batches one participation trains on."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import limits, scoring
from device_runtime.examples import messages, rows, words
from device_runtime.text import BOS, EOS, FIRST_WORD, OOV
from device_runtime.wire import Plan
from model import clients
from model.clients import Clients, batches
from model.corpus import LazyUsers, Utterance
from model.recipe import Client
from model.vocabulary import build

# 2, 3, 1, 3 and 2 targets
ROWS = np.array([[1, 5, 2, 0], [1, 6, 7, 2], [1, 2, 0, 0], [1, 8, 9, 2], [1, 5, 2, 0]], np.int32)


def batched(examples=ROWS, client=Client(), seed=0, **plan) -> np.ndarray:
    return batches(
        examples,
        Plan(**{"batch_size": 2, "length": 3, **plan}),
        client,
        np.random.default_rng(seed),
    )


def test_a_participation_sees_every_row_once_an_epoch():
    result = batched(epochs=2)
    assert result.shape == (6, 2, 4)
    for epoch in (result[:3], result[3:]):
        assert sorted(map(tuple, epoch.reshape(-1, 4))) == sorted([*map(tuple, ROWS), (0, 0, 0, 0)])


def test_rows_of_a_batch_come_longest_first():
    for seed in range(5):
        targets = (batched(seed=seed)[:, :, 1:] != 0).sum(axis=2)
        assert (np.diff(targets, axis=1) <= 0).all()


def test_the_newest_rows_are_kept_or_a_new_choice_each_time():
    newest = {
        tuple(row) for row in batched(client=Client(rows="newest"), max_rows=2).reshape(-1, 4)
    }
    assert newest == {tuple(ROWS[3]), tuple(ROWS[4])}
    chosen = {
        tuple(row) for seed in range(20) for row in batched(seed=seed, max_rows=2).reshape(-1, 4)
    }
    assert {tuple(row) for row in ROWS} <= chosen


def test_a_cap_on_tokens_stops_before_the_row_that_would_pass_it():
    # the newest rows have 2, 3 and 1 targets; the next has 3
    assert (batched(client=Client(rows="newest", max_tokens=6))[:, :, 1:] != 0).sum() == 6
    # one row stays, whatever its length
    assert (batched(client=Client(rows="newest", max_tokens=1))[:, :, 1:] != 0).sum() == 2


# three messages, the second of two rows; 2, 3, 1 and 1 target words
W = FIRST_WORD
TYPED = np.array([[BOS, W, W, EOS], [BOS, W, W, W], [W, OOV, EOS, 0], [BOS, W, EOS, 0]], np.int32)


def held_to(messages: int, words: int) -> limits.Limits:
    own = limits.OwnLimits(least_messages=messages, least_words=words)
    return limits.of(Plan(clipping_norm=1.0), own)


def test_an_update_has_as_many_messages_and_words_as_a_device_asks_of_it():
    everything = np.arange(4)
    assert clients.why_left_out(TYPED, everything, held_to(3, 7)) is None
    over = clients.why_left_out(TYPED, everything, held_to(4, 7))
    assert str(over) == "least_messages: expected at least 4, found 3"
    over = clients.why_left_out(TYPED, everything, held_to(3, 8))
    assert str(over) == "least_words: expected at least 8, found 7"
    # the second message alone, in two rows, whatever their order
    over = clients.why_left_out(TYPED, np.array([2, 1]), held_to(2, 1))
    assert str(over) == "least_messages: expected at least 2, found 1"


def test_rows_of_which_a_device_makes_no_update_have_no_steps():
    plan, rng = Plan(batch_size=2, length=3), np.random.default_rng(0)
    assert batches(TYPED, plan, Client(), rng, held_to(3, 8)).shape == (0, 2, 4)
    assert batches(TYPED, plan, Client(), rng, held_to(3, 7)).shape == (2, 2, 4)


def test_who_trains_on_the_newest_rows_needs_enough_in_those():
    plan = Plan(max_rows=2)  # the newest: two messages, 2 words
    newest, sampled = Client(rows="newest"), Client(rows="sampled")
    assert clients.may_ever_train(TYPED, plan, newest, held_to(2, 2))
    assert not clients.may_ever_train(TYPED, plan, newest, held_to(2, 3))
    assert clients.may_ever_train(TYPED, plan, sampled, held_to(2, 3))


@given(st.lists(st.lists(st.integers(3, 60), max_size=9), max_size=6), st.integers(1, 5))
def test_words_and_messages_are_those_a_device_counts(utterances, length):
    made_of = rows(utterances, length)
    assert words(made_of) == scoring.words(made_of[:, 1:].ravel().tolist())
    assert len(np.unique(messages(made_of))) == len(utterances)


def test_a_client_without_rows_has_no_steps():
    assert batched(ROWS[:0]).shape == (0, 2, 4)


def test_a_seed_repeats_a_participation():
    assert (batched(seed=3) == batched(seed=3)).all()
    assert not (batched(seed=3) == batched(seed=4)).all()


def test_clients_are_read_when_they_are_drawn(tiny_vocabulary):
    read = []

    class Users(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    users = Users({f"u{i}": [Utterance("i like it", ("i", "like", "it"))] * i for i in range(100)})
    clients = Clients(users, tiny_vocabulary, 6)
    assert len(clients) == 100
    assert clients[7].shape == (7, 7)
    assert read == ["u7"]


def said(*lengths):
    """Utterances of so many unknown words."""
    return [Utterance("", ("zq",) * length) for length in lengths]


def reading(users, monkeypatch, **bounds):
    """Clients with rows of two targets, and the list of the users who were read."""
    for name, value in bounds.items():
        monkeypatch.setattr(clients, name, value)
    read = []

    def own(name):
        read.append(name)
        return users[name]

    return Clients(LazyUsers(users, own), build([("hello",)]), 2), read


def test_rows_kept_in_memory_are_bounded_by_clients_and_by_rows(monkeypatch):
    users = {"ann": said(1), "bob": said(1, 1), "cid": said(1), "dan": said(9)}  # 1, 2, 1, 5 rows
    some, read = reading(users, monkeypatch, KEPT=3, KEPT_ROWS=3)
    for i in (0, 1, 0, 2, 1):
        assert len(some[i]) == (1, 2, 1, 5)[i]
    assert read == ["ann", "bob", "cid", "bob"]  # the third took the place of the one asked last
    assert (len(some[3]), len(some[3])) == (5, 5)  # alone it may have more
    assert read[4:] == ["dan"]


def test_of_a_very_long_history_the_newest_rows_are_used(monkeypatch):
    history = said(9, 1, 3, 1)  # 5, 1, 2, 1 rows
    whole, _ = reading({"ann": history}, monkeypatch)
    some, _ = reading({"ann": history}, monkeypatch, MOST_ROWS=3, _BLOCK=2)
    np.testing.assert_array_equal(some[0], whole[0][-3:])
    assert len(reading({"ann": []}, monkeypatch)[0][0]) == 0

"""Clients: the batches one participation trains on."""

import numpy as np

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

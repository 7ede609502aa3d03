"""Beside Presage: how a word's keys are counted, whoever the keyboard is."""

from collections.abc import Sequence

import pytest

from benchmarks.keyboards import count, difference, sample
from device_runtime.metrics import Counts, keystroke_saving


@pytest.mark.parametrize(
    ("strips", "keys", "top1", "top3"),
    [
        ([["you", "the", "a"]], 1, 1, 1),
        ([["the", "a", "you"]], 1, 0, 1),
        ([["the"], ["yes", "you"]], 2, 0, 0),
        ([["the"], ["yes"], ["yours"]], 4, 0, 0),
    ],
)
def test_a_word_costs_the_letters_until_it_shows_and_one(
    strips: Sequence[list[str]], keys: int, top1: int, top3: int
) -> None:
    got = count("you", lambda begun: strips[min(len(begun), len(strips) - 1)])
    assert (got.keys, got.letters, got.top1, got.top3) == (keys, 4, top1, top3)


def test_a_system_beside_itself_differs_by_nothing() -> None:
    users = [Counts(letters=4, keys=2), Counts(letters=8, keys=6)]
    assert difference(users, users, keystroke_saving) == "+0.0\n+0.0..+0.0"


def test_the_sample_is_of_the_newest_200_messages_from_their_first() -> None:
    own = [str(i) for i in range(250)]
    assert sample(iter([own, ["a"], ["b"]]), 2, 2) == [["50", "51"], ["a"]]

"""A corpus in figures: shares worked by hand, bars that fit, a drawing without names."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedboard import corpus_figures
from model.corpus import Noted, Stats, prepare, stats

TRAIN, VALIDATION, TEST = "user0", "user26", "user13"  # where their names fall
ROWS = [(TRAIN, "hello again", None), (TRAIN, "hi", None), (TEST, "hi", None), (TEST, "42", None)]
COUNTS = {"train": [3], "validation": [1], "test": [1]}


@pytest.fixture
def figures() -> Stats:
    toy = prepare("toy", "", [*ROWS, (VALIDATION, "yes", None)])
    noted = Noted(8, COUNTS, COUNTS, 4, {"no word": ("log.csv:7",)}, ("times are seconds",))
    return stats(replace(toy, dropped={"no word": 1, "no user": 2}, noted=noted))


def test_shares_of_the_splits_and_of_what_was_left_out_are_shown(figures):
    (_, _, splits), (title, columns, left_out) = corpus_figures.tables(figures)
    assert splits[0] == ["train", "1 (33.3 %)", "3 (60.0 %)", "3 (60.0 %)"]
    assert title == "left out: 3 of 8 rows (37.5 %)"
    assert columns == ["left out", "rows", "%", "first in"]
    assert left_out == [
        ["no user", "2", "25.0", ""],
        ["no word", "1", "12.5", "log.csv:7"],
        ["kept", "5", "62.5", ""],
    ]
    assert corpus_figures.sentences(figures)[-1] == "times are seconds"


def test_without_places_there_is_no_column_of_them(figures):
    _, (_, columns, left_out) = corpus_figures.tables(replace(figures, places={}))
    assert columns == ["left out", "rows", "%"]
    assert left_out[0] == ["no user", "2", "25.0"]


def test_what_was_not_counted_is_said_and_not_drawn(figures):
    for dropped, word in ((None, "not counted"), ({}, "nothing")):
        shown = replace(figures, dropped=dropped)
        assert len(corpus_figures.tables(shown)) == 1
        assert f"left out: {word}" in corpus_figures.sentences(shown)
        assert [title for title, _ in corpus_figures.plots(shown)] == [
            "users, by words typed",
            "users, by messages sent",
        ]


@given(
    st.lists(st.tuples(st.text("ab ", min_size=1), st.integers(0, 10**9)), min_size=1, max_size=9),
    st.integers(40, 200),
    st.sampled_from(["utf-8", "ascii", "latin-1", "no such encoding"]),
)
def test_bars_fit_the_width_and_what_is_not_nothing_shows(rows, width, encoding):
    lines = corpus_figures.bars(rows, width, encoding)
    label = max(len(name) for name, _ in rows)
    assert len(lines) == len(rows)
    for line, (name, number) in zip(lines, rows, strict=True):
        drawn = line[label:].strip().removesuffix(f"{number:,}").strip()
        assert bool(drawn) == (number > 0)
        assert encoding == "utf-8" or line.isascii()
        assert len(line) <= max(width, label + 30)
        assert line.startswith(name)


def test_the_drawing_is_one_file_without_names_of_users_or_anything_from_elsewhere(figures):
    drawn = corpus_figures.svg(figures)
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "rows left out, by reason" in drawn
    for absent in (*(TRAIN, TEST), "<script", "<image", 'href="http', "url(http", "DOCTYPE"):
        assert absent not in drawn
    assert drawn == corpus_figures.svg(figures)

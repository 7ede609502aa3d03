"""Sorting with memory for a few rows only."""

from hypothesis import given
from hypothesis import strategies as st

from model import sorting
from model.sorting import Sorter

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=9)), max_size=40), st.integers(1, 2000))
def test_rows_come_back_in_order_whatever_fits_in_memory(tmp_path_factory, values, run):
    folder = tmp_path_factory.mktemp("sort") / "runs"
    rows = [(name, number, data) for number, (name, data) in enumerate(values)]
    sorter = Sorter(folder, run)
    for row in rows:
        sorter.add(row)
    assert list(sorter.drain()) == sorted(rows)
    sorter.remove()
    assert not folder.exists()


def test_more_runs_than_may_be_open_are_merged_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "RUNS", 3)
    monkeypatch.setattr(sorting, "BLOCK", 1)
    sorter = Sorter(tmp_path / "runs", run=1)
    for number in (5, 3, 9, 1, 7, 2, 8):
        sorter.add((number, b""))
        assert len(list((tmp_path / "runs").iterdir())) < 3
    assert [number for number, _ in sorter.drain()] == [1, 2, 3, 5, 7, 8, 9]
    assert not list((tmp_path / "runs").iterdir())


def test_a_reader_that_stops_midway_leaves_nothing_behind(tmp_path):
    sorter = Sorter(tmp_path / "runs", run=1)
    for number in range(4):
        sorter.add((number, b""))
    assert next(sorter.drain()) == (0, b"")
    sorter.remove()
    assert not list(tmp_path.iterdir())

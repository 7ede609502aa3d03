"""Scores of releases: rows that add up in any order, and are told of enough devices or not yet."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import config
from device_runtime.causes import Cause
from device_runtime.wire import MOST_WORDS, ReleaseScores, Scores
from server.judging import release_scores_of
from server.release_scores import (
    LEAST_ROWS,
    LOSS_UNITS,
    WIDTH,
    Figures,
    added,
    against_earlier,
    empty,
    from_flat,
    merge,
    of_release,
    split,
    to_rows,
    to_sum,
)
from server.sums import Sum

NEW, OLD = Scores(100, 20, 40, 90, 400.0), Scores(100, 17, 41, 90, 410.5)
PAIR = ReleaseScores(8, NEW, 7, OLD)


@st.composite
def reports(draw: st.DrawFn) -> ReleaseScores:
    """What one device may say of one of three releases."""
    targets = draw(st.integers(1, MOST_WORDS))
    known = draw(st.integers(0, targets))

    def scores() -> Scores:
        top3 = draw(st.integers(0, known))
        top1 = draw(st.integers(0, top3))
        return Scores(targets, top1, top3, known, draw(st.floats(0, 100.0 * known)))

    release = draw(st.integers(1, 3))
    before = draw(st.integers(0, release - 1))
    return ReleaseScores(release, scores(), before, scores() if before else None)


def told(table, fewest=1):
    return split(merge([table]), fewest)[0]


# a row


def test_a_device_is_a_row_of_its_pair_of_releases():
    (figures,) = told(to_rows(PAIR)).values()
    assert figures == Figures(
        devices=1,
        targets=100,
        top1=20,
        top3=40,
        in_vocabulary=90,
        loss=400 * LOSS_UNITS,
        words_squared=10_000,
        top1_squared=400,
        top1_words=2000,
        before_top1=17,
        before_top3=41,
        before_loss=int(410.5 * LOSS_UNITS),
        gain_squared=9,  # three words more are right
        gain_words=300,
        spread=(0, 0, 0, 0, 1, *[0] * 15),  # 20 to 25 %
    )
    assert told(to_rows(PAIR)).keys() == {(8, 7)}


def test_a_device_without_a_release_before_has_nothing_of_a_pair():
    ((pair, figures),) = told(to_rows(ReleaseScores(8, NEW))).items()
    assert pair == (8, 0)
    assert (figures.before_top1, figures.before_loss, figures.gain_squared) == (0, 0, 0)


@given(st.lists(reports(), max_size=20), st.randoms())
def test_no_order_no_group_and_no_replica_changes_what_they_add_up_to(devices, random):
    total = merge(map(to_rows, devices))
    shuffled = random.sample(devices, len(devices))
    cut = random.randrange(len(devices) + 1)
    replicas = [added(None, shuffled[:cut]), added(None, shuffled[cut:])]
    assert (merge(from_flat(each.total) for each in replicas) == total).all()
    assert sum(replica.count for replica in replicas) == len(devices)
    by_pair = {}
    for each in devices:
        by_pair.setdefault((each.release, each.before), []).append(to_rows(each))
    assert told(total) == {
        pair: functools.reduce(Figures.__add__, (told(rows)[pair] for rows in several))
        for pair, several in by_pair.items()
    }


def test_a_sum_is_as_long_with_one_release_as_with_many():
    """So that the length of what is sealed does not tell how many there are."""
    many = [replace(PAIR, release=number) for number in range(8, 8 + LEAST_ROWS)]
    lengths = {
        len(to_sum(merge(map(to_rows, several))).to_bytes())
        for several in ([], many[:1], many[:9], many)
    }
    assert lengths == {8 * (3 + LEAST_ROWS * WIDTH)}
    more = merge([*map(to_rows, many), to_rows(replace(PAIR, release=999))])
    assert len(more) == 2 * LEAST_ROWS


def test_a_sum_goes_through_its_stored_form_whole():
    total = added(None, [PAIR, ReleaseScores(8, NEW)])
    again = Sum.from_bytes(bytes(total.to_bytes()))
    assert (again.total == total.total).all()
    assert (again.count, len(from_flat(again.total))) == (2, LEAST_ROWS)


# what is told


def test_a_row_is_told_once_it_has_enough_devices_and_then_begins_anew():
    one, two = merge([to_rows(PAIR)]), merge([to_rows(PAIR)] * 2)
    nothing, waiting = split(one, fewest=2)
    assert nothing == {}
    assert (waiting == one).all()
    figures, left = split(merge([waiting, one]), fewest=2)
    assert figures == told(two)
    assert (left == empty()).all()


@given(st.lists(st.lists(reports(), max_size=8), max_size=6), st.integers(1, 5))
def test_what_is_told_grows_by_so_many_devices_at_once_and_nobody_is_lost(rounds, fewest):
    waiting, heard = empty(), []
    for devices in rounds:
        figures, waiting = split(merge([waiting, *map(to_rows, devices)]), fewest)
        heard += [figures]
        assert all(each.devices >= fewest for each in figures.values())
        assert (waiting[:, 2] < fewest).all()
    counted = sum(each.devices for figures in heard for each in figures.values())
    assert counted + waiting[:, 2].sum() == sum(map(len, rounds))


def test_a_release_is_the_sum_of_its_rows_and_its_gain_is_over_earlier_ones_alone():
    figures = told(
        merge(
            [
                to_rows(PAIR),
                to_rows(ReleaseScores(8, NEW)),
                to_rows(ReleaseScores(8, NEW, 9, OLD)),  # came down: 9 was withdrawn
                to_rows(ReleaseScores(8, NEW, 6, OLD)),
                to_rows(ReleaseScores(7, NEW)),
            ]
        )
    )
    assert of_release(figures, 8).devices == 4
    assert against_earlier(figures, 8).devices == 2
    assert of_release(figures, 5) == Figures()


@given(st.integers(1, 4000))
def test_any_number_of_pairs_has_its_rows(pairs):
    table = np.zeros((pairs, WIDTH), np.int64)
    table[:, 0] = np.arange(1, pairs + 1)
    table[:, 2] = 1
    rows = merge([table])
    assert (rows[:, 0] > 0).sum() == pairs
    assert len(rows) >= LEAST_ROWS
    assert len(rows).bit_count() == 1


# reports


@given(reports())
def test_what_a_device_can_have_counted_is_read_as_it_was_sent(report):
    assert release_scores_of(config.to_json(report)) == report


@pytest.mark.parametrize(
    "report",
    [
        replace(PAIR, release=0),
        replace(PAIR, before=8),
        replace(PAIR, before=0),
        replace(PAIR, before_scores=None),
        replace(PAIR, scores=replace(NEW, targets=MOST_WORDS + 1)),
        replace(PAIR, scores=replace(NEW, top1=41)),
        replace(PAIR, before_scores=replace(OLD, targets=99)),
        replace(PAIR, before_scores=replace(OLD, in_vocabulary=89)),
        replace(PAIR, before_scores=replace(OLD, loss=9001.0)),
        replace(PAIR, scores=Scores(0, 0, 0, 0, 0.0), before_scores=Scores(0, 0, 0, 0, 0.0)),
    ],
    ids=[
        *("no release", "before itself", "scores of none", "before without scores"),
        *("too many words", "more right than known", "other words", "other vocabulary"),
        *("no loss", "no words"),
    ],
)
def test_what_no_device_can_have_counted_is_refused(report):
    assert release_scores_of(config.to_json(report)) is Cause.NOT_SCORES


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", config.to_json(NEW)])
def test_what_is_no_report_of_releases_is_refused(body):
    assert release_scores_of(body) is Cause.NOT_SCORES

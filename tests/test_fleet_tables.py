import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.causes import Cause
from device_runtime.errors import RunError
from device_runtime.turn import Status
from device_runtime.wire import Phase, RoundReport, Scores
from fleet import figures, tables, turns
from fleet.assignments import COUNTED, DROPPED_OUT, TURNED_AWAY, assignments, sessions
from fleet.availability import NEEDED, Always
from fleet.begin import begin
from fleet.settings import START
from fleet.tables import Lived, Measured
from tests.toy_fleet import SETTINGS


@pytest.fixture(scope="module")
def lived(tmp_path_factory) -> Lived:
    """What a fleet of 40 devices has lived through, in three committed rounds."""
    fleet = begin(SETTINGS, tmp_path_factory.mktemp("fleet") / "fleet")
    fleet.run(86_400)
    it = tables.lived(fleet)
    fleet.servers.close()
    return it


def turn(device=0, round=1, status=Status.COUNTED, cause=None, up=0, **times):
    """A row of one turn; times in seconds since the fleet began."""
    row = np.zeros(1, turns.TURN)
    row["device"], row["round"], row["bytes_up"] = device, round, up
    row["status"] = turns.FAILED if status is None else turns.STATUSES.index(status)
    row["cause"] = 0 if cause is None else 1 + turns.CAUSES.index(cause)
    for name, time in times.items():
        row[name] = time
    return row


def of(*rows):
    return np.concatenate(rows)


def only(lived, *rows, rounds=(), **changed):
    """A fleet of the same devices in which nothing but this happened."""
    empty = replace(lived, turns=np.zeros(0, turns.TURN), rounds=(), check_ins={}, at_work=0)
    ended = of(*rows) if rows else empty.turns
    return replace(empty, turns=ended, rounds=tuple(rounds), **changed)


def counts(table, *names):
    """The rows of a table as a dict from the first columns to the last one."""
    columns = [table[name] for name in names]
    rows = zip(*columns, strict=True)
    return {key[0] if len(key) == 1 else tuple(key): value for *key, value in rows}


# assignments


def test_work_that_was_paused_and_then_counted_is_one_assignment_that_counted():
    paused = turn(status=Status.PAUSED, cause=Cause.IN_USE, assigned=10, fetched=11, trained=20)
    given = assignments(of(paused, turn(assigned=90, trained=95, ended=99)))
    assert list(given.fate) == [COUNTED]
    assert list(given.at) == [10]


def test_work_that_counted_has_counted_whatever_comes_after():
    given = assignments(of(turn(ended=5), turn(status=Status.SENDING, ended=9), turn(2, ended=7)))
    assert list(given.fate) == [COUNTED, COUNTED]
    assert list(given.ended) == [5, 7]


def test_work_that_stays_paused_has_dropped_out():
    (fate,) = assignments(turn(status=Status.PAUSED, cause=Cause.IN_USE)).fate
    assert fate == DROPPED_OUT


@pytest.mark.parametrize(
    ("status", "cause", "fate"),
    [
        (Status.ABANDONED, Cause.NOT_CHARGING, DROPPED_OUT),
        (Status.NOT_COUNTED, Cause.LATE, DROPPED_OUT),
        (Status.SENDING, None, DROPPED_OUT),
        (None, None, DROPPED_OUT),
        (Status.NOT_COUNTED, Cause.SURPLUS, TURNED_AWAY),
        (Status.NOT_COUNTED, Cause.NORM_TOO_LARGE, TURNED_AWAY),
        (Status.ABANDONED, Cause.REPORTED_RECENTLY, TURNED_AWAY),
    ],
)
def test_who_was_stopped_drops_out_and_who_was_not_wanted_is_turned_away(status, cause, fate):
    assert list(assignments(turn(status=status, cause=cause)).fate) == [fate]


def test_sessions_have_the_shapes_that_bonawitz_et_al_give_them():
    whole = {"assigned": 1, "fetched": 2, "trained": 3, "up": 9}
    rows = of(
        turn(**whole),
        turn(**whole),
        turn(status=Status.NOT_COUNTED, cause=Cause.SURPLUS, **whole),
        turn(status=Status.PAUSED, cause=Cause.IN_USE, assigned=1, fetched=2, trained=3),
        turn(status=None, assigned=1),
        turn(status=Status.ABANDONED, cause=Cause.REPORTED_RECENTLY, assigned=1),
    )
    assert sessions(rows) == [("-v[]+^", 2), ("-#", 1), ("-*", 1), ("-v[!", 1), ("-v[]+#", 1)]


# sums


def test_the_figures_are_those_of_the_server(lived):
    made = tables.tables(lived)
    told = tables.summary(lived, made)
    assert told.updates_counted == sum(each.counted for each in lived.rounds)
    assert told.assignments + lived.at_work == sum(each.assigned for each in lived.rounds)
    assert told.bytes_up == sum(made["traffic"]["bytes_up"]) == lived.turns["bytes_up"].sum()
    assert told.rounds_committed == 3
    assert sum(made["rounds"]["counted"]) == told.updates_counted
    assert sum(made["check_ins"]["check_ins"]) == told.check_ins
    assert sum(made["participation"]["devices"]) == told.devices == 40
    assert sum(made["why_never"]["devices"]) == told.devices_never


def test_every_table_has_the_columns_that_are_written_down(lived):
    columns = {name: list(table) for name, table in tables.tables(lived).items()}
    assert columns == {name: columns.split() for name, columns in figures.TABLES.items()}


@given(
    st.lists(
        st.builds(
            turn,
            st.integers(0, 9),
            st.integers(1, 3),
            st.sampled_from([*Status, None]),
            st.sampled_from([*Cause, None]),
            st.integers(0, 1),
            fetched=st.integers(0, 1),
            trained=st.integers(0, 1),
        ),
        min_size=1,
    ),
    st.integers(0, 3),
)
@settings(max_examples=60)
def test_each_step_of_the_funnel_has_those_of_the_step_before_but_for_the_lost(rows, at_work):
    given = assignments(of(*rows))
    it = Lived(SETTINGS, None, 86_400.0, at_work=at_work, check_ins={(0, "assigned"): 500})
    table = tables.funnel(it, given)
    left = None
    for step, cause, count in zip(*table.values(), strict=True):
        if cause:
            left -= count
        elif step != "asked":
            assert left == count
        left = count if not cause else left
    assert left == np.sum(given.fate == COUNTED)


def test_check_ins_are_refused_by_cause_or_get_work_anew_or_once_more(lived):
    asked = {(0, "round_full"): 3, (1, "round_full"): 1, (1, "in_use"): 2, (2, "assigned"): 5}
    it = only(lived, turn(1), turn(2), turn(3), at_work=1, check_ins=asked)
    rows = counts(tables.funnel(it, assignments(it.turns)), "step", "cause", "count")
    assert rows["asked", ""] == 11
    assert rows["assigned", "round_full"] == 4
    assert rows["assigned", "in_use"] == 2
    assert rows["assigned", "assigned_before"] == 1
    assert rows["assigned", ""] == 4
    assert rows["fetched", "under_way"] == 1
    assert rows["counted", ""] == 3


# who could


class Shifts(Always):
    """All devices are ready in the first half of each day, and every fourth one always is."""

    def signals(self, devices, at):
        return np.where((at % 86_400 < 43_200) | (devices % 4 == 0), NEEDED, 0).astype(np.uint8)


def test_the_swing_is_the_best_hour_of_a_weekday_over_the_worst(lived):
    it = replace(lived, shared=replace(lived.shared, availability=Shifts()), seconds=86_400.0)
    by_hour = tables.eligible(it)
    assert by_hour["all_three"] == [1.0] * 12 + [0.25] * 12
    assert tables.swing(tables.eligible_by_hour_of_day(by_hour)) == 4.0


def test_hours_of_the_day_are_those_of_whole_weekdays(lived):
    weekend = {"hour": list(range(24 * 8)), "day": [1 + hour // 24 for hour in range(24 * 8)]}
    weekend["hour_of_day_utc"] = [hour % 24 for hour in weekend["hour"]]
    shares = [0.5 if day % 7 in (6, 0) else 0.1 for day in weekend["day"]]
    for name in ("charging", "unmetered", "idle", "all_three"):
        weekend[name] = shares
    of_day = tables.eligible_by_hour_of_day(weekend)
    assert of_day["days"] == [6] * 24
    assert of_day["all_three"] == pytest.approx([0.1] * 24)


def test_less_than_a_day_and_an_hour_without_anybody_have_no_swing(lived):
    hour = tables.eligible(replace(lived, seconds=3600.0))
    assert tables.swing(tables.eligible_by_hour_of_day(hour)) is None
    assert tables.swing({"all_three": [0.5] * 23 + [0.0]}) is None


# rounds


def committed(number, opened, seconds, **more):
    return RoundReport(
        number, Phase.COMMITTED, 5, opened_at=START + opened, seconds=seconds, **more
    )


def test_rounds_without_any_device_at_work_are_not_among_those_that_should_close(lived):
    nobody = RoundReport(1, Phase.ABANDONED, 5, opened_at=START)
    few = RoundReport(2, Phase.ABANDONED, 5, assigned=2, opened_at=START)
    it = only(lived, rounds=(nobody, few, committed(3, 0, 60, assigned=6)))
    told = tables.summary(it, tables.tables(it))
    assert (told.rounds_committed, told.rounds_abandoned, told.rounds_empty) == (1, 2, 1)
    assert told.rounds_closed_share == 0.5


def test_staleness_is_in_rounds_from_where_an_update_was_begun_to_where_it_counted(lived):
    rounds = committed(1, 0, 100), committed(2, 100, 100), committed(3, 200, 100)
    rows = turn(1, 1, ended=50), turn(2, 1, ended=100), turn(3, 1, ended=150), turn(4, 1, ended=250)
    it = only(lived, *rows, turn(5, 3, ended=260), rounds=rounds)
    table = tables.staleness(it, assignments(it.turns))
    assert counts(table, "rounds_behind", "updates") == {0: 3, 1: 1, 2: 1}


def test_a_round_has_the_mean_loss_of_those_that_counted(lived):
    rows = of(turn(1, 7), turn(2, 7), turn(3, 7, status=Status.NOT_COUNTED, cause=Cause.SURPLUS))
    rows["loss_before"], rows["loss_after"] = [4.0, 6.0, 99.0], [3.0, 4.0, 99.0]
    table = tables.rounds(only(lived, rows, rounds=[committed(7, 3600, 60), committed(8, 3660, 1)]))
    assert table["loss_before"] == [5.0, None]
    assert table["loss_after"] == [3.5, None]
    assert table["opened_h"] == [1.0, pytest.approx(3660 / 3600)]


def test_a_round_can_be_followed_device_by_device(lived):
    rows = turn(3, 2, assigned=10, fetched=12, ended=20), turn(4, 1)
    table = tables.of_round(of(*rows), lived.shared.population, 2)
    assert table["device"] == [3]
    assert table["class"] == [lived.shared.population.classes[lived.shared.population.kind[3]].name]
    assert (table["assigned_s"], table["fetched_s"], table["trained_s"]) == ([10.0], [12.0], [None])
    assert (table["status"], table["fate"]) == (["counted"], ["counted"])


# who takes part


def test_who_never_takes_part_is_told_by_what_they_are(lived):
    kinds = lived.shared.population.kind
    low = np.flatnonzero(kinds == 0)
    it = only(lived, *(turn(int(device)) for device in np.flatnonzero(kinds != 0)))
    times = tables.counted_by_device(it, assignments(it.turns))
    table = tables.bias(it.shared.population, times)
    never = counts(table, "by", "value", "never")
    assert never["all", "all"] == never["class", "low"] == len(low)
    assert never["class", "middle"] == never["class", "high"] == 0
    assert counts(table, "by", "value", "share_of_never")["class", "low"] == 1.0
    assert counts(table, "by", "value", "share_of_updates")["class", "low"] == 0.0
    assert table["share_of_devices"][0] == 1.0


def test_devices_are_counted_by_how_often_they_took_part(lived):
    it = only(lived, turn(1, 1), turn(1, 2), turn(2, 1))
    table = tables.participation(tables.counted_by_device(it, assignments(it.turns)))
    assert counts(table, "times_counted", "devices") == {0: 38, 1: 1, 2: 1}


class Ready(Always):
    """Device 0 never is, the others always are."""

    def ready_at(self, devices, after, needed=NEEDED):
        return np.where(devices == 0, math.inf, after)


def test_whoever_never_took_part_has_one_reason(lived):
    silent = replace(lived.shared.population, first_messages=np.full(40, 50, np.int32))
    silent.first_messages[1], silent.messages_a_day[:] = 0, 0.0
    shared = replace(lived.shared, availability=Ready(), population=silent)
    lost = turn(2, status=Status.ABANDONED, cause=Cause.IN_USE)
    it = only(lived, lost, *(turn(device) for device in range(4, 40)), shared=shared)
    given = assignments(it.turns)
    table = tables.why_never(it, given, tables.counted_by_device(it, given))
    assert counts(table, "why", "devices") == {
        "conditions never held": 1,
        "typed too little": 1,
        "got work, which never counted": 1,
        "had no place in any round": 1,
    }


def test_accuracy_is_a_share_of_words_and_loss_is_over_known_ones(lived):
    it = only(lived, measured=(Measured(2, 7200.0, "everybody", 3, Scores(10, 2, 5, 8, 24.0)),))
    table = tables.accuracy(it)
    assert (table["top1"], table["top3"], table["loss"]) == ([0.2], [0.5], [3.0])
    assert table["made_at_h"] == [2.0]


# files


def test_figures_that_were_written_are_read_again(lived, tmp_path):
    told = tables.write(lived, tmp_path)
    again, read = figures.read(tmp_path)
    assert again == told
    made = {name: {key: list(column) for key, column in table.items()}
            for name, table in tables.tables(lived).items()}  # fmt: skip
    assert read == made


def test_equal_fleets_have_equal_files(lived, tmp_path):
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        tables.write(lived, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*.*"))
    assert len(files) == len(figures.TABLES) + 1
    for file in files:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("seconds", [0.0, 5.0, 86_400.0])
def test_a_fleet_to_which_nothing_happened_has_figures_too(lived, tmp_path, seconds):
    told = tables.write(only(lived, seconds=seconds), tmp_path)
    assert told.devices_never == 40
    assert told.rounds_closed_share is told.drop_out_share is told.epsilon is None
    assert figures.read(tmp_path)[0] == told


@given(st.text())
@settings(max_examples=200)
def test_any_text_is_a_table_or_one_clear_error(text):
    try:
        table = figures.from_csv(text, "rounds.csv")
    except RunError as error:
        assert "rounds.csv" in str(error)
    else:
        assert len({len(column) for column in table.values()}) <= 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tables/fates.csv", "fate,cause\ncounted,\n"),
        ("tables/rounds.csv", ""),
        ("tables/staleness.csv", "rounds_behind,updates\n0,nan\n"),
        ("summary.json", "{}"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(lived, tmp_path, file, content):
    tables.write(lived, tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(RunError, match=file):
        figures.read(tmp_path)


def test_every_table_and_every_column_is_explained():
    page = (Path(__file__).parents[1] / "docs" / "fleet-report.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(rows) == list(figures.TABLES)
    evident = {"hour", "day", "hour_of_day_utc", "round", "step", "cause", "fate", "shape", "why"}
    evident |= {"by", "value", "rounds_behind", "times_counted"}  # what a row is for each of
    for name, columns in figures.TABLES.items():
        for column in set(columns.split()) - evident:
            assert f"`{column}`" in rows[name], f"{name}.{column}"

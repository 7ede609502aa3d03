"""Rounds: what an event makes of a round."""

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import ConfigError
from server.rounds import (
    OPEN,
    Admitted,
    Asked,
    Dropped,
    Event,
    Mode,
    Phase,
    Reported,
    RoundState,
    Rules,
    Tick,
    advance,
    following,
    happened,
)


def play(rules: Rules, *events: Event) -> RoundState:
    return reduce(lambda state, event: advance(state, event, rules), events, RoundState(1))


def test_round_commits_at_the_report_goal_and_ignores_stragglers():
    rules = Rules(report_goal=2, over_selection=1.5)  # a cohort of 3
    state = play(rules, *[Admitted()] * 3, Reported(), Reported(), Reported())
    assert state.phase is Phase.COMMITTED
    assert state.reported == 2


def test_cohort_is_the_goal_times_the_over_selection_rounded_up():
    assert Rules(report_goal=100).cohort == 130
    assert Rules(report_goal=3, over_selection=1.1).cohort == 4


def test_half_the_goal_is_the_fewest_reports_unless_the_rules_say_otherwise():
    assert [Rules(report_goal=goal).fewest for goal in (1, 2, 5, 100)] == [1, 1, 2, 50]
    assert Rules(report_goal=5, min_reports=5).fewest == 5


def test_a_full_cohort_ends_selection():
    rules = Rules(report_goal=2, over_selection=1.5)
    assert play(rules, *[Admitted()] * 2).phase is Phase.SELECTING
    full = play(rules, *[Admitted()] * 3)
    assert full.phase is Phase.REPORTING
    assert advance(full, Admitted(), rules) == full


def test_a_device_that_drops_out_during_selection_is_not_replaced():
    # a cohort of 2, of which one report is enough in the end
    rules = Rules(report_goal=2, over_selection=1.0)
    state = play(rules, Admitted(), Dropped(), Admitted())
    assert state.phase is Phase.REPORTING
    assert play(rules, Admitted(), Dropped(), Admitted(), Reported()).phase is Phase.COMMITTED


def test_a_round_that_nobody_has_joined_waits():
    state = play(Rules(report_goal=2, selection_s=10), Tick(1e9))
    assert state == RoundState(1)


def test_selection_ends_after_its_window_with_fewer_than_the_cohort():
    rules = Rules(report_goal=4, min_reports=2, selection_s=10)
    state = play(rules, Admitted(5), Admitted(6), Tick(14.9))
    assert state.phase is Phase.SELECTING
    assert advance(state, Tick(15), rules).phase is Phase.REPORTING


def test_selection_with_too_few_devices_abandons_the_round_at_its_end():
    rules = Rules(report_goal=4, min_reports=2, selection_s=10)
    assert play(rules, Admitted(5), Tick(15)).phase is Phase.ABANDONED


def test_round_commits_at_the_deadline_with_the_minimum_of_reports():
    rules = Rules(report_goal=4, over_selection=1.0, min_reports=2, reporting_s=100)
    state = play(rules, *[Admitted(1)] * 4, Reported(2), Reported(3), Tick(100.9))
    assert state.phase is Phase.REPORTING
    assert advance(state, Tick(101), rules).phase is Phase.COMMITTED


def test_round_is_abandoned_at_the_deadline_with_fewer():
    rules = Rules(report_goal=4, over_selection=1.0, min_reports=2, reporting_s=100)
    state = play(rules, *[Admitted(1)] * 4, Reported(2), Tick(101))
    assert state.phase is Phase.ABANDONED


def test_no_device_loses_a_second_of_the_time_it_was_promised():
    rules = Rules(
        report_goal=2, over_selection=1.0, min_reports=1, selection_s=1000, reporting_s=100
    )
    state = play(rules, Admitted(0), Admitted(90), Reported(189.9))
    assert (state.phase, state.waiting) == (Phase.REPORTING, 1)
    assert advance(state, Tick(189.95), rules).phase is Phase.REPORTING
    assert advance(state, Tick(190), rules).phase is Phase.COMMITTED


def test_a_report_that_arrives_after_the_deadline_is_late_even_before_the_next_tick():
    rules = Rules(report_goal=2, over_selection=1.0, min_reports=1, reporting_s=100)
    state = play(rules, Admitted(0), Admitted(0), Reported(1), Reported(100))
    assert (state.phase, state.reported) == (Phase.COMMITTED, 1)


def test_round_commits_early_when_nobody_is_left_to_wait_for():
    rules = Rules(report_goal=3, over_selection=1.0, min_reports=2)
    state = play(rules, *[Admitted()] * 3, Reported(), Reported())
    assert state.phase is Phase.REPORTING
    assert advance(state, Dropped(), rules).phase is Phase.COMMITTED


def test_round_is_abandoned_as_soon_as_no_report_to_come_can_help_it():
    rules = Rules(report_goal=3, over_selection=1.0, min_reports=2)
    assert play(rules, *[Admitted()] * 3, Dropped(), Dropped()).phase is Phase.ABANDONED


def test_everybody_reporting_does_not_commit_while_others_may_still_join():
    rules = Rules(report_goal=3, min_reports=1, selection_s=10)
    state = play(rules, Admitted(0), Reported(1))
    assert state.phase is Phase.SELECTING
    assert advance(state, Tick(10), rules).phase is Phase.COMMITTED


def test_reports_and_losses_that_nobody_is_left_to_make_change_nothing():
    # a cohort of 5, of which two have joined and are through
    rules = Rules(report_goal=3, over_selection=1.5)
    state = play(rules, *[Admitted()] * 2, Reported(), Dropped())
    assert (state.admitted, state.waiting) == (2, 0)
    assert [advance(state, event, rules) for event in (Reported(), Dropped())] == [state, state]


def test_a_round_that_is_over_takes_no_event():
    rules = Rules(report_goal=2, over_selection=1.5)
    state = play(rules, *[Admitted()] * 3, Reported(), Reported())
    assert [
        advance(state, event, rules) for event in (Admitted(9), Reported(9), Dropped(9), Tick(1e9))
    ] == [state] * 4


# three devices at work at once
BUFFERED = Rules(
    report_goal=2, over_selection=1.5, mode=Mode.BUFFERED, selection_s=10, reporting_s=100
)


def test_a_buffered_round_admits_a_device_whenever_fewer_than_a_cohort_are_at_work():
    full = play(BUFFERED, *[Admitted()] * 3)
    assert (full.phase, advance(full, Admitted(), BUFFERED)) == (Phase.SELECTING, full)
    for event in (Reported(1), Dropped(1)):
        assert play(BUFFERED, *[Admitted()] * 3, event, Admitted(2)).waiting == 3


def test_a_buffered_round_waits_for_its_goal_as_long_as_that_takes_and_takes_those_at_work_along():
    one = play(BUFFERED, *[Admitted()] * 3, Reported(1), Tick(1e6))
    assert one.phase is Phase.SELECTING
    done = advance(one, Reported(1e6), BUFFERED)
    assert (done.phase, done.reported) == (Phase.COMMITTED, 2)
    assert following(done, BUFFERED) == RoundState(
        2, admitted=1, first_admitted=0.0, last_admitted=0.0
    )
    assert following(done, Rules()) == RoundState(2)


@pytest.mark.parametrize(
    "changed",
    [
        {"report_goal": 0},
        {"over_selection": 0.9},
        {"min_reports": 0},
        {"report_goal": 2, "min_reports": 3},
        {"retry_s": float("nan")},
    ],
)
def test_rules_no_round_could_follow_are_refused(changed):
    with pytest.raises(ConfigError):
        Rules(**changed)


times = st.floats(0, 300)
events = st.one_of(st.builds(kind, times) for kind in (Admitted, Reported, Dropped, Tick))


@given(st.lists(events, max_size=60), st.integers(1, 4), st.sampled_from(Mode))
def test_whatever_happens_a_round_keeps_its_promises(history, goal, mode):
    rules = Rules(report_goal=goal, over_selection=1.5, selection_s=50, reporting_s=100, mode=mode)
    state = RoundState(1)
    for event in sorted(history, key=lambda event: event.at):
        after = advance(state, event, rules)
        assert after.reported + after.dropped <= after.admitted
        assert 0 <= after.waiting <= rules.cohort
        assert after.reported <= goal
        assert state.phase in OPEN or after == state
        assert after.phase is not Phase.COMMITTED or after.reported >= rules.fewest
        state = after
    if mode is Mode.SYNCHRONOUS:
        assert advance(state, Tick(500), rules).phase not in OPEN or not state.admitted
    elif state.phase not in OPEN:
        assert following(state, rules).waiting == state.waiting


def test_what_happens_at_the_same_time_needs_no_second_look_at_the_clock():
    rules = Rules(report_goal=2, over_selection=1.5, selection_s=10.0)
    events = [Asked(1.0), Asked(1.0), Asked(1.0), Tick(11.0), Admitted(11.0), Admitted(11.0)]
    looked = once = RoundState(1)
    for before, event in zip([None, *events], events, strict=False):
        is_later = before is None or before.at != event.at
        looked = advance(looked, event, rules)
        once = (advance if is_later else happened)(once, event, rules)
        assert once == looked

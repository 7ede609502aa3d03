"""Places: who gets into a round, however often who asks, and that no round stops for ever."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from device_runtime.causes import Cause
from device_runtime.wire import OPEN, Abandon, Assignment, Phase, Reject
from server import dashboard, overview, places
from server.eligibility import Policy
from server.metrics import Metrics
from server.places import Chance, Places, Ticket
from server.rounds import (
    Admitted,
    Asked,
    Dropped,
    Mode,
    Reported,
    RoundState,
    Rules,
    Tick,
    TurnedAway,
    Withdrawn,
    advance,
    following,
)
from tests import toy_server
from tests.toy_server import READY, OneByOne, check_in, encoded, enrolled

# a cohort of 2; windows of a minute, half a minute to come back
RULES = Rules(
    report_goal=2, over_selection=1.0, min_reports=1, selection_s=60, claim_s=30, retry_s=100
)
CLOSED = [Cause.NOT_DRAWN, Cause.ROUND_FULL]


@pytest.fixture
def coordinator(tmp_path):
    opened = toy_server.new(tmp_path / "server", RULES)
    yield opened
    opened.close()


def causes(answers) -> list[Cause | None]:
    return [getattr(answer, "cause", None) for answer in answers]


# the draw


def test_each_order_of_those_who_asked_is_as_likely_as_any_other():
    counts = Counter(
        tuple(sorted("abc", key=places.draw("abc", 2, str(number)).__getitem__))
        for number in range(6000)
    )
    # six orders, 1000 each: chi-square of 5 degrees of freedom, 20.5 in one of a thousand
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5


def test_a_draw_keeps_twice_as_many_tickets_as_there_are_places():
    kept = places.draw(map(str, range(10)), 2, "secret")
    assert sorted(kept.values()) == [0, 1, 2, 3]
    assert places.draw(map(str, reversed(range(10))), 2, "secret") == kept
    assert places.draw(map(str, range(11)), 2, "secret") != kept


# one window


def test_who_asks_hears_when_the_window_ends_and_then_whether_it_was_drawn(coordinator):
    devices = enrolled(coordinator, 5)
    told = [coordinator.check_in(device, READY, 10.0 + 5 * k) for k, device in enumerate(devices)]
    assert causes(told) == [Cause.SELECTING] * 5
    # the window is open from the first ask for a minute; a second is added by chance
    assert [math.floor(answer.retry_in_s / 5) * 5 for answer in told] == [60, 55, 50, 45, 40]
    answers = [coordinator.check_in(device, READY, 72.0) for device in devices]
    assert causes(answers).count(None) == 2
    # whoever came before both were there may still replace one
    assert set(causes(answers)) <= {None, Cause.SELECTING, Cause.NOT_DRAWN}
    coordinator.tick(200.0)
    for device in devices:
        assert isinstance(coordinator.check_in(device, READY, 200.0), Assignment | Reject)
    report = coordinator.reports(200.0).rounds[0]
    assert (report.checked_in, report.assigned, report.refused) == (5, 2, {"not_drawn": 3})


def test_a_device_that_is_not_among_those_who_may_join_takes_no_ticket(coordinator):
    a, b = enrolled(coordinator, 2)
    assert coordinator.check_in(a, check_in(charging=False), 1.0).cause is Cause.NOT_CHARGING
    assert coordinator.check_in(b, READY, 5.0).cause is Cause.SELECTING
    with coordinator.store.reading() as rows:
        state = rows.open_rounds()["default"].state
    assert (state.places.asked, state.places.until) == (1, 65.0)


def test_those_who_do_not_come_are_replaced_by_the_next_in_the_order(coordinator):
    devices = enrolled(coordinator, 6)
    for device in devices:
        coordinator.check_in(device, READY, 10.0)
    coordinator.tick(70.0)
    with coordinator.store.reading() as rows:
        order = {
            device: checked.ticket.place
            for (device, _), checked in rows.check_ins_of(devices).items()
            if checked.ticket.place is not None
        }
    first, second, third, fourth = sorted(order, key=order.__getitem__)
    # the second never comes
    assert isinstance(coordinator.check_in(first, READY, 72.0), Assignment)
    for device in (fourth, third):
        assert coordinator.check_in(device, READY, 72.0).cause is Cause.SELECTING
    assert coordinator.check_in(fourth, READY, 110.0).cause is Cause.SELECTING
    assert isinstance(coordinator.check_in(third, READY, 110.0), Assignment)
    assert coordinator.check_in(second, READY, 111.0).cause in CLOSED
    coordinator.tick(111.0)
    with coordinator.store.reading() as rows:
        assert rows.open_rounds()["default"].state.phase is Phase.REPORTING


def test_a_device_that_comes_late_takes_a_place_that_nobody_asked_for(coordinator):
    a, b, c = enrolled(coordinator, 3)
    coordinator.check_in(a, READY, 10.0)
    # the window is over, one place was not asked for
    assert isinstance(coordinator.check_in(b, READY, 75.0), Assignment)
    assert coordinator.check_in(c, READY, 76.0).cause is Cause.ROUND_FULL
    assert isinstance(coordinator.check_in(a, READY, 77.0), Assignment)


def test_a_window_in_which_too_few_ask_ends_the_round_before_anybody_has_worked(tmp_path):
    coordinator = toy_server.new(tmp_path, replace(RULES, min_reports=2))
    a, b = enrolled(coordinator, 2)
    coordinator.check_in(a, READY, 10.0)
    assert coordinator.check_in(a, READY, 72.0).cause is Cause.SELECTING  # of the next round
    assert coordinator.check_in(b, READY, 75.0).cause is Cause.SELECTING
    first, second = coordinator.reports(80.0).rounds
    assert (first.phase, first.assigned, first.refused) == ("abandoned", 0, {"selecting": 1})
    assert (second.checked_in, second.refused) == (2, {"selecting": 2})
    coordinator.close()


def test_without_a_window_places_go_by_arrival(tmp_path):
    coordinator = toy_server.new(tmp_path, replace(RULES, selection_s=0))
    devices = enrolled(coordinator, 3)
    answers = [coordinator.check_in(device, READY, 1.0) for device in devices]
    assert causes(answers) == [None, None, Cause.ROUND_FULL]
    coordinator.close()


# times that were told


def test_a_device_that_comes_before_its_time_has_no_ticket(coordinator):
    devices = enrolled(coordinator, 3)
    told = [coordinator.check_in(device, READY, 10.0) for device in devices]
    early = coordinator.check_in(devices[0], READY, 30.0)
    assert early == Reject(Cause.TOO_EARLY, pytest.approx(told[0].retry_in_s - 20))
    again = coordinator.check_in(devices[0], READY, 40.0)  # its time is still the same
    assert again == Reject(Cause.TOO_EARLY, pytest.approx(told[0].retry_in_s - 30))
    answers = [coordinator.check_in(device, READY, 72.0) for device in devices]
    assert causes(answers) == [Cause.ROUND_FULL, None, None]
    report = coordinator.reports(80.0).rounds[0]
    assert (report.checked_in, report.refused) == (3, {"round_full": 1})


def test_an_ask_that_is_repeated_because_its_answer_was_lost_keeps_its_ticket(coordinator):
    a, b = enrolled(coordinator, 2)
    for device in (a, b):
        told = coordinator.check_in(device, READY, 10.0)
    again = coordinator.check_in(b, READY, 19.0)
    assert again == Reject(Cause.SELECTING, pytest.approx(told.retry_in_s - 9))
    assert isinstance(coordinator.check_in(b, READY, 72.0), Assignment)


def test_every_answer_with_a_time_is_kept_to_and_open_work_is_given_again_at_any_time(tmp_path):
    coordinator = toy_server.new(tmp_path, replace(RULES, selection_s=0))
    a, b = enrolled(coordinator, 2)
    refused = coordinator.check_in(a, check_in(idle=False), 1.0)
    assert refused.cause is Cause.IN_USE
    assert coordinator.check_in(a, READY, 60.0).cause is Cause.TOO_EARLY
    # it cannot be made shorter by other conditions
    assert coordinator.check_in(a, check_in(charging=False), 61.0).cause is Cause.TOO_EARLY
    work = coordinator.check_in(a, READY, 1.0 + refused.retry_in_s)
    assert coordinator.check_in(a, READY, 130.0).assignment == work.assignment
    done = coordinator.update(a, work.assignment, encoded(work, 0), 131.0)
    assert coordinator.check_in(a, READY, 140.0).cause is Cause.TOO_EARLY
    assert coordinator.check_in(a, READY, 131.0 + done.retry_in_s).cause is Cause.REPORTED_RECENTLY
    work = coordinator.check_in(b, READY, 140.0)
    coordinator.abandon(b, work.assignment, Abandon(Cause.CONDITION_LOST), 150.0)
    assert coordinator.check_in(b, READY, 160.0).cause is Cause.TOO_EARLY
    coordinator.close()


def test_when_a_device_was_to_come_is_forgotten_an_hour_after(coordinator):
    (device,) = enrolled(coordinator, 1)
    wait = coordinator.check_in(device, check_in(idle=False), 0.0).retry_in_s
    with coordinator.store.reading() as rows:
        assert rows.known([device])[device].told.due == wait
    for now, kept in ((3600.0, True), (3600.0 + wait + 601.0, False)):
        coordinator.tick(now)
        with coordinator.store.reading() as rows:
            assert (rows.known([device])[device].told is not None) == kept


# the attack: a few devices that ask all the time


@dataclass
class Crowd:
    """Devices against a coordinator, by a virtual clock, until their places are counted."""

    coordinator: OneByOne
    rude: set[str]  # ask every 15 s, whatever they are told
    sly: set[str]  # the same, but as long as they have a ticket
    rng: np.random.Generator
    due: dict[str, float] = field(default_factory=dict)
    ticket: set[str] = field(default_factory=set)
    places: Counter = field(default_factory=Counter)
    works: list = field(default_factory=list)

    def ask(self, device: str, now: float) -> None:
        answer = self.coordinator.check_in(device, READY, now)
        self.ticket.discard(device)
        wait = 15.0
        if isinstance(answer, Assignment):
            self.places[device] += 1
            body = encoded(answer, 1)
            wait = self.coordinator.update(device, answer.assignment, body, now).retry_in_s
        elif answer.cause is Cause.SELECTING:
            self.ticket.add(device)
            wait = answer.retry_in_s
        else:
            wait = answer.retry_in_s
        self.due[device] = now + wait
        if device in self.rude or (device in self.sly and device not in self.ticket):
            self.due[device] = now + 15.0

    def live(self, seconds: float) -> None:
        now = 0.0
        while (now := min(self.due.values())) < seconds:
            self.ask(min(self.due, key=self.due.__getitem__), now)


@pytest.mark.parametrize("kind", ["rude", "sly"])
def test_devices_that_ask_all_the_time_get_no_more_places_than_others(tmp_path, kind):
    rules = Rules(report_goal=10, over_selection=1.0, selection_s=500, retry_s=800)
    coordinator = toy_server.new(tmp_path, rules, policy=Policy(min_separation=2))
    devices = enrolled(coordinator, 66)
    few = set(devices[:6])  # 9 %
    rng = np.random.default_rng(3)
    crowd = Crowd(
        coordinator, few if kind == "rude" else set(), few if kind == "sly" else set(), rng
    )
    crowd.due = {device: float(rng.uniform(0, 800)) for device in devices}
    crowd.live(4 * 3600.0)
    total, theirs = sum(crowd.places.values()), sum(crowd.places[device] for device in few)
    assert total >= 80
    share = 6 / 66
    # what a fair coin gives one time in a thousand
    assert theirs <= share * total + 3.1 * math.sqrt(total * share * (1 - share))
    coordinator.close()


# rounds go on


def test_a_device_that_gave_its_work_back_may_join_a_buffered_round_again(tmp_path):
    """Five devices, a goal of three: two give back, one is late, and none of them is shut out."""
    rules = replace(RULES, report_goal=3, mode=Mode.BUFFERED, selection_s=0, reporting_s=50)
    coordinator = toy_server.new(
        tmp_path, replace(rules, over_selection=5 / 3, retry_s=0), policy=Policy(min_separation=1)
    )
    devices = enrolled(coordinator, 5)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    for number in (0, 1):
        assert coordinator.update(
            devices[number], works[number].assignment, encoded(works[number], number), 2.0
        ).counted
    for number in (2, 3):
        coordinator.abandon(
            devices[number], works[number].assignment, Abandon(Cause.CONDITION_LOST), 3.0
        )
    coordinator.tick(52.0)  # the fifth has taken too long
    again = [coordinator.check_in(device, READY, 53.0) for device in devices[2:]]
    assert all(isinstance(work, Assignment) for work in again), again
    assert len({work.assignment for work in (*works, *again)}) == 8
    assert coordinator.update(devices[4], again[2].assignment, encoded(again[2], 4), 54.0).counted
    assert [report.phase for report in coordinator.reports(55.0).rounds] == [
        "committed",
        "selecting",
    ]
    coordinator.close()


@pytest.mark.parametrize("mode", Mode)
def test_a_fleet_too_small_for_the_separation_has_rounds_all_the_same(tmp_path, mode):
    rules = replace(RULES, mode=mode)
    coordinator = toy_server.new(tmp_path, rules, policy=Policy(min_separation=3))
    devices, due = enrolled(coordinator, 2), {}
    due = {device: 1.0 for device in devices}
    while (now := min(due.values())) < 6 * 3600:
        device = min(due, key=due.__getitem__)
        answer = coordinator.check_in(device, READY, now)
        if isinstance(answer, Assignment):
            body = encoded(answer, 1)
            answer = coordinator.update(device, answer.assignment, body, now + 1)
        due[device] = now + 1 + answer.retry_in_s
        coordinator.tick(now + 1)
    phases = Counter(report.phase for report in coordinator.reports(now).rounds)
    assert phases["committed"] >= 5
    with coordinator.store.reading() as rows:
        assert rows.participation("default")[1] >= 3
    coordinator.close()


class LivingRound(RuleBasedStateMachine):
    """Whatever happened, some devices and some time bring the round to its end."""

    @initialize(mode=st.sampled_from(Mode), selection_s=st.sampled_from([0.0, 60.0]))
    def begin(self, mode: Mode, selection_s: float) -> None:
        self.rules = Rules(
            report_goal=2,
            over_selection=1.5,
            selection_s=selection_s,
            claim_s=30,
            reporting_s=100,
            retry_s=50,
            mode=mode,
        )
        self.state, self.now = RoundState(1), 0.0

    def tell(self, event) -> None:
        self.state = advance(self.state, event, self.rules)
        if self.state.phase not in OPEN:
            self.state = following(self.state, self.rules)

    @rule(kind=st.sampled_from([Asked, Withdrawn, TurnedAway, Admitted, Reported, Dropped]))
    def event(self, kind) -> None:
        self.tell(kind(self.now))

    @rule(seconds=st.sampled_from([0.5, 20.0, 31.0, 70.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick(self.now))

    @rule(seconds=st.sampled_from([70.0, 1e7]))
    def the_clock_goes_back(self, seconds: float) -> None:
        self.now = max(0.0, self.now - seconds)
        self.tell(Tick(self.now))

    @invariant()
    def counts_hold(self) -> None:
        kept = self.state.places
        assert 0 <= self.state.waiting <= self.rules.cohort
        assert 0 <= kept.taken <= kept.seats
        assert kept.asked >= 0

    @invariant()
    def able_devices_end_the_round(self) -> None:
        """Two devices that ask, come in if they may, and report."""
        state, now = self.state, self.now
        for _ in range(40):
            for event in (Asked(now), Admitted(now), Reported(now)):
                state = advance(state, event, self.rules)
                if state.phase not in OPEN:
                    return
            now += 31.0
            state = advance(state, Tick(now), self.rules)
        raise AssertionError(f"still open: {state}")

    @invariant()
    def devices_that_may_not_join_end_the_round(self) -> None:
        """All who come were counted too few rounds ago; those at work are dropped as they must."""
        state, now = self.state, self.now
        for _ in range(40):
            now += 110.0
            events = [Tick(now)] + [Dropped(now)] * state.waiting + [TurnedAway(now)]
            for event in events:
                state = advance(state, event, self.rules)
                if state.phase not in OPEN:
                    return
        raise AssertionError(f"still open: {state}")


def test_in_every_state_a_round_can_be_ended_by_devices_and_by_time():
    wanted = hypothesis.settings(max_examples=60, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(LivingRound, settings=wanted)


@hypothesis.given(
    st.lists(st.sampled_from(["ask", "back", "withdraw", "tick"]), max_size=60),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_no_window_gives_more_places_than_it_has(history, free, late):
    kept, now, came = places.open_window(Places(), 60.0), 0.0, 0
    for what in history:
        now += 7.0
        kept = places.settle(kept, now, free, 30.0)
        if what == "ask" and kept.asking:
            kept = replace(kept, asked=kept.asked + 1)
        elif what == "withdraw" and kept.asking and kept.asked:
            kept = replace(kept, asked=kept.asked - 1)
        elif what == "back" and kept.claiming:
            ticket = Ticket(kept.window, late)
            if places.chance(kept, ticket) is Chance.COMES_IN:
                kept, came = replace(kept, taken=kept.taken + 1), came + 1
    assert came <= free


# clocks that jump


def test_times_of_a_clock_that_was_ahead_are_taken_as_now_and_durably(tmp_path):
    year = 365 * 86_400.0
    coordinator = toy_server.new(tmp_path, RULES, policy=Policy(trust_s=100.0))
    early = enrolled(coordinator, 2)[0]
    coordinator.enrol(toy_server.Enrolment(toy_server.signing.public_hex(toy_server.key(7))), year)
    late = toy_server.signing.name_of(toy_server.signing.public_hex(toy_server.key(7)))
    told = coordinator.check_in(early, READY, year)
    assert told.cause is Cause.SELECTING
    # the clock is right again: the window lasts a minute from now, and nothing told holds
    assert coordinator.check_in(late, READY, 200.0).cause is Cause.TOO_NEW
    with coordinator.store.reading() as rows:
        state = rows.open_rounds()["default"].state
        assert state.places.until == 260.0
        assert rows.known([late])[late].enrolled_at == 200.0
    assert coordinator.check_in(early, READY, 210.0).cause is Cause.SELECTING
    assert isinstance(coordinator.check_in(early, READY, 262.0), Assignment)
    coordinator.close()


def test_a_round_joined_by_a_clock_that_was_ahead_ends_by_the_right_one(tmp_path):
    year = 365 * 86_400.0
    for mode in Mode:
        rules = replace(RULES, selection_s=0, reporting_s=50, mode=mode, over_selection=2.0)
        coordinator = toy_server.new(tmp_path / mode, rules)
        (a,) = enrolled(coordinator, 1)
        work = coordinator.check_in(a, READY, year)
        coordinator.tick(10.0)  # the clock is right again
        again = coordinator.check_in(a, READY, 20.0)
        assert (again.assignment, again.deadline_s) == (work.assignment, 40.0)
        coordinator.tick(60.1)
        assert coordinator.reports(61.0).rounds[0].dropped == {"timed_out": 1}
        assert coordinator.reports(61.0).rounds[0].seconds >= 0
        coordinator.close()


# what an operator sees


def test_the_page_and_the_metrics_show_who_asked_was_drawn_and_came(coordinator):
    for device in enrolled(coordinator, 3):
        coordinator.check_in(device, READY, 10.0)

    def shown(now: float) -> tuple[str, list[str]]:
        html = dashboard.page(overview.read(coordinator, now, 0.0, {})).html
        lines = Metrics(coordinator, lambda: now).text().decode().splitlines()
        figures = [line.split(" ")[-1] for line in lines if line.startswith("fedboard_window_dev")]
        return html, figures

    html, figures = shown(50.0)
    assert "3 asked for a place; drawn in 20 s" in html
    assert figures == ["3.0", "0.0", "0.0"]
    coordinator.tick(70.0)
    coordinator.check_in(enrolled(coordinator, 1)[0], READY, 72.0)
    html, figures = shown(72.0)
    assert "3 asked for a place, 2 drawn of them for 2 places" in html
    assert figures[:2] == ["3.0", "2.0"]

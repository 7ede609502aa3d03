"""Standings: how releases stand beside each other, in words, in lists and on the page."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bundle import NO_PRIVACY
from device_runtime.wire import ReleaseScores, Scores
from server import dashboard, operators, overview, releases, standings
from server.contract import ReleaseState
from server.release_plots import LEFT, WIDTH, gained, plots
from server.release_scores import of_release
from server.rollout import Ratio, judge
from server.rounds import Rules
from server.standings import ReleaseStanding
from tests import toy_server
from tests.test_server_comparing import (  # noqa: F401
    BETTER,
    WORSE,
    body,
    comparing,
    round_of,
    server,
)
from tests.test_server_rollout import told
from tests.toy_releases import manifest_of, published, stated

FLEET = [ReleaseScores(1, Scores(200, right, 80, 190, 900.0)) for right in (40, 44, 36)]
PAIRS = [
    ReleaseScores(2, Scores(200, 50, 90, 190, 880.0), 1, Scores(200, right, 80, 190, 900.0))
    for right in (40, 44, 36)
]


def standing(release: int, reports, **changes) -> ReleaseStanding:
    figures = told(*reports)
    usual = ReleaseStanding(
        *("default", release, ReleaseState.OFFERED, 500, 0.0, "task words, round 7"),
        of_release(figures, release),
        judge(figures, release, 3),
        compared=True,
    )
    return replace(usual, **changes)


def page_of(coordinator, now: float = 10.0) -> str:
    return dashboard.page(overview.read(coordinator, now, 0.0, {})).html


# in words


def test_a_release_says_how_it_does_and_what_to_do_about_it(server):  # noqa: F811
    with server.store.reading() as rows:
        newest, oldest = standings.read(rows, "default")
    assert (newest.release, newest.sentence) == (2, "waits until 2 devices have scored it")
    round_of(server, 2.0, *WORSE)
    with server.store.reading() as rows:
        newest, oldest = standings.read(rows)
        stopped = standings.stopped_sentence(rows, "default")
    assert newest.sentence == (
        "stopped: worse: -15.00 points of top-1 (+/- 2.52) beside the release before, 3 devices on "
        "the same words; it is named no more, and devices that run it stay until you withdraw it: "
        "fedboard release withdraw 2"
    )
    assert stopped == f"release 2, {newest.sentence}"
    assert oldest.sentence == "waits until 2 devices have scored it"
    round_of(server, 3.0, body(1, 40), body(1, 44), end=200.0)
    with server.store.reading() as rows:
        assert standings.read(rows)[1].sentence == (
            "no earlier release to compare it with has been scored by 2 devices"
        )
    assert newest.lineage == f"task default, round 2, 40 updates; {NO_PRIVACY}"


def test_a_release_for_all_that_does_worse_is_shown_and_said_to_be_withdrawn(server):  # noqa: F811
    published(server, 3, share=10_000)
    round_of(server, 2.0, *(body(3, right, 1, 60) for right in (30, 32, 28)))
    with server.store.reading() as rows:
        newest = standings.read(rows)[0]
    assert newest.state is ReleaseState.OFFERED
    assert newest.sentence.startswith("worse: -15.00 points")
    assert newest.sentence.endswith("; withdraw it: fedboard release withdraw 3")


def test_a_release_that_nobody_compares_says_how_to_have_it_compared(tmp_path):
    coordinator = toy_server.new(tmp_path / "server", Rules(report_goal=2))
    published(coordinator, 1)
    report = releases.reports(coordinator).releases[0]
    assert report.how == (
        "nobody compares it with the others: fedboard task create NAME --compares-releases TASK"
    )
    comparing(coordinator)
    assert releases.reports(coordinator).releases[0].how == "waits until 2 devices have scored it"
    coordinator.close()


def test_a_withdrawn_release_is_that_whatever_it_scored(server):  # noqa: F811
    round_of(server, 2.0, *WORSE)
    releases.publish(server, stated(manifest_of(2), serial=2, withdrawn=True), 3.0)
    with server.store.reading() as rows:
        assert standings.read(rows)[0].sentence == "withdrawn: whoever runs it goes to another"
        assert standings.stopped_sentence(rows, "default") == ""


def test_an_operator_hears_of_it_with_the_task_and_with_the_release(server):  # noqa: F811
    round_of(server, 2.0, *WORSE)
    report = releases.reports(server).releases[0]
    assert (report.release, report.devices, report.top1, report.top3) == (2, 3, 0.15, 0.15)
    assert report.median == pytest.approx(0.16, abs=0.02)
    assert report.how.startswith("stopped: worse: -15.00 points")
    assert releases.reports(server).releases[1].top1 is None
    assert operators.report(server, "compared", 3.0).stopped.startswith("release 2, stopped: worse")
    assert operators.report(server, "default", 3.0).stopped == ""


# on the page


def test_the_page_shows_releases_side_by_side_and_what_stopped_one(server):  # noqa: F811
    waiting = page_of(server)
    assert "No release has been scored by enough devices yet." in waiting
    round_of(server, 2.0, body(1, 40), body(1, 44), body(1, 36))
    round_of(server, 3.0, *WORSE)
    html = page_of(server)
    for said in (
        'Release 2 <span class="state stopped">stopped</span>',
        "Offered to 5 % of the devices",
        "Offered to 100 % of the devices",
        "task default, round 2, 40 updates",
        "Stopped: worse: -15.00 points of top-1 (+/- 2.52)",
        "<td>-15.00 (-17.52 to -12.48)</td>",
        '<td class="text">same words</td>',
        "<td>20.0</td>",  # top-1 of release 1
        'class="dot bad"',
    ):
        assert said in html, said


def test_what_a_release_is_called_never_becomes_markup(server):  # noqa: F811
    shown = overview.read(server, 10.0, 0.0, {})
    evil = "<script>alert(1)</script>"
    (newest, *_) = shown.releases
    bad = replace(newest, population='"><img src=x>', lineage=evil, stopped=evil)
    html = dashboard.page(replace(shown, releases=(bad,))).html
    assert "<script>alert" not in html and "<img" not in html
    assert " style=" not in html


def test_a_plot_has_a_pair_of_bars_for_each_release_and_a_gain_where_one_is_known():
    one, two = standing(1, FLEET), standing(2, [*FLEET, *PAIRS])
    shares, gains = map(str, plots([two, one]))
    assert shares.count('class="bar a"') == shares.count('class="bar b"') == 2
    assert shares.count("whisker") == 2
    assert gains.count("<circle") == 1
    assert ">25.0<" in shares and ">20.0<" in shares
    assert len(plots([one])) == 1  # there is none below it
    assert plots([standing(3, FLEET)]) == []


@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.integers(0, 400), st.integers(0, 400)),
        min_size=1,
        max_size=9,
    )
)
def test_everything_of_a_plot_lies_inside_it(devices):
    reports = []
    for words, new, old in devices:
        new, old = min(new, words), min(old, words)
        scores = [Scores(words, right, right, words, 0.0) for right in (new, old)]
        reports.append(ReleaseScores(2, scores[0], 1, scores[1]))
    for drawn in map(str, plots([standing(2, reports)])):
        for part in drawn.split("<")[1:]:
            for name in ("x1", "x2", "cx"):
                if f' {name}="' in part:
                    x = float(part.partition(f' {name}="')[2].partition('"')[0])
                    assert LEFT - 1 <= x <= WIDTH


def test_a_gain_is_told_with_its_interval():
    assert gained(Ratio(0.0125, 0.001)) == "+1.25 (+1.05 to +1.45)"
    assert gained(None) == "–"


def test_a_release_that_gets_better_is_not_worse(server):  # noqa: F811
    round_of(server, 2.0, *BETTER)
    assert "Not worse: +15.00 points" in page_of(server)

"""Comparing releases on a device: which are scored, on what, how often, and what leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import limits, local, scoring, turn
from device_runtime.bundle import PREDICT, write
from device_runtime.causes import Cause
from device_runtime.errors import ServerError
from device_runtime.home import Contribution, history
from device_runtime.installed import before as bundle_before
from device_runtime.limits import OwnLimits
from device_runtime.predictor import Predictor
from device_runtime.transport import Unreachable
from device_runtime.turn import (
    CheckConditions,
    Compare,
    GatherHeld,
    GiveBack,
    HeldBack,
    History,
    Note,
    Recall,
    RecallRuns,
    Report,
    Runs,
    Status,
    Used,
)
from device_runtime.weights import digest
from device_runtime.wire import Kind, ReleaseScores, Scores
from fedboard.device_words import ledger_lines
from server import tasks
from server.eligibility import Policy
from server.rounds import Rules
from server.task import TaskSettings
from tests.test_device_runtime_drive import EASY, device, server  # noqa: F401
from tests.test_device_runtime_drive import turn as take
from tests.test_device_runtime_turn import ASSIGNMENT, DEVICE, kinds, play
from tests.test_server_comparing import told
from tests.toy_releases import published
from tests.toy_server import by_arrival

WORK = replace(ASSIGNMENT, kind=Kind.RELEASES)
BOTH = Runs(8, "88" * 32, 7, "77" * 32)
ALONE = Runs(8, "88" * 32)
NEW, OLD = Scores(200, 40, 70, 190, 900.0), Scores(200, 38, 69, 190, 910.0)
PAIR, ONE = ReleaseScores(8, NEW, 7, OLD), ReleaseScores(8, NEW)
COMPARED = [Recall, RecallRuns, GatherHeld, Compare, CheckConditions]
SENT = [Note, Report, Note]


def played(**told):
    usual = {"RecallRuns": BOTH, "Compare": PAIR}
    return play(turn.work(DEVICE, WORK), **usual | told)


# what is done


def test_both_releases_are_scored_on_the_same_messages_and_nothing_is_fetched():
    actions, outcome = played()
    assert kinds(actions) == [*COMPARED, Used, Used, *SENT]
    assert (outcome.status, outcome.kind, outcome.examples) == (
        Status.COUNTED,
        Kind.RELEASES,
        200,
    )
    assert actions[3] == Compare(BOTH, ((13, 14), (15,)))
    (report,) = [each for each in actions if isinstance(each, Report)]
    assert report.scores == PAIR


def test_what_leaves_is_noted_before_it_does_by_both_releases_and_up_to_which_message():
    actions, _ = played()
    sending, counted = [each for each in actions if isinstance(each, Note)]
    assert (sending.status, sending.scored, sending.up_to) == (
        Status.SENDING,
        f"{'88' * 32} {'77' * 32}",
        20,
    )
    assert (counted.status, counted.scored, counted.up_to) == (
        Status.COUNTED,
        sending.scored,
        sending.up_to,
    )
    assert kinds(actions).index(Note) < kinds(actions).index(Report)


def test_a_device_without_a_release_before_scores_the_one_that_runs():
    actions, _ = played(RecallRuns=ALONE, Compare=ONE)
    assert kinds(actions) == [*COMPARED, Used, *SENT]
    assert actions[-1].scored == "88" * 32


@pytest.mark.parametrize(("today", "runs"), [(0, BOTH), (1, ALONE), (2, None)])
def test_a_pair_counts_as_two_scores_of_the_day(today, runs):
    """Two are a device's usual limit."""
    actions, outcome = played(Recall=History(today=today))
    assert [each.runs for each in actions if isinstance(each, Compare)] == [runs] * (
        runs is not None
    )
    assert (outcome.cause is Cause.OVER_LIMIT) == (runs is None)


# no release is scored twice on the same messages


def test_a_release_before_that_was_scored_is_scored_again_on_newer_messages_alone():
    actions, _ = played(Recall=History(scored={"77" * 32: 90}))
    assert actions[2] == GatherHeld(DEVICE.plan, after=90)
    assert actions[3].runs == BOTH


def test_with_too_few_newer_messages_the_release_that_runs_is_scored_alone():
    few, enough = HeldBack((100,), ((13,),), 199), HeldBack((10, 100), ((13,), (14,)), 200)
    actions, _ = played(
        Recall=History(scored={"77" * 32: 90}), GatherHeld=[few, enough], Compare=ONE
    )
    gathered = [each.after for each in actions if isinstance(each, GatherHeld)]
    assert gathered == [90, 0]
    assert [each.runs for each in actions if isinstance(each, Compare)] == [ALONE]


@pytest.mark.parametrize(
    "told",
    [
        {"Recall": History(scored={"88" * 32: 20})},
        {"GatherHeld": HeldBack((10,), ((13,),), 199)},
        {"Recall": History(today=2)},
        {"Recall": History(none_today=True)},
    ],
    ids=["scored before", "too few words", "enough for a day", "said no today"],
)
def test_a_device_that_has_nothing_to_say_gives_the_work_back_at_once_for_one_cause(told):
    actions, outcome = played(**told)
    assert not {Compare, Report, Used} & set(kinds(actions))
    assert [each.cause for each in actions if isinstance(each, GiveBack)] == [Cause.OVER_LIMIT]
    assert (outcome.status, outcome.cause) == (Status.ABANDONED, Cause.OVER_LIMIT)
    assert actions[-1].detail == ""  # of what was typed not even its owner's ledger tells


@pytest.mark.parametrize(
    ("compared", "forbidden", "cause"),
    [
        (None, Cause.IN_USE, Cause.CONDITION_LOST),
        (PAIR, Cause.IN_USE, Cause.CONDITION_LOST),
        (PAIR, Cause.TIMED_OUT, Cause.TIMED_OUT),
    ],
)
def test_nothing_leaves_when_a_condition_is_lost(compared, forbidden, cause):
    actions, outcome = played(Compare=compared, CheckConditions=forbidden)
    assert kinds(actions) == [*COMPARED, GiveBack, Note]
    assert outcome.cause is cause


# what the ledger says


def line(at=0.0, kind=Kind.RELEASES, outcome="counted", scored="", up_to=0, cause=""):
    values = {"kind": kind.value, "scored": scored, "up_to": up_to, "assignment": f"{at}"}
    return Contribution(1, at, outcome, cause, 200, 0, 0, **values)


def test_the_ledger_counts_a_pair_as_two_scores_and_evaluations_with_them():
    lines = [
        line(1.0, scored="a b", up_to=40),
        line(2.0, Kind.EVALUATION, scored="c"),
        line(3.0, Kind.TRAINING),
        line(4.0, outcome="abandoned", cause="condition_lost"),
    ]
    past = history(lines, WORK, 10.0)
    assert (past.today, past.none_today) == (3, False)
    assert past.scored == {"a": 40, "b": 40, "c": 0}
    assert history(lines, replace(WORK, kind=Kind.EVALUATION), 10.0).today == 3
    assert history(lines, ASSIGNMENT, 10.0).today == 1


def test_a_no_lasts_for_the_day_it_was_said():
    lines = [line(5.0, outcome="abandoned", cause="over_limit")]
    assert history(lines, WORK, 86_399.0).none_today
    assert not history(lines, WORK, 86_400.0).none_today


# real bundles


@pytest.fixture
def two(device, tmp_path, tiny_bundle, signing_key, trusted):  # noqa: F811
    """A device that ran release 1 and runs release 2, whose file has other bytes."""
    home = device(messages=120, bundle=None, limits=EASY)
    for number in (1, 2):
        content = dict(tiny_bundle.content)
        manifest = replace(tiny_bundle.manifest, release=number)
        write(tmp_path / str(number), manifest, content, signing_key)
        home.install(tmp_path / str(number))
    return home


def test_a_device_knows_the_release_it_ran_before_while_that_is_whole(two, trusted):
    now = two.bundle()
    old = two.before(now)
    assert local.runs(now, old) == Runs(2, digest(now.encoded), 1, digest(old.encoded))
    (old.path / PREDICT).write_bytes(b"damaged")
    assert two.before(now) is None
    assert local.runs(now, two.before(now)) == Runs(2, digest(now.encoded))
    assert bundle_before(two.folder / "nothing", trusted) is None


def test_a_release_before_of_another_vocabulary_is_none(two):
    now, old = two.bundle(), two.before(two.bundle())
    other = replace(old, manifest=replace(old.manifest, tokenizer="0" * 64))
    assert local.runs(now, other).before == 0


def test_a_release_is_scored_by_its_int8_file_as_the_strip_shows_it(tiny_bundle):
    ids = [tuple(tiny_bundle.vocabulary.ids(["i", "will", "see", "my", "dog"]))] * 2
    scores = scoring.score_release(tiny_bundle.predict_graph, ids)
    predictor, state, right, loss = Predictor(tiny_bundle), None, 0, 0.0
    state = predictor.start(1)
    for token, word in zip([1, *ids[0][:-1]], ids[0], strict=True):
        rows, state = predictor.step(np.array([token], np.int32), state)
        right += int(np.argmax(rows[0][13:]) + 13 == word)
        loss -= 2 * float(rows[0][word])
    assert (scores.targets, scores.top1, scores.in_vocabulary) == (10, 2 * right, 10)
    assert scores.loss == pytest.approx(loss, rel=1e-6)
    floats = scoring.score(tiny_bundle.train_graph, tiny_bundle.checkpoint.weights, ids)
    assert scores.loss != floats.loss
    assert scores.loss == pytest.approx(floats.loss, rel=0.05)


def test_the_same_file_twice_scores_alike_on_the_same_messages(two):
    now, old = two.bundle(), two.before(two.bundle())
    held = local.gather_held(two, now, now.plan)
    assert held.records == tuple(range(10, 101, 10))
    report = local.compare(now, old, held.messages)
    assert (report.release, report.before, report.scores) == (2, 1, report.before_scores)
    assert report.scores.targets == held.words
    assert local.compare(now, None, held.messages) == ReleaseScores(2, report.scores)
    assert local.compare(now, old, held.messages, lambda: False) is None


def test_only_messages_after_the_last_ones_are_gathered_and_whole_groups_of_them(two):
    now = two.bundle()
    assert local.gather_held(two, now, now.plan, after=50).records == (60, 70, 80, 90, 100)
    assert local.gather_held(two, now, now.plan, after=100).records == ()


def test_the_limits_of_scores_hold_for_releases():
    own = limits.of(DEVICE.plan, OwnLimits())
    asked = limits.Asked(Kind.RELEASES, 0, words=199)
    assert limits.why_refused(own, asked).limit == "least_score_words"
    assert limits.why_refused(own, replace(asked, words=200)) is None
    assert limits.why_refused(own, replace(asked, words=200, done_today=2)).limit == "scores_a_day"


@pytest.mark.parametrize(
    ("each", "said"),
    [
        (
            line(scored="a b"),
            "this release and the one before were scored on 200 held-back words; only sums were "
            "sent, and counted",
        ),
        (
            line(outcome="sending", scored="a"),
            "this release was scored on 200 held-back words, and the sums may have left: no answer",
        ),
        (
            line(outcome="abandoned", cause="over_limit"),
            "a comparison of releases was given back and nothing was sent: over a limit",
        ),
    ],
)
def test_a_device_says_in_words_what_it_told_of_its_releases(each, said):
    assert said in ledger_lines([each])[0]


# with a real server


@pytest.fixture
def comparing(server, tiny_bundle, signing_key, tmp_path):  # noqa: F811
    """A server whose only running task compares releases 1 and 2, which are published as toys."""
    coordinator = server.coordinator
    coordinator.pause("default")
    rules = by_arrival(Rules(report_goal=2, over_selection=1.0, min_reports=2))
    named = {"name": "compared", "kind": Kind.RELEASES, "evaluates": "default"}
    policy = Policy(min_separation=1, min_examples=5)
    tasks.create(coordinator, TaskSettings(**named, rules=rules, policy=policy), 1.0)
    for number in (1, 2):
        published(coordinator, number)
    return server


def installed(device, tmp_path, bundle, key):  # noqa: F811
    """A device that ran release 1 and runs release 2."""
    home = device(messages=120, bundle=None)
    for number in (1, 2):
        path = tmp_path / f"release-{number}"
        if not path.exists():
            write(path, replace(bundle.manifest, release=number), bundle.content, key)
        home.install(path)
    return home


def test_two_phones_tell_of_two_releases_and_only_their_sum_is_told(
    comparing,
    device,  # noqa: F811
    tmp_path,
    tiny_bundle,
    signing_key,
):
    phones = [installed(device, tmp_path, tiny_bundle, signing_key) for _ in range(2)]
    first = take(phones[0], comparing)
    assert (first.status, first.kind) == (Status.COUNTED, Kind.RELEASES)
    assert told(comparing.coordinator) == {}  # of one phone nothing is told
    assert take(phones[1], comparing).status is Status.COUNTED
    ((pair, figures),) = told(comparing.coordinator).items()
    assert (pair, figures.devices) == ((2, 1), 2)
    assert figures.targets == first.examples + phones[1].contributions()[0].examples
    # the same file twice: nothing is gained
    assert (figures.before_top1, figures.gain_squared) == (figures.top1, 0)
    fetched = [path for method, path, _, _ in comparing.sent if method == "GET"]
    assert not [path for path in fetched if path.startswith("/v1/blobs")]
    reports = [body for _, path, body, _ in comparing.sent if path.endswith("/scores")]
    told_of = json.loads(reports[0])
    assert set(told_of) == {"release", "scores", "before", "before_scores"}
    numbers = {"targets", "top1", "top3", "in_vocabulary", "loss"}
    assert set(told_of["scores"]) == set(told_of["before_scores"]) == numbers
    assert b"zebracorn" not in b"".join(body for _, _, body, _ in comparing.sent)


def test_each_message_has_two_uses_and_the_device_says_no_the_next_time_and_trains_on(
    comparing,
    device,  # noqa: F811
    tmp_path,
    tiny_bundle,
    signing_key,
):
    home = installed(device, tmp_path, tiny_bundle, signing_key)
    assert take(home, comparing).status is Status.COUNTED
    with home.typing_log() as log:
        uses = {row[0]: row[1] for row in log._rows("SELECT id, uses FROM records", ())}
    assert {number for number, times in uses.items() if times} == set(range(10, 101, 10))
    assert set(uses.values()) == {0, 2}
    other = installed(device, tmp_path, tiny_bundle, signing_key)
    assert take(other, comparing).status is Status.COUNTED  # the next round opens
    again = take(home, comparing)
    assert (again.status, again.cause) == (Status.ABANDONED, Cause.OVER_LIMIT)
    assert home.withheld() is None
    comparing.coordinator.pause("compared")
    comparing.coordinator.resume("default")
    assert take(home, comparing).kind is Kind.TRAINING  # on the same day


def test_what_may_have_left_is_not_made_again_when_no_answer_came(
    comparing,
    device,  # noqa: F811
    tmp_path,
    tiny_bundle,
    signing_key,
):
    home = installed(device, tmp_path, tiny_bundle, signing_key)

    def cut(method, path, body, headers):
        if path.endswith("/scores"):
            raise Unreachable(path, "no way", "wait")
        return comparing(method, path, body, headers)

    with pytest.raises(ServerError):
        take(home, cut)
    (line,) = home.contributions()
    assert (line.outcome, line.up_to, line.scored.count(" ")) == ("sending", 100, 1)
    again = take(home, comparing)
    assert (again.status, again.cause) == (Status.ABANDONED, Cause.OVER_LIMIT)
    assert told(comparing.coordinator) == {}

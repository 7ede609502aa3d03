import json
import subprocess
import sys
from dataclasses import replace

import pytest

from device_runtime import accountant, bundle, config, exposure, outgoing, spent
from device_runtime.causes import Cause
from device_runtime.daemon import NotAsked
from device_runtime.home import OUTGOING, Contribution, DeviceConfig, Home, parts
from device_runtime.noise import Mechanism, Noise
from device_runtime.shown import rounded_up
from device_runtime.terms import Aggregation
from device_runtime.turn import Label, Outcome, Outgoing, Status
from device_runtime.wire import Conditions, Kind
from fedboard import devices
from fedboard.device_words import (
    Standing,
    costs,
    ledger_lines,
    seen_lines,
    spent_lines,
    status,
    status_lines,
)
from tests.toy_leader import masked_terms

DAY = 86_400.0


def fedboard(*words: object, typed: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fedboard.cli", "device", *map(str, words)],
        input=typed,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted):
    return Home.create(
        tmp_path / "phone",
        DeviceConfig(tuple(trusted), str(tiny_bundle.path)),
        [("hello zebracorn", 1.0)],
    )


def test_the_ledger_in_words():
    lines = [
        Contribution(3, 3 * DAY + 600, "counted", "", 12, 1000, 3000),
        Contribution(4, 4 * DAY, "abandoned", "condition_lost", 12, 40, 3000),
        Contribution(5, 5 * DAY, "not_counted", "round_closed", 9, 1000, 0),
        Contribution(6, 6 * DAY, "sending", "", 9, 0, 0),
    ]
    assert ledger_lines(lines) == [
        "simulated day 3, 00:10, round 3: an update of 12 examples was counted (1,000 bytes sent, "
        "3,000 received)",
        "simulated day 4, 00:00, round 4: the work was given back and nothing learned was sent: "
        "unplugged, off WiFi or picked up (40 bytes sent, 3,000 received)",
        "simulated day 5, 00:00, round 5: an update of 9 examples was sent and not counted: the "
        "round was closed, or had too few devices (1,000 bytes sent, 0 received)",
        "simulated day 6, 00:00, round 6: an update of 9 examples may have left: no answer came "
        "(0 bytes sent, 0 received)",
        "In all 1 updates counted, of 12 examples; 2,040 bytes sent, 6,000 received.",
    ]
    assert ledger_lines([]) == ["This device contributed nothing so far."]


def test_the_ledger_says_of_what_left_who_could_see_it_by_itself():
    seen_by = "the server and helper 1f1f1f1f1f1f1f1f together"
    for outcome in ("counted", "sending", "not_counted"):
        line = Contribution(3, 0.0, outcome, "", 12, 1000, 3000, seen_by=seen_by)
        assert f"; {seen_by} could see it by itself (1,000 bytes sent" in ledger_lines([line])[0]
    kept = Contribution(3, 0.0, "abandoned", "in_use", 12, 40, 3000, seen_by=seen_by)
    assert seen_by not in ledger_lines([kept])[0]


NOISE = Noise(Mechanism.GAUSSIAN, 2.0, 8.0, 1e-10, 100, 6)


def updates(rounds, noise=NOISE, task_id="7a" * 16, outcome="counted"):
    """Ledger lines of updates that left for these rounds."""
    text = "" if noise is None else config.to_json(noise).decode()
    named = {"assignment": f"{outcome} {task_id[:2]}", "server": "5e" * 16, "task_id": task_id}
    for round in rounds:
        named["assignment"] += "."
        yield Contribution(round, 0.0, outcome, "", 9, 1, 1, "night", noise=text, **named)


def said_of(lines):
    lines = list(lines)
    every = spent_lines(costs(lines), spent.total(parts(lines)))
    return [(each.text, each.warns) for each in every]


def test_the_ledger_says_what_updates_have_spent_at_most_and_what_that_assumes():
    """Two of multiplier 2: rho 2 / (2 x 4) = 0.25, which is epsilon 4.492."""
    (told, red), (believed, _) = said_of(updates([3, 10]))
    assert told == (
        "spent, task night (7a7a7a7a): 2 updates left or may have, at least 7 apart by their "
        "rounds' numbers; epsilon at most 4.50 at delta 1e-10 (rho 0.2500); the task may spend 8"
    )
    assert not red and "if whoever adds the noise does" in believed


def test_updates_without_noise_are_told_in_red_and_are_in_no_total():
    lines = [
        *updates([3, 10]),
        *updates([4], noise=None, task_id="8b" * 16),
        *updates([9], task_id="9c" * 16),
    ]
    (_, calm), (open_, red), (_, also_calm), (in_all, _), _ = said_of(lines)
    assert "1 update left or may have, without noise: nothing bounds it" in open_
    assert red and not (calm or also_calm)
    # rho 0.25 + 0.125
    epsilon = accountant.epsilon(0.375, 1e-10)
    assert f"together: epsilon at most {rounded_up(epsilon)} at delta 1e-10 (rho 0.3750)" in in_all


def test_the_status_has_what_was_spent_for_programs_too(home):
    for line in [*updates([3, 10]), *updates([4], noise=None, task_id="8b" * 16)]:
        home.note(line)
    noised, open_ = status(home, 0.0).spent
    assert (noised.rounds, noised.separation) == ((3, 10), 7)
    assert noised.rho == pytest.approx(0.25)
    assert (open_.rounds, open_.noise, open_.rho, open_.epsilon) == ((4,), None, None, None)
    assert status(home, 0.0).spent_in_all.rho == pytest.approx(0.25)
    told = json.loads(fedboard("status", home.folder, "--json").stdout)
    assert told["spent"][0]["epsilon"] == noised.epsilon
    assert told["spent_in_all"]["delta"] == 1e-10
    assert "epsilon at most 4.50" in fedboard("ledger", home.folder).stdout


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({}, None),
        ({"is_beside": True}, "server and helper are in one hand"),
        ({"fewest": 12}, "a sum is opened of only 12 devices: expected at least 100"),
        (
            {"aggregation": Aggregation.PLAIN, "helper": ""},
            "updates are not hidden: the server can read in each what was typed",
        ),
    ],
)
def test_the_status_says_who_sees_updates_by_the_last_terms_and_what_should_worry_in_red(
    home, tiny_bundle, changed, warning
):
    assert seen_lines(status(home, 0.0)) == []
    home.keep_terms("words", masked_terms(tiny_bundle, **changed))
    first, *worries, of_log = seen_lines(status(home, 0.0))
    assert "the server's log cannot be rewritten" in of_log.text and not of_log.warns
    assert first.text.startswith("by the terms of task words: ") and not first.warns
    if not changed:
        assert masked_terms(tiny_bundle).helper[:16] in first.text
    worded = [exposure.UNNOISED] if warning is None else [warning, exposure.UNNOISED]
    expected = [(f"by the terms of task words: {each}", True) for each in worded]
    assert [(each.text, each.warns) for each in worries] == expected


def test_a_report_that_waits_for_its_answer_is_in_the_status(home):
    label = Label("a5" * 16, 9, "5e" * 16, "7a" * 16, "0f" * 32, Kind.TRAINING, (1,), 12)
    with home.typing_log() as log:
        home.keep(OUTGOING, outgoing.seal(Outgoing(label, b"body"), log))
    assert (
        "a report of round 9 is kept until its server has answered: it is sent as it is, or not at "
        "all"
    ) in status_lines(status(home, 0.0))


def test_the_ledger_says_which_limit_refused_what_and_the_status_what_the_limits_are(home):
    detail = "bits: expected at most 8, found 16"
    home.note(Contribution(3, 600.0, "abandoned", "over_limit", 0, 40, 90, detail=detail))
    assert ledger_lines(home.contributions())[0] == (
        "simulated day 0, 00:10, round 3: the work was given back and nothing learned was sent: "
        "over a limit of the device's own (bits: expected at most 8, found 16) (40 bytes sent, 90 "
        "received)"
    )
    said = status_lines(status(home, 0.0))
    assert (
        "an update has at most 8 bits a value, norm 1, rate 0.3, 1 passes over 16 rows; at least "
        "10 messages and 100 words; at most 4 a day (0 today), 2 rounds apart"
    ) in said
    assert (
        "a score has at least 200 words (50 where it is seen in large sums only) and at most 400; "
        "at most 2 a day"
    ) in said


def test_a_device_that_knows_nothing_of_its_conditions_says_why_it_does_not_train(home):
    standing = status(home, 0.0)
    assert (standing.messages, standing.forbidden, standing.name) == (1, "not_charging", None)
    said = "\n".join(status_lines(standing))
    assert "charging: unknown" in said
    assert "it does not train now (not on a charger; unknown counts as no)" in said
    assert "network `tiny`, release 0" in said


def test_what_came_of_a_turn_is_said_in_words():
    assert [
        devices.sentence(outcome)
        for outcome in (
            NotAsked(Cause.NOT_CHARGING, 90.0),
            NotAsked("retry_window", 5.0),
            Outcome(Status.REFUSED, Cause.TASK_PAUSED),
            Outcome(Status.NOT_COUNTED, Cause.LATE, 4, loss_before=5.0, loss_after=4.5),
            Outcome(Status.COUNTED, round=4),
        )
    ] == [
        "the server was not asked (not on a charger); look again in 90 s",
        "the server was not asked (retry window); look again in 5 s",
        "refused (the task is paused)",
        "not counted in round 4 (came after the deadline), loss 5.000 -> 4.500",
        "counted in round 4",
    ]


def test_a_device_that_may_train_says_so():
    able = Standing(
        "phone", "d1", "b", 1, 0, 90, 10, Conditions(True, True, True), None, 0, 0, None, None, 0.0
    )
    assert any("idle: yes; it may train now" in line for line in status_lines(able))


def test_a_device_whose_bundle_is_gone_still_tells_how_it_stands(tmp_path):
    alone = Home.create(tmp_path / "alone", DeviceConfig(("ab" * 32,), "nowhere"))
    assert status(alone, 0.0).bundle.startswith("none usable: ")


def test_what_is_added_is_counted_and_never_shown(home):
    done = fedboard("log", "add", home.folder, typed="one okapi\n\ntwo okapi\n")
    assert done.stdout == "2 recorded, 1 left out; 3 messages in the log\n"
    assert (
        fedboard("log", "add", home.folder, "my password okapi", "--private").stdout
        == "0 recorded, 1 left out; 3 messages in the log\n"
    )
    said = (
        fedboard("status", home.folder).stdout
        + fedboard("ledger", home.folder).stdout
        + fedboard("status", home.folder, "--json").stdout
    )
    assert "3 messages" in said
    assert not any(word in said for word in ("okapi", "zebracorn"))


def test_a_wipe_asks_first_and_leaves_the_ledger(home):
    home.note(Contribution(1, 0.0, "counted", "", 5, 10, 20))
    home.keep("own_words.json", b"{}")
    refused = fedboard("wipe", home.folder, typed="n\n")
    assert refused.returncode != 0
    with home.typing_log() as log:
        assert log.count() == 1
    assert fedboard("wipe", home.folder, typed="y\n").returncode == 0
    assert not (home.folder / "typing_log.sqlite").exists()
    assert not (home.folder / "own_words.json").exists()
    assert len(Home.open(home.folder).contributions()) == 1


def test_a_wipe_of_everything_leaves_nothing(home, tmp_path):
    assert fedboard("wipe", home.folder, "--yes", "--everything").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_device_is_named(tmp_path):
    done = fedboard("status", tmp_path)
    assert done.returncode == 1
    assert "device.toml" in done.stderr


def test_a_device_that_fell_back_on_its_last_good_bundle_says_so_and_why(
    tmp_path, tiny_bundle, signing_key, trusted
):
    for release in (1, 2):
        bundle.write(
            tmp_path / str(release),
            replace(tiny_bundle.manifest, release=release),
            tiny_bundle.content,
            signing_key,
        )
    home = Home.create(tmp_path / "phone", DeviceConfig(tuple(trusted)), bundle=tmp_path / "1")
    newest = home.install(tmp_path / "2")
    (newest.path / "plan.json").write_bytes(b"{}")
    said = status(home, 0.0).bundle
    assert "release 1" in said
    assert "the last good one" in said
    assert "plan.json: expected" in said

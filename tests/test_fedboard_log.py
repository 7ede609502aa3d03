"""`fedboard log`: what of a log contradicts itself, its helper, or what was seen of it before."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from device_runtime import config, log_wire, signing
from device_runtime.log_wire import Begun, Head, KeptHead, LogHead, RoundEntry
from device_runtime.noise import Mechanism, Noise
from fedboard import log_check
from fedboard.cli import app
from fedboard.log_check import Fetched
from tests.test_device_runtime_log import (
    ENTRIES,
    HELPER,
    LOG_KEY,
    NEWEST,
    OTHERS,
    STRANGER,
    TASK_ID,
    head,
)

HELPER_KEY = signing.public_hex(HELPER)


def fetched(entries=ENTRIES, countersigned=None, helper=HELPER, by=LOG_KEY):
    signed = head(entries, by)
    seen = head(entries if countersigned is None else countersigned, by)
    seal = signing.sign_text(helper, log_wire.SEEN, seen.text.encode())
    texts = tuple(log_wire.body(each).decode() for each in entries)
    return Fetched(LogHead(signed, seen, seal), texts)


def kept(entries, by=LOG_KEY):
    return KeptHead(head(entries, by))


def the_one(checked):
    (sentence,) = checked.contradictions
    return sentence


def test_a_log_that_holds_together_says_what_it_has():
    checked = log_check.check(fetched(), kept(ENTRIES[:3]), HELPER_KEY)
    assert checked.contradictions == ()
    assert (checked.size, checked.countersigned, checked.helper) == (5, 5, HELPER_KEY)
    assert (checked.policies, checked.rounds, checked.releases) == (1, 2, 2)
    assert checked.rho == {TASK_ID: 0.25}
    assert checked.head.says == Head("5e" * 16, 5, checked.root)


def test_a_helper_may_be_some_entries_behind():
    checked = log_check.check(fetched(countersigned=ENTRIES[:4]))
    assert (checked.contradictions, checked.countersigned) == ((), 4)


def test_an_entry_that_was_changed_is_found():
    changed = replace(fetched(), entries=(*fetched().entries[:4], fetched().entries[2]))
    assert log_check.check(changed).contradictions[0].endswith("an entry was changed")


def test_a_log_that_was_rewritten_is_found_by_what_was_kept():
    sentence = the_one(log_check.check(fetched(OTHERS), kept(ENTRIES[:4])))
    assert sentence.startswith("4 entries (")
    assert sentence.endswith("does not begin with them: it was rewritten")


def test_a_log_that_got_shorter_was_rewritten():
    shorter = fetched(ENTRIES[:4])
    assert "rewritten" in the_one(log_check.check(shorter, kept(ENTRIES)))


def test_a_log_that_was_begun_anew_says_so():
    assert "begun anew" in the_one(log_check.check(fetched(by=STRANGER), kept(ENTRIES)))


def test_a_log_that_is_gone_says_so():
    assert "found none" in the_one(log_check.check(Fetched(LogHead(), ()), kept(ENTRIES)))
    assert log_check.check(Fetched(LogHead(), ())).contradictions == ()


def test_entries_that_are_held_back_are_missed():
    short = replace(fetched(), entries=fetched().entries[:3])
    assert log_check.check(short).contradictions[0] == "expected 5 entries, found 3"


def test_a_helper_that_signed_something_else_shows_the_fork():
    assert the_one(log_check.check(fetched(countersigned=OTHERS))).endswith("it forks")


@pytest.mark.parametrize("helper", ["", HELPER_KEY])
def test_a_log_whose_helper_has_not_signed_is_not_believed(helper):
    alone = replace(fetched(), head=LogHead(head(ENTRIES)))
    assert the_one(log_check.check(alone, helper=helper)).startswith("no head has the signature")
    other = fetched(helper=STRANGER)
    assert "expected the signature of helper" in the_one(log_check.check(other, helper=helper))


def round_entry(**changes):
    usual = RoundEntry(TASK_ID, 2, 100, 2, 0.5, "c5" * 32, NEWEST)
    return replace(usual, **changes)


INCONSISTENT = {
    "less spent than before": (round_entry(rho=0.2), "spent 0.2, less than 0.25 before it"),
    "fewer sums than before": (round_entry(sums=0), "0 sums, fewer than 1 before it"),
    "more sums than rounds": (round_entry(sums=3), "3 sums, and no round has more than one"),
    "a round before the last": (round_entry(round=1), "comes after round 1"),
    "made from nothing known": (round_entry(parent="99" * 32), "which was never entered"),
    "another policy": (replace(ENTRIES[0], plan="ac" * 32), "has two policies"),
    "a second checkpoint of a round": (
        round_entry(round=1, count=0, sums=1, rho=0.25),
        "has two checkpoints, c4c4c4c4c4c4c4c4 and c5c5c5c5c5c5c5c5: one round makes one",
    ),
    "a checkpoint that no round made": (
        round_entry(count=0, sums=1, rho=0.25, parent=""),
        "is made of no reports, and was not there before",
    ),
    "a sum of few": (round_entry(count=49), "49 reports, and no sum of fewer than 50 is opened"),
    "rounds of no task": (round_entry(task_id="0b" * 16, parent=""), "has rounds and no policy"),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_what_cannot_be_true_together_is_found(name):
    entry, sentence = INCONSISTENT[name]
    wrong = log_check.check(fetched((*ENTRIES, entry))).contradictions
    assert any(sentence in each for each in wrong)


def noised(rho):
    """A log of one round with noise, which spent so much of a budget of epsilon 1."""
    noise = Noise(Mechanism.GAUSSIAN, 10.0, 1.0, 1e-10, 10, 10)
    policy = replace(ENTRIES[0], terms=replace(ENTRIES[0].terms, noise=noise))
    entries = policy, ENTRIES[1], replace(ENTRIES[3], rho=rho)
    return log_check.check(fetched(entries)).contradictions


def test_a_sum_with_noise_spends_something_and_no_more_than_the_budget():
    assert noised(0.005) == ()
    (sentence,) = noised(0.0)
    assert sentence.endswith("spent nothing, and every sum with noise spends something")
    (sentence,) = noised(0.5)
    assert sentence.endswith("spent 0.5, more than the budget of epsilon 1 at delta 1e-10")


def test_a_checkpoint_from_before_the_log_may_be_gone_back_to():
    later = replace(ENTRIES[1], round=7)
    entries = ENTRIES[0], later, RoundEntry(TASK_ID, 3, 0, 0, 0.0, "c2" * 32)
    assert log_check.check(fetched(entries)).contradictions == ()


def test_a_log_that_follows_another_may_begin_with_what_a_round_of_that_made():
    begun = Begun("4d" * 32, 5, "4e" * 32)
    entries = begun, ENTRIES[3], ENTRIES[0]
    assert log_check.check(fetched(entries)).contradictions == ()


def test_a_sum_whose_round_came_to_nothing_may_have_cost_something():
    lost = round_entry(round=2, checkpoint="", parent="")
    after = round_entry(round=3, sums=3, rho=0.75)
    assert log_check.check(fetched((*ENTRIES, lost, after))).contradictions == ()


def run(*arguments):
    return CliRunner().invoke(app, ["log", *map(str, arguments)])


def test_a_log_that_was_kept_is_verified_from_the_head_that_was_seen_before(tmp_path):
    log, seen = tmp_path / "log", tmp_path / "head.json"
    log_check.save(log, fetched(ENTRIES[:4]))
    assert run("verify", log, "--from", seen).exit_code == 0
    assert config.from_json(KeptHead, seen.read_bytes(), "head").says.size == 4
    log_check.save(log, fetched(OTHERS))
    told = run("verify", log, "--from", seen, "--json")
    assert told.exit_code == 1
    assert "rewritten" in json.loads(told.stdout)["contradictions"][0]
    assert config.from_json(KeptHead, seen.read_bytes(), "head").says.size == 4
    log_check.save(log, fetched())
    assert run("verify", log, "--from", seen, "--helper-key", HELPER_KEY).exit_code == 0
    assert config.from_json(KeptHead, seen.read_bytes(), "head").says.size == 5


def test_the_newest_entries_are_shown_in_a_line_each(tmp_path):
    log_check.save(tmp_path / "log", fetched())
    told = json.loads(run("show", tmp_path / "log", "--most", 2, "--json").stdout)
    assert (told["first"], [each["entry"] for each in told["entries"]]) == (3, ["round", "release"])
    assert log_check.described(ENTRIES[4]) == "release 3 of population default: offered to 100 %"


def test_the_log_of_a_server_is_fetched_as_anybody_may():
    import tempfile
    from pathlib import Path

    from device_runtime.transport import Reply
    from tests import toy_server
    from tests.test_server_log import ONE, committed

    with (
        tempfile.TemporaryDirectory() as folder,
        closing(toy_server.new(Path(folder) / "server", ONE)) as coordinator,
    ):
        committed(coordinator, 10.0)

        def send(method, path, body, headers):
            if path == "/v1/log/head":
                return Reply(200, {}, config.to_json(coordinator.log_head()))
            first = int(path.partition("=")[2])
            return Reply(200, {}, config.to_json(coordinator.log_entries(first, 2)))

        checked = log_check.check(log_check.fetch(send))
        assert checked.contradictions == ()
        assert (checked.policies, checked.rounds) == (1, 2)

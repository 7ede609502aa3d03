"""`fedboard fleet population`: made, shown, drawn and imported on the command line."""

import json
import subprocess

import pytest

from fedboard.__main__ import program
from fleet import population, traces

LINES = (
    "2020-01-28 22:00:00\tbattery_charged_on\n2020-01-28 22:10:00\twifi\n"
    "2020-01-28 22:30:00\tscreen_off\n2020-01-29 06:30:00\tscreen_on\n"
)


def command(*words):
    asked = program("fleet", "population", *words)
    return subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("population") / "people"
    done = command("make", folder, "--devices", "300", "--users", "7", "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    recorded = {"a": {"messages": LINES}, "b": {"messages": "nonsense\n"}}
    (folder / "state_traces.json").write_text(json.dumps(recorded))
    done = command("import", folder / "state_traces.json", folder / "kept", "--json")
    assert done.returncode == 0, done.stderr
    return folder / "kept", json.loads(done.stdout)


def test_a_population_that_was_made_is_there_to_be_used(made):
    folder, told = made
    people = population.load(folder)
    assert told == {"folder": str(folder), "devices": 300, "digest": population.digest(people)}
    assert people.user.max() == 6


def test_what_is_shown_says_who_the_devices_are_and_when_they_are_ready(made):
    done = command("show", made[0], "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert sum(each["devices"] for each in told["classes"]) == told["devices"] == 300
    assert sum(told["languages"].values()) == 300
    assert {name: len(shares) for name, shares in told["eligible"].items()} == dict.fromkeys(
        ("charging", "unmetered", "idle", "all"), 24
    )
    assert told["digest"] == made[1]["digest"]
    assert 2 < told["swing"] < 8 and 0.05 < told["drop_out_mean"] < 0.12


def test_tables_are_shown_and_a_plot_is_drawn(made, tmp_path):
    done = command("show", made[0], "--day", "5", "--plot", tmp_path / "day.svg")
    assert done.returncode == 0, done.stderr
    assert "Saturday, day 5" in done.stdout and "middle" in done.stdout and "█" in done.stdout
    drawing = (tmp_path / "day.svg").read_text()
    assert drawing.startswith("<svg") and "all three" in drawing and "the best hour / 4" in drawing
    again = command("show", made[0], "--day", "5", "--plot", tmp_path / "again.svg")
    assert again.returncode == 0
    assert (tmp_path / "again.svg").read_text() == drawing


def test_a_recording_is_imported_and_what_its_lines_are_is_said(imported):
    folder, told = imported
    assert told["devices"] == 2 and told["days"] == 2
    assert told["quality"]["used"] == {"lines": 4, "devices": 1}
    assert told["quality"]["malformed"] == told["quality"]["silent"] == {"lines": 1, "devices": 1}
    assert len(traces.load(folder)) == 2


def test_a_recording_is_shown(imported):
    told = json.loads(command("show", imported[0], "--json").stdout)
    # one of two phones, in one of two nights
    assert told["eligible"]["all"][23] == 0.25 and told["eligible"]["all"][12] == 0
    done = command("show", imported[0])
    assert "malformed" not in done.stdout and "no time, tab and state: left out" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["make", "{}", "--where", "mars"], "population.where: expected one of us, world"),
        (["show", "{}/nothing"], "expected a population (population.toml) or a recording"),
        (["import", "{}/nothing.json", "{}/out"], "nothing.json: cannot be read"),
        (["show", "{}", "--plot", "{}/day.png"], "expected a name that ends in .svg"),
    ],
)
def test_a_mistake_is_refused_in_one_line_and_nothing_is_written(tmp_path, words, says):
    done = command(*(word.format(tmp_path) for word in words))
    assert done.returncode == 1
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_population_is_replaced_when_it_is_asked_for_and_nothing_else_ever_is(made, tmp_path):
    kept = (made[0] / population.COLUMNS).read_bytes()
    done = command("make", made[0])
    assert done.returncode == 1 and "holds an earlier population already" in done.stderr
    assert (made[0] / population.COLUMNS).read_bytes() == kept
    (tmp_path / "letter.txt").write_text("mine")
    done = command("make", tmp_path, "--overwrite")
    assert done.returncode == 1 and "holds files that are not a population" in done.stderr
    again = tmp_path / "again"
    for _ in range(2):
        assert command("make", again, "--devices", "5", "--overwrite").returncode == 0


def test_a_recording_with_too_many_bad_lines_leaves_what_was_imported_before(imported, tmp_path):
    before = (imported[0] / traces.COLUMNS).read_bytes()
    (tmp_path / "bad.json").write_text('{"a": {"messages": "hello\\nthere"}}')
    done = command("import", tmp_path / "bad.json", imported[0], "--overwrite")
    assert done.returncode == 1 and "2 that are not, of 1 devices" in done.stderr
    assert (imported[0] / traces.COLUMNS).read_bytes() == before

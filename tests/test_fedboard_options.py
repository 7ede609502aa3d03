"""Every number on the command line has its bounds, and what is beyond them is one line."""

from typing import Any

import pytest
from typer.testing import CliRunner

from fedboard import failures
from fedboard.cli import app
from fedboard.pages import application, walk

# numbers whose bounds stand at the record that they go into, which refuses them before any work
AT_THE_RECORD = {
    *(("train", f"--{name}") for name in ("rounds", "cohort", "vocabulary", "seed", "patience")),
    *(
        (name, f"--{option}")
        for name in ("export", "bundle build")
        for option in ("learning-rate", "clipping-norm", "bits", "release", "batch-size", "length")
    ),
    ("evaluate", "--vocabulary"),
    ("codes", "--count"),
    ("codes", "--days"),
}


def is_number(option: Any) -> bool:
    annotation = str(option.type_descriptor.annotation)
    return "int" in annotation or "float" in annotation


NUMBERS = {
    (name.removeprefix("fedboard").strip(), option.opts[0]): option.type_descriptor.parameter_info
    for name, command in walk(application())
    for option in command.params
    if option.name != "help" and is_number(option)
}
# a number that is no option is named by its place: `-1` there would be read as an option
BOUNDED = sorted(each for each in set(NUMBERS) - AT_THE_RECORD if each[1].startswith("-"))


def test_every_number_has_a_lowest_and_a_highest_value_here_or_at_its_record():
    assert set(NUMBERS) >= AT_THE_RECORD
    for option in BOUNDED:
        assert NUMBERS[option].min is not None, option
        assert NUMBERS[option].max is not None, option


@pytest.mark.parametrize("option", BOUNDED, ids=" ".join)
def test_what_is_no_number_within_the_bounds_is_a_usage_error_of_one_line(option):
    command, flag = option
    low, high = NUMBERS[option].min, NUMBERS[option].max
    for value in (low - 1, high + 1, -(10**30), 10**30, "nan", "inf", "-inf", "1e999", "", "[/x]"):
        done = CliRunner().invoke(app, [*command.split(), flag, str(value)], standalone_mode=False)
        assert hasattr(done.exception, "show"), (value, done.exception)
        line = failures.usage(done.exception)
        assert flag in line
        assert line.isprintable() and len(line) < 300


def test_a_usage_error_names_the_command_and_where_its_help_is():
    done = CliRunner().invoke(app, ["train", "--out", "[/x]", "--bogus"], standalone_mode=False)
    line = failures.usage(done.exception)
    assert "train: No such option: --bogus" in line
    assert line.endswith("train --help")


def test_a_usage_error_does_not_repeat_what_was_typed():
    words = ["device", "log", "add", "home", "my", "secret"]
    done = CliRunner().invoke(app, words, standalone_mode=False)
    assert "secret" not in failures.usage(done.exception)

"""The suite about itself: its rules name what exists, and quick tests need no TensorFlow."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies
import pytest

from tests import prove_page, suite

ROOT = Path(__file__).parents[1]
ABSENT = """
import sys
import pytest

sys.modules.update(tensorflow=None, tensorflow_federated=None)
sys.exit(pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def collected_without_tensorflow(*asked: str) -> str:
    """What pytest says it would run where TensorFlow cannot be imported."""
    command = [sys.executable, "-c", ABSENT, *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_every_file_the_rules_name_exists():
    files = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert {*suite.LOADING, *suite.STARTING, *suite.PROCESSES} - files == set()


def test_each_file_stands_under_one_rule():
    named = [*suite.LOADING, *suite.STARTING, *suite.PROCESSES]
    assert len(named) == len(set(named))
    assert set(suite.ORDER) <= set(named)


@pytest.mark.parametrize("package", ["tensorflow", "tensorflow_federated"])
def test_a_quick_test_cannot_load_tensorflow(package):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(package)


def test_what_was_out_of_reach_is_there_again_afterwards():
    with suite.out_of_reach("json"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("json")
    assert importlib.import_module("json").loads("1") == 1


def test_a_test_of_words_is_quick_and_one_that_reads_a_whole_corpus_or_starts_a_server_is_not():
    assert suite.marks("test_device_runtime_text", frozenset({"tmp_path"})) == set()
    assert suite.marks("test_device_runtime_text", frozenset({"chitchat"})) == {"process"}
    assert suite.marks("test_fedboard_serve", frozenset()) == {"process"}
    assert suite.marks("test_path", frozenset()) == {"tensorflow"}


def test_a_property_is_tried_with_as_many_times_its_examples_as_asked_for():
    tried = []

    @hypothesis.settings(max_examples=5, deadline=None, database=None)
    @hypothesis.given(hypothesis.strategies.integers())
    def holds(number):
        tried.append(number)

    suite.more_examples(holds, 10)
    holds()
    assert len(tried) == 50


def test_the_page_of_proofs_has_a_line_for_each_and_says_which_did_not_hold():
    proofs = [
        prove_page.Proof("test_b_holds[cut]", "7 tries", 61.4, True),
        prove_page.Proof("test_a_holds", "", 30.0, False),
    ]
    lines = prove_page.page(proofs, "abc", "Python 3.11 on 2 cores", 120.0).splitlines()
    assert lines[4] == "1 of 2 proofs held at commit abc, Python 3.11 on 2 cores, in 2 minutes."
    assert lines[-2:] == ["| a holds |  | 30 | NO |", "| b holds: cut | 7 tries | 61 | yes |"]


@pytest.mark.parametrize(
    "asked",
    ["quick", "not tensorflow", "quick and not property", "not prove and not  tensorflow"],
)
def test_an_expression_that_no_test_of_tensorflow_can_match_reads_none_of_their_files(asked):
    assert suite.leaves_out_tensorflow(asked)


@pytest.mark.parametrize(
    "asked",
    ["", "tensorflow", "not quick", "quick or tensorflow", "not (quick)", "process", "not quickly"],
)
def test_any_other_expression_reads_them(asked):
    assert not suite.leaves_out_tensorflow(asked)


@pytest.mark.process
def test_quick_tests_are_collected_where_tensorflow_is_not_installed():
    of_words, of_training = "tests/test_device_runtime_text.py", "tests/test_path.py"
    said = collected_without_tensorflow("-m", "quick", of_words, of_training)
    assert "tests/test_device_runtime_text.py::" in said
    assert "tests/test_path.py::" not in said
    assert suite.WITHOUT_TENSORFLOW not in said  # nothing that was asked for


@pytest.mark.process
def test_all_other_tests_are_collected_there_too_and_one_line_says_which_were_left_out():
    said = collected_without_tensorflow()
    assert "tests/test_server_endpoint.py::" in said
    assert not any(f"tests/{file}.py" in said for file in (*suite.LOADING, *suite.STARTING))
    assert said.count(suite.WITHOUT_TENSORFLOW) == 1

"""Device classes: what a bundle may take of a phone, and what one takes in a process of its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from conversion import classes, costs
from conversion.classes import Budget, Classes, problems
from conversion.costs import Costs, Task
from device_runtime import config
from device_runtime.bundle import File
from device_runtime.errors import ConfigError, RunError

ROOT = Path(__file__).parents[1]
BUDGET = Budget(100.0, 5_000, 1_500, 20.0, 500.0, slower=8.0)
COSTS = Costs(ram_mb=100.0, suggestion_ms=2.5, train_step_ms=62.5)  # 20 and 500 ms on such a phone
FILES = {"predict.tflite": File(1_500, ""), "train.tflite": File(3_500, "")}


def test_a_bundle_at_its_limits_keeps_them():
    assert problems(BUDGET, COSTS, FILES) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ram_mb": 100.5}, "ram_mb: expected at most 100.0, found 100.5: export with a smaller"),
        ({"suggestion_ms": 2.51}, "suggestion_ms: expected at most 20.0, found 20.08: train"),
        ({"train_step_ms": 63.0}, "train_step_ms: expected at most 500.0, found 504: export"),
        ({"ram_mb": float("nan")}, "ram_mb: expected at most 100.0, found nan"),
    ],
)
def test_a_cost_over_its_limit_is_named_with_what_to_do(changes, said):
    [problem] = problems(BUDGET, replace(COSTS, **changes), FILES)
    assert problem.startswith(said)


def test_too_many_bytes_are_named_of_the_file_that_predicts_and_of_all():
    files = {**FILES, "predict.tflite": File(1_501, "")}
    assert [problem.partition(": train")[0] for problem in problems(BUDGET, COSTS, files)] == [
        "bundle_bytes: expected at most 5,000, found 5,001",
        "predict_bytes: expected at most 1,500, found 1,501",
    ]


def test_the_limits_that_were_kept_are_signed_and_no_time_that_was_measured():
    assert BUDGET.manifest == {
        "class_ram_mb_at_most": 100.0,
        "class_bundle_bytes_at_most": 5_000.0,
        "class_predict_bytes_at_most": 1_500.0,
        "class_suggestion_ms_at_most": 20.0,
        "class_train_step_ms_at_most": 500.0,
    }


def test_the_file_of_classes_is_the_default_written_down():
    assert config.from_toml(Classes, ROOT / "configs" / "device-classes.toml") == Classes()


def test_classes_of_a_file_take_the_place_of_our_own(tmp_path):
    file = tmp_path / "classes.toml"
    file.write_text(config.to_toml(Classes({"watch": BUDGET})))
    assert classes.named("watch", file) == BUDGET
    with pytest.raises(ConfigError, match="no class 'low', expected watch; name one of them"):
        classes.named("low", file)
    with pytest.raises(ConfigError, match="expected high or low or middle"):
        classes.named("watch")


def test_a_budget_no_device_could_have_is_refused(tmp_path):
    file = tmp_path / "classes.toml"
    file.write_text(config.to_toml(Classes({"watch": BUDGET})).replace("100.0", "-1.0"))
    with pytest.raises(ConfigError, match="ram_mb"):
        classes.named("watch", file)


def test_a_bundle_is_measured_in_a_process_that_opens_suggests_and_trains(tiny_bundle, trusted):
    task = Task(str(tiny_bundle.path), tuple(trusted), ("i will see you", "we like my dog"))
    taken = costs.measure(task)
    assert 20 < taken.ram_mb < 500  # numpy alone takes 20; a process with TensorFlow more than 300
    assert 0 < taken.suggestion_ms < 1000
    assert 0 < taken.train_step_ms < 1000


def test_a_bundle_that_cannot_be_measured_says_what_its_process_said(tiny_bundle, trusted):
    task = Task(str(tiny_bundle.path), tuple(trusted), ())
    with pytest.raises(RunError, match="no text to measure with"):
        costs.measure(task)
    with pytest.raises(RunError, match="signed by a key that is not trusted"):
        costs.measure(replace(task, trusted=()))

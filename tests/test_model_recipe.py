"""Recipes: schedules by hand, and what they refuse."""

from pathlib import Path

import pytest

from device_runtime.config import from_table, from_toml, to_toml
from device_runtime.errors import ConfigError
from fedboard.run import Settings
from model.recipe import Recipe, Schedule

# those of training
CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[1] / "configs").glob("*.toml")
    if path.name != "server.toml"
)


def shares(rounds: int, **how) -> list[float]:
    return [round(share, 4) for share in Schedule(**how).shares(rounds)]


def test_schedules_follow_their_formulas():
    assert shares(3, kind="constant") == [1, 1, 1]
    assert shares(4, kind="cosine", final=0.0) == [1, 0.8536, 0.5, 0.1464]
    assert shares(5, kind="step", every=2, factor=0.5) == [1, 1, 0.5, 0.5, 0.25]
    assert shares(5, kind="inverse_sqrt", every=1) == [1, 0.7071, 0.5774, 0.5, 0.4472]


def test_a_warm_up_rises_linearly_before_any_schedule():
    assert shares(5, kind="constant", warm_up=3) == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            {"server": {"algorithm": "adam"}},
            "expected one of fedavg, fedavgm, fedadam, fedyogi, fedadagrad, fedprox",
        ),
        ({"server": {"algorithm": "fedprox"}}, "needs a pull above 0"),
        ({"client": {"dropout": 1.0}}, "less than 1"),
        ({"client": {"weighting": "words"}}, "expected one of rows, tokens, capped, uniform"),
        ({"sampling": "poisson"}, "expected one of shuffled, uniform"),
        (
            {"server": {"schedule": {"kind": "linear"}}},
            "expected one of constant, cosine, inverse_sqrt, step",
        ),
        ({"privacy": {"mechanism": "gaussian"}}, "privacy counts every client once"),
        ({"encoded": True, "plan": {"bits": 17}}, "expected 1 to 16, found 17"),
        (
            {"encoded": True, "privacy": {"mechanism": "tree"}},
            "encoded: has no privacy guarantee, found mechanism 'tree'",
        ),
        ({"plan": {"batch_size": 0}}, "plan.batch_size: expected at least 1, found 0"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"cohort": 0}, "expected at least 1, found 0"),
        ({"cohrot": 5}, "unknown key"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(table, says):
    with pytest.raises(ConfigError, match=says):
        from_table(Recipe, table, "recipe")


def test_a_recipe_survives_its_file(tmp_path):
    recipe = Recipe(cohort=7, sampling="uniform")
    (tmp_path / "r.toml").write_text(to_toml(recipe))
    assert from_toml(Recipe, tmp_path / "r.toml") == recipe


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_of_the_project_can_be_read(path):
    assert from_toml(Settings, path).data == "chitchat"

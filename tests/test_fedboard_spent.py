"""What a run has spent, by its own files, and whose guarantee that is."""

from pathlib import Path

import pytest

from device_runtime.bundle import NO_PRIVACY
from device_runtime.errors import RunError
from fedboard import spent
from fedboard.run import Run, Settings
from fedboard.spent import Spent
from model.recipe import Client, Privacy, Recipe

GOLDEN = Path(__file__).parent / "golden" / "run"
AFTER = Spent(12, 0.2016, 4.0, 3, 4)
LINES = "round,loss,rho,epsilon,separation,participations\n11,5.0,0.1,2.7,3,4\n"


def settings(**privacy) -> Settings:
    return Settings(
        recipe=Recipe(
            cohort=20,
            client=Client(weighting="uniform"),
            privacy=Privacy(**{"mechanism": "tree", "noise_multiplier": 7.0, **privacy}),
        )
    )


def test_the_last_whole_line_says_what_was_spent(tmp_path):
    run = Run(tmp_path)
    assert spent.of(run) is None
    run.metrics.write_text(LINES + "12,4.9,0.2016,4.0,3,4\n13,4.8,0.3,5")
    assert spent.of(run) == AFTER


def test_a_file_that_is_no_metrics_is_named(tmp_path):
    (tmp_path / "metrics.csv").write_text("round,epsilon\nfour,4\n")
    with pytest.raises(RunError, match=r"metrics\.csv: cannot be used"):
        spent.of(Run(tmp_path))


def test_a_run_of_an_earlier_version_claims_nothing():
    assert spent.of(Run(GOLDEN)) is None
    assert spent.privacy_of(Run(GOLDEN).settings()) == NO_PRIVACY
    said = spent.privacy_of(settings())
    assert said == (
        "tree noise of multiplier 7 was added in training, but nothing accounts for what was spent"
    )


def test_what_is_said_names_budget_participation_and_both_ways_to_count_a_separation():
    said = spent.privacy_of(settings(), AFTER)
    assert said.startswith(
        "tree noise of multiplier 7 was added to the sum of each round: epsilon 4.00 at delta "
        "1e-10 (rho 0.2016) over 12 rounds, no client in more than 4, its next 3 rounds later at "
        "least (2 rounds between); whoever knows the seed of the simulation can take its noise off"
    )
    assert "nor are the vocabulary" in said


def test_a_small_cohort_is_promised_nothing_where_it_stands_for_a_large_goal():
    of = settings(report_goal=10_000)
    said = spent.privacy_of(of, AFTER)
    assert "as a fleet of 10,000 reports a round would have spent it" in said
    assert "with the noise scaled by 20 / 10,000: this is no guarantee for them" in said
    assert spent.in_progress(of.recipe, 4.0) == "epsilon 4.00 (for 10,000 reports a round)"
    assert spent.in_progress(settings(epsilon=8.0).recipe, 4.0) == "epsilon 4.00 of 8"


def test_of_text_in_one_place_and_of_no_run_no_account_is_kept():
    assert spent.privacy_of(None).startswith("unknown")
    assert spent.privacy_of(Settings(central=True), AFTER).startswith("none: trained with all text")

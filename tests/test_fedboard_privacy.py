"""`fedboard privacy`: accounts of given numbers, plans for a guarantee, what is said of both."""

import json
import math
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from device_runtime import accountant, config
from device_runtime.accountant import Participation
from device_runtime.errors import ConfigError, RunError
from device_runtime.noise import Mechanism, Noise
from fedboard import privacy, privacy_curve, privacy_plan, privacy_plot
from fedboard.cli import app
from fedboard.privacy_curve import Curve, Point
from fedboard.privacy_plan import Question
from server.settings import ServerSettings
from server.task import settings_of

GBOARD = (
    "privacy account --mechanism tree --noise-multiplier 7 --rounds 2000 --min-separation 314 "
    "--max-participations 6 --delta 1e-10"
)
CURVE = Curve(
    "toy",
    (
        Point(None, 100, 0.0, 0.20, (0.19, 0.21), "", ""),
        Point(4.0, 100, 1.0, 0.18, (0.17, 0.19), "", ""),
        Point(1.0, 100, 4.0, 0.10, (0.09, 0.11), "", ""),
    ),
)


def run(command: str) -> str:
    done = CliRunner().invoke(app, command.split(), standalone_mode=False, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def question(population: int = 5_000, rounds: int = 60, **other) -> Question:
    return Question(population, rounds, 8.0, 1e-10, 1000, 0.5, 24, **other)


def test_the_account_of_the_first_launch_at_google_is_that_which_was_published():
    told = json.loads(run(f"{GBOARD} --json"))
    assert round(told["rho"], 2) == 0.81
    assert round(told["epsilon_rdp"], 2) == 8.90
    assert round(told["epsilon"], 2) == 8.53  # the same mechanism, exactly
    assert round(told["rho_by_separation"], 3) == 0.888
    assert (told["min_separation"], told["rounds_between"]) == (314, 313)
    assert told["sensitivity"] == pytest.approx(math.sqrt(79))


def test_an_account_names_both_conversions_and_both_ways_to_count_a_separation():
    said = run(GBOARD)
    assert "314 as a difference of round numbers, 313 as rounds in between" in said
    assert "8.53" in said and "8.90" in said and "exact" in said and "Renyi" in said


def test_an_account_says_of_independent_noise_what_can_be_worked_out_by_hand():
    noise = Noise(Mechanism.GAUSSIAN, 2.0, 0.0, 1e-10, 12, 4)
    told = privacy.figures(noise, 3)
    assert (told.sensitivity, told.rho, told.row_norm) == (2.0, 0.5, 1.0)
    assert told.participations == 4
    assert privacy.figures(noise, 6).participations == 2  # there is room for no more


def test_an_account_beyond_all_bounds_is_still_json():
    told = json.loads(
        run(
            "privacy account --mechanism gaussian --noise-multiplier 0.000001 --rounds 9 "
            "--min-separation 1 --max-participations 9 --json"
        )
    )
    assert told["epsilon"] is None and told["rho"] > 1e12


@given(
    st.integers(400, 10**7),
    st.integers(1, 40),
    st.floats(0.1, 30.0),
    st.sampled_from([None, *Mechanism]),
)
@settings(max_examples=8, deadline=None)
def test_a_plan_keeps_its_epsilon_and_names_no_more_phones_than_there_are(
    population, rounds, epsilon, mechanism
):
    asked = Question(population, rounds, epsilon, 1e-10, 1000, 0.5, 24, mechanism=mechanism)
    plan = privacy_plan.choose(asked)
    most = math.ceil(rounds / plan.separation)
    happened = Participation((rounds,), plan.separation, most)
    assert plan.noise.participations == most
    assert 0.995 * epsilon < accountant.account(plan.noise, happened).epsilon <= epsilon
    assert plan.report_goal * plan.separation <= population / 2
    assert plan.separation <= rounds
    assert mechanism in (None, plan.noise.mechanism)


def test_a_plan_takes_the_mechanism_with_the_least_noise_and_tells_of_the_others():
    plan = privacy_plan.choose(question())
    noise = privacy_plan.mechanisms(question(), plan)
    assert plan.noise.mechanism is Mechanism.BLT
    assert noise["blt"] == pytest.approx(plan.noise_over_rounds)
    assert noise["blt"] < noise["tree"] and noise["blt"] < noise["gaussian"]


def test_what_is_given_is_not_chosen():
    asked = question(report_goal=50, separation=20, bits=6, compression=4)
    plan = privacy_plan.choose(asked)
    chosen = (plan.report_goal, plan.separation, plan.bits, plan.compression)
    assert chosen == (50, 20, 6, 4)


def test_changes_are_computed_and_the_one_that_helps_most_comes_first():
    asked = question(report_goal=100)
    plan = privacy_plan.choose(asked)
    changes = {each.what: each for each in privacy_plan.changes(asked, plan)}
    ratios = [each.ratio for each in changes.values()]
    assert ratios == sorted(ratios)
    goal = changes["twice the phones, for twice the report goal"]
    assert goal.ratio == pytest.approx(0.5) and goal.population == 10_000
    apart = changes["twice the phones, for twice the separation"]
    assert 0.5 < apart.ratio < 1 and apart.plan.separation == 2 * plan.separation
    values = changes["half the values travel, if as much is learned of them"]
    assert values.ratio == pytest.approx(math.sqrt(0.5))
    assert all(each.plan.epsilon <= 2 * asked.epsilon for each in changes.values())


def test_no_change_is_told_that_is_none_or_that_no_task_can_be():
    asked = question(100, 60_000, mechanism=Mechanism.GAUSSIAN)  # all 50 in each round
    plan = privacy_plan.choose(asked)
    told = {each.what: each for each in privacy_plan.changes(asked, plan)}
    assert "half the rounds" in told
    assert "twice the rounds" not in told  # more than a task has
    assert "the same phones: twice the report goal, half the separation" not in told
    once = question(rounds=1)
    told = {each.what for each in privacy_plan.changes(once, privacy_plan.choose(once))}
    assert "half the rounds" not in told


def test_an_epsilon_that_no_noise_of_ours_is_enough_for_is_named():
    hard = Question(100, 100_000, 0.001, 1e-10, 1000, 0.5, 24)
    with pytest.raises(ConfigError, match=r"--epsilon: expected .* at most 1,000,000, found 0.001"):
        privacy_plan.choose(hard)


def test_a_small_fleet_is_told_how_many_phones_it_takes():
    # 8 x the root of 1.42 million / 100 phones
    assert round(privacy_plan.gaussian_on_mean(8.0, 1_420_000, 100)) == 95
    asked = Question(5_000, 60, 8.0, 1e-10, 1_420_000, 0.5, 24, report_goal=100)
    plan = privacy_plan.choose(asked)
    said = privacy_plan.advice(asked, plan)
    needed = math.ceil(100 * plan.noise_on_mean / 1.5)
    assert f"{needed:,} phones a round" in said
    assert f"{math.ceil(needed * 25 / 0.5):,} in the population" in said


def test_a_plan_s_upload_is_no_larger_than_one_without_noise_unless_it_says_so():
    asked = Question(5_000, 60, 8.0, 1e-10, 100_000, 0.5, 24, report_goal=100)
    plan = privacy_plan.choose(asked)
    assert plan.compression > 1 and plan.upload_ratio <= 1
    wide = privacy_plan.choose(
        Question(5_000, 60, 8.0, 1e-10, 100_000, 0.5, 24, 100, compression=1)
    )
    assert wide.upload_ratio > 1


def test_too_few_phones_for_what_is_asked_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"--population: expected phones .* of 2,000, found 50"):
        privacy_plan.choose(question(100, report_goal=100, separation=20))


@pytest.mark.parametrize("report_goal", [100, 50])  # 50: fewer than are opened by default
def test_a_plan_s_settings_make_a_task_with_its_noise(report_goal):
    plan = privacy_plan.choose(question(report_goal=report_goal))
    table = tomllib.loads("\n".join(privacy_plan.settings(plan)))
    task = settings_of(config.from_table(ServerSettings, table, "plan"))
    assert task.noise == plan.noise
    assert task.policy.min_separation == plan.separation
    assert task.rules.report_goal == plan.report_goal


def test_the_command_plans_in_words_and_for_programs(tmp_path):
    command = "privacy plan --population 5000 --rounds 40 --epsilon 8 --values 1000"
    said = run(command)
    for words in ("epsilon", "difference of round numbers", "what would help", "It rests on"):
        assert words in said
    plot = tmp_path / "plan.svg"
    told = json.loads(run(f"{command} --json --plot {plot}"))
    assert told["epsilon"] <= 8.0 and told["phones"] == 2500
    assert told["changes"][0]["noise"] <= told["changes"][-1]["noise"]
    assert privacy_plot.is_plot(plot)
    assert "5,000 phones" in plot.read_text()
    before = plot.read_bytes()
    run(f"{command} --json --plot {plot}")  # its own it writes over, with the same
    assert plot.read_bytes() == before


def test_another_file_is_not_drawn_over(tmp_path):
    other = tmp_path / "notes.svg"
    other.write_text("mine")
    command = f"privacy plan --population 5000 --rounds 40 --epsilon 8 --plot {other}"
    with pytest.raises(Exception, match=r"notes\.svg"):
        run(command)
    assert other.read_text() == "mine"


def test_a_plot_is_not_written_under_the_name_of_another_kind_of_picture(tmp_path):
    command = "privacy plan --population 5000 --rounds 40 --epsilon 8 --plot"
    with pytest.raises(RunError, match=r"plan\.png: expected a name that ends in \.svg"):
        run(f"{command} {tmp_path / 'plan.png'}")
    assert not list(tmp_path.iterdir())


def test_an_epsilon_that_takes_more_noise_than_there_can_be_is_left_out_of_the_plot(monkeypatch):
    question = privacy_plan.Question(5000, 40, 8.0, 1e-10, 1000, 0.5, 24)
    plan = privacy_plan.choose(question)
    whole = dict(privacy_plot.lines(question, plan))
    most = max(plans[0].noise.multiplier for plans in whole.values())
    monkeypatch.setattr(privacy_plan, "MOST_MULTIPLIER", most / 2)
    drawn = dict(privacy_plot.lines(question, plan))
    assert drawn.keys() == whole.keys()
    for label, plans in drawn.items():
        kept = [each for each in whole[label] if each.noise.multiplier <= most / 2]
        assert [each.noise.epsilon for each in plans] == [each.noise.epsilon for each in kept]
    assert sum(map(len, drawn.values())) < sum(map(len, whole.values()))
    assert "<svg" in privacy_plot.svg(question, plan)


def test_accuracy_lies_on_a_line_between_two_measured_points():
    assert privacy_curve.expected(CURVE, 0.5).top1 == pytest.approx(0.19)
    assert privacy_curve.expected(CURVE, 1.0).top1 == pytest.approx(0.18)
    assert privacy_curve.expected(CURVE, 2.0).top1 == pytest.approx(0.14)  # half way, by logarithm
    assert "of 20.0 % without noise (toy)" in privacy_curve.expected(CURVE, 2.0).said


@pytest.mark.parametrize(
    ("curve", "noise", "said"),
    [
        (CURVE, 5.0, "beyond what was measured"),
        (Curve("toy", CURVE.points[1:]), 0.5, "less noise than was measured"),
        (Curve(), 1.0, "no curve of accuracy has been measured"),
    ],
)
def test_accuracy_beyond_what_was_measured_is_not_guessed(curve, noise, said):
    expected = privacy_curve.expected(curve, noise)
    assert expected.top1 is None and said in expected.said


def test_the_curve_that_is_shipped_is_one():
    for point in privacy_curve.measured().points:
        low, high = point.interval
        assert 0 <= low <= point.top1 <= high <= 1
        assert point.command and point.commit

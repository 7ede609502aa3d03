import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from device_runtime import config
from device_runtime.bundle import MANIFEST
from device_runtime.errors import RunError
from device_runtime.metrics import Counts
from device_runtime.wire import RoundReport, RoundReports
from fedboard import report, score
from fedboard.run import (
    FORMAT,
    MARK,
    TRAINED,
    Mark,
    Run,
    Settings,
    Source,
    Used,
    limits_of,
    used_of,
)
from model.measures import Evaluation, summarise
from model.recipe import Client, Privacy, Recipe

UNIFORM = Client(weighting="uniform")  # which noise asks for
SECTIONS = {
    "metrics.csv": "training",
    "evaluations": "systems",
    "rounds.json": "funnel",
    "suggestions.json": "suggestions",
    "summary.json": "cost",
}


def scored(name: str, kind: str, top1: int) -> score.Scored:
    users = {
        f"u{i}": Counts(
            targets=40,
            top1=top1 + i % 5,
            top3=top1 + 8,
            in_vocabulary=38,
            nll=200.0,
            letters=200,
            keys=120,
        )
        for i in range(12)
    }
    total = sum(users.values(), Counts())
    shares = {user: counts.top1 / counts.targets for user, counts in users.items()}
    return score.Scored(
        name, kind, summarise(Evaluation(users, total), np.random.default_rng(0)), shares
    )


@pytest.fixture
def run(tmp_path) -> Run:
    """A run's folder with every part."""
    run_folder = Run(tmp_path / "run")
    run_folder.evaluations.mkdir(parents=True)
    run_folder.config.write_text(config.to_toml(Settings()))
    run_folder.metrics.write_text(
        "round,loss,targets,seconds,top1,top3,perplexity\n1,5.5,100,1.0,0.05,0.1,600\n"
        "2,5.0,100,1.0,,,\n3,4.5,100,1.0,0.12,0.2,200\n"
    )
    for stem, kind, top1 in (
        ("kn2", "baseline", 5),
        ("before", "checkpoint", 6),
        ("after", "checkpoint", 7),
        ("shipped", "bundle", 7),
    ):
        (run_folder.evaluations / f"{stem}.json").write_text(
            score.to_json(scored(f"{stem} <model>", kind, top1))
        )
    rounds = RoundReport(
        4,
        "committed",
        3,
        6,
        {"in_use": 2},
        4,
        4,
        3,
        3,
        {"condition_lost": 1},
        90,
        3000,
        8000,
        2.5,
        "ab" * 32,
    )
    (run_folder.path / "rounds.json").write_bytes(config.to_json(RoundReports((rounds,))))
    strip = [["you", 0.5], ["it", 0.2], ["<b>", 0.1]]
    (run_folder.path / "suggestions.json").write_text(
        json.dumps([{"context": "see <i>", "prefix": "", "before": strip, "after": strip}])
    )
    totals = {
        "seconds": {"Corpus": 4.0},
        "sizes": {"predict.tflite": 434656},
        "bytes_per_upload": 1000,
        "interpreters": {"tflite-runtime 2.14.0": 3, "ai-edge-litert 2.3.0": 2},
        "verdict": "It is better.",
    }
    (run_folder.path / "summary.json").write_text(json.dumps(totals))
    return run_folder


def test_every_part_of_the_folder_has_its_section_and_the_page_stands_by_itself(run):
    page = report.build(run).read_text()
    for section in SECTIONS.values():
        assert f'id="{section}"' in page
    assert "It is better." in page
    assert "condition lost" in page
    assert "The devices trained 3 on tflite-runtime 2.14.0, 2 on ai-edge-litert 2.3.0." in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<script" not in page


@pytest.mark.parametrize(("part", "section"), SECTIONS.items())
def test_a_missing_part_leaves_the_rest_standing(run, part, section):
    path = run.path / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = report.build(run).read_text()
    assert f'id="{section}"' not in page
    assert all(f'id="{other}"' in page for other in SECTIONS.values() if other != section)


def test_what_is_said_of_privacy_is_what_the_bundle_says_or_else_the_run(run, tiny_bundle):
    line = "Privacy: none: no noise was added and updates were not securely aggregated."
    assert line in report.build(run).read_text()
    noised = replace(Settings(), recipe=Recipe(privacy=Privacy("tree", 0.5), client=UNIFORM))
    run.config.write_text(config.to_toml(noised))
    assert "Privacy: tree noise of multiplier 0.5 was added" in report.build(run).read_text()
    manifest = tiny_bundle.manifest
    lineage = replace(manifest.lineage, privacy="noise of a later version")
    run.bundle.mkdir()
    (run.bundle / MANIFEST).write_bytes(config.to_json(replace(manifest, lineage=lineage)))
    assert "Privacy: noise of a later version." in report.build(run).read_text()


def test_what_was_spent_is_drawn_by_round_and_says_whose_it_is(run):
    privacy = Privacy("tree", 7.0, epsilon=4.0, report_goal=10_000)
    run.config.write_text(config.to_toml(Settings(recipe=Recipe(privacy=privacy, client=UNIFORM))))
    run.metrics.write_text(
        "round,loss,rho,epsilon,separation,participations\n1,5.5,0.01,0.8,0,1\n"
        "2,5.0,0.02,1.2,0,1\n3,4.5,0.03,1.5,2,2\n"
    )
    page = report.build(run).read_text()
    assert "After round 3: epsilon 1.50 at delta 1e-10. The budget is 4." in page
    assert "of a fleet of 10,000 reports a round, not of these 20 clients" in page
    assert "epsilon 1.50 at delta 1e-10 (rho 0.03) over 3 rounds" in page
    assert "this is no guarantee for them" in page
    run.config.write_text(config.to_toml(Settings()))
    run.metrics.write_text("round,loss\n1,5.5\n")
    assert "Privacy spent by round" not in report.build(run).read_text()


def test_a_run_within_the_limits_of_a_device_says_which_users_it_used(run):
    limited = Settings(recipe=Recipe(encoded=True, device_limits=True))
    run.config.write_text(config.to_toml(limited))
    run.users.write_bytes(config.to_json(Used(5, ("ann", "bob"))))
    assert used_of(run) == Used(5, ("ann", "bob"))
    assert "of 5 train users it used the 2 who have typed enough" in report.build(run).read_text()
    run.users.write_text("[")
    with pytest.raises(RunError, match=r"users\.json: cannot be used"):
        report.build(run)


def test_a_run_says_whether_it_kept_the_limits_of_a_device():
    limited = Recipe(encoded=True, device_limits=True)
    assert limits_of(Settings()).startswith("no: simulated clients refused nothing")
    assert limits_of(Settings(recipe=limited)).startswith("yes, but for updates a day")
    assert limits_of(Settings(recipe=limited, central=True)).startswith("no: trained with all")
    since = limits_of(Settings(init="another", recipe=limited))
    assert since.endswith("what it started from is not known")
    assert limits_of(None).startswith("unknown")


def test_the_page_says_whether_the_run_kept_the_limits_of_a_device(run):
    said = "Simulated training within the limits of a device: "
    assert f"{said}no: " in report.build(run).read_text()
    limited = Settings(recipe=Recipe(encoded=True, device_limits=True))
    run.config.write_text(config.to_toml(limited))
    assert f"{said}yes, but" in report.build(run).read_text()


def test_of_a_run_nobody_knows_the_settings_of_no_privacy_is_claimed_or_denied(run):
    run.config.unlink()
    assert "Privacy:" not in report.build(run).read_text()


def test_text_is_escaped_and_the_same_folder_gives_the_same_bytes(run):
    first = report.build(run).read_bytes()
    assert b"kn2 &lt;model&gt;" in first
    assert b"&lt;b&gt;" in first
    assert b"see <i>" not in first
    assert report.build(run).read_bytes() == first


@pytest.mark.parametrize(
    "part",
    ["rounds.json", "suggestions.json", "summary.json", "evaluations/kn2.json", "metrics.csv"],
)
def test_a_damaged_part_is_named_and_an_older_report_stays(run, part):
    report.build(run)
    before = run.report.read_bytes()
    (run.path / part).write_text("{broken\n{broken\n")
    with pytest.raises(RunError, match=part.rpartition("/")[2]):
        report.build(run)
    assert run.report.read_bytes() == before


SPREAD = (
    "round,loss,loss_p10,loss_p50,loss_p90,train_top1,train_top1_p10,train_top1_p50,"
    "train_top1_p90,top1,top1_p10,top1_p50,top1_p90\n"
    "1,5.5,5,5.4,6,0.1,0.05,0.1,0.15,0.12,0.1,0.12,0.2\n"
    "2,5.0,4.5,4.9,5.5,0.12,0.06,0.11,0.16,,,,\n"
    "3,4.5,4,4.4,5,0.14,0.07,0.12,0.17,0.11,0.1,0.11,0.2\n"
)


def test_loss_and_top_1_are_drawn_with_their_spread(run):
    without = report.build(run).read_text()
    assert "eight of ten" not in without
    run.metrics.write_text(SPREAD)
    page = report.build(run).read_text()
    assert "the median client has 4.40, eight of ten lie between 4.00 and 5.00" in page
    assert "The median client has 12.0 %, eight of ten lie between 7.0 and 17.0 %" in page
    assert "in round 3 the median user has 11.0 % top-1" in page
    assert "A band holds eight of ten clients" in page


def test_the_best_round_is_said_and_whether_patience_ended_training_after_it(run):
    run.metrics.write_text(SPREAD)
    assert "Best round: 1, top-1 12.0 % on validation users." in report.build(run).read_text()
    patient = replace(Settings(), recipe=Recipe(rounds=9, patience=1))
    run.config.write_text(config.to_toml(patient))
    assert "training stopped after round 3, no better for 1 look." in report.build(run).read_text()
    ended = replace(patient, recipe=Recipe(rounds=3, patience=1))
    run.config.write_text(config.to_toml(ended))
    assert "training stopped" not in report.build(run).read_text()


def test_half_a_line_that_a_killed_training_left_is_left_out(run):
    run.metrics.write_text(SPREAD + "4,4.")
    assert "to 4.50 in round 3." in report.build(run).read_text()


def test_scores_of_another_corpus_than_the_runs_are_refused_by_both_digests(run):
    corpus = Source("mine", "/somewhere/mine", "a" * 64)
    (run.path / MARK).write_bytes(config.to_json(Mark(FORMAT, TRAINED, corpus)))
    page = report.build(run).read_text()  # scores of an earlier version do not say theirs
    assert "Trained on the corpus mine" in page
    assert "/somewhere" not in page
    path = run.evaluations / "kn2.json"
    for digest in ("a" * 64, "b" * 64):
        other = replace(scored("kn2", "baseline", 5), corpus=digest)
        path.write_text(score.to_json(other))
        if digest == corpus.digest:
            report.build(run)
    with pytest.raises(RunError, match=f"kn2.json: .*digest {'b' * 12}, expected .* {'a' * 12};"):
        report.build(run)

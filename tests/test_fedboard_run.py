"""Run folders: whose they are, what an overwrite removes, and what of the user's stays."""

import shutil
import zipfile
from pathlib import Path

import pytest

from device_runtime import folder, weights
from device_runtime.errors import BundleError, RunError
from fedboard.export import Asked, export
from fedboard.run import (
    DEMO,
    MARK,
    TRAINED,
    Mark,
    Run,
    Settings,
    Source,
    create,
    folder_kind,
    mark_of,
    require_free,
)
from tests.kill_points import every_kill_point

GOLDEN = Path(__file__).parent / "golden" / "run"


def new_run(
    path: Path, replace: bool = False, kind: str = TRAINED, corpus: Source | None = None
) -> Run:
    """A new run's folder, as training makes it."""
    with folder.writing(path, folder_kind(kind)):
        return create(path, Settings(), replace, kind, corpus)


def names(path: Path) -> list[str]:
    return sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())


@pytest.mark.parametrize("kind", [TRAINED, DEMO])
@pytest.mark.parametrize(
    "config", ["", 'title = "My lab notes"\n', 'data = "chitchat"\n', "[recipe]\nrounds = 3\n"]
)
def test_a_folder_that_merely_holds_a_config_is_not_a_run(tmp_path, config, kind):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / "config.toml").write_text(config)
    with pytest.raises(RunError, match="holds files that are not a"):
        require_free(tmp_path, replace=True, kind=kind)
    with pytest.raises(RunError, match="holds files that are not a"):
        new_run(tmp_path, replace=True, kind=kind)
    assert names(tmp_path) == [".git/HEAD", "config.toml"]


@pytest.mark.parametrize("mark", ["", "{}", '{"format": "other-1", "kind": "train"}', "[1]"])
def test_a_run_json_of_somebody_else_makes_no_run(tmp_path, mark):
    (tmp_path / MARK).write_text(mark)
    assert mark_of(tmp_path) is None
    with pytest.raises(RunError, match="not a run of Fedboard"):
        require_free(tmp_path, replace=True)


def test_overwriting_removes_what_a_run_wrote_and_keeps_the_rest(tmp_path):
    run = new_run(tmp_path / "run")
    for name in (
        "tokenizer.model",
        "metrics.csv",
        "checkpoints/best.safetensors",
        "checkpoints/state/program_state_3/saved_model.pb",
        "tensorboard/events.out.tfevents.1.host",
        "bundle/predict.tflite",
        "checkpoints/.best.safetensors.77.part",
    ):
        path = run.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ours")
    for name in (
        "notes.md",
        "thesis/chapter.tex",
        "checkpoints/favourite.safetensors",
        "evaluations/mine.json",
    ):
        path = run.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    shutil.copy(GOLDEN / "evaluations" / "kn2.json", run.path / "evaluations" / "kn2.json")
    new_run(tmp_path / "run", replace=True)
    assert names(run.path) == [
        "checkpoints/favourite.safetensors",
        "config.toml",
        "evaluations/mine.json",
        "notes.md",
        MARK,
        "thesis/chapter.tex",
    ]


def test_a_run_is_replaced_only_when_asked_and_only_by_its_own_kind(tmp_path):
    new_run(tmp_path / "trained")
    new_run(tmp_path / "demo", kind=DEMO)
    with pytest.raises(
        RunError, match="earlier run already; choose another folder, or pass --over"
    ):
        require_free(tmp_path / "trained", replace=False)
    with pytest.raises(RunError, match="not a demo of Fedboard"):
        require_free(tmp_path / "trained", replace=True, kind=DEMO)
    with pytest.raises(RunError, match="not a run of Fedboard"):
        require_free(tmp_path / "demo", replace=True)
    require_free(tmp_path / "demo", replace=True, kind=DEMO)


def test_a_link_among_a_runs_files_is_named_and_nothing_behind_it_is_touched(tmp_path):
    run = new_run(tmp_path / "run")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "best.safetensors").write_text("another run's")
    run.checkpoints.rmdir()
    run.checkpoints.symlink_to(tmp_path / "shared")
    with pytest.raises(RunError, match="checkpoints: is a link"):
        require_free(run.path, replace=True)
    with pytest.raises(RunError, match="checkpoints: is a link"):
        new_run(run.path, replace=True)
    assert (tmp_path / "shared" / "best.safetensors").read_text() == "another run's"


def test_runs_and_demos_that_earlier_versions_wrote_are_known(tmp_path):
    assert mark_of(GOLDEN).kind == TRAINED
    shutil.copytree(GOLDEN, tmp_path / "demo")
    (tmp_path / "demo" / "bundle-simulation").mkdir()
    (tmp_path / "demo" / "bundle-simulation" / "manifest.json").write_text(
        '{"format": 2, "tokenizer": "", "lineage": {}, "files": {}}'
    )
    assert mark_of(tmp_path / "demo") == Mark("fedboard-run-1", DEMO)
    new_run(tmp_path / "demo", replace=True, kind=DEMO)
    assert names(tmp_path / "demo") == ["config.toml", MARK]


def test_a_run_that_knows_its_corpus_opens_as_it_was_written(tmp_path):
    with zipfile.ZipFile(GOLDEN.parent / "run-1.zip") as archive:
        archive.extractall(tmp_path)
    run = Run(tmp_path / "run")
    corpus = mark_of(run.path).corpus
    assert (corpus.name, corpus.path, corpus.digest[:12]) == ("chitchat", "", "d2a5d0bf6acf")
    assert (run.settings().recipe.patience, run.settings().recipe.rounds) == (5, 2)
    first, best = (weights.read(path) for path in (run.first, run.best))
    assert first.tokenizer == best.tokenizer and best.round == 1
    assert (run.state / "program_state_2" / "saved_model.pb").is_file()
    new_run(run.path, replace=True)
    assert names(run.path) == ["config.toml", MARK]


def test_an_overwrite_killed_at_any_step_mixes_no_corpus_with_another_runs_files(tmp_path):
    script = """
from fedboard.run import Source
from tests.test_fedboard_run import new_run

def work(folder):
    new_run(folder, replace=True, corpus=Source("new", "", "new"))
"""

    def prepare(place):
        run = new_run(place, corpus=Source("old", "", "old"))
        (run.checkpoints / "first.safetensors").write_text("old")
        (run.path / "metrics.csv").write_text("old")
        (run.path / "notes.md").write_text("mine")

    def check(place):
        if mark_of(place).corpus.name == "new":
            whole = {name for name in names(place) if not name.startswith(".")}
            assert whole <= {"config.toml", "notes.md", MARK}
        assert (place / "notes.md").read_text() == "mine"
        require_free(place, replace=True)

    assert every_kill_point(script, tmp_path / "run", prepare, check) > 8


def test_an_export_onto_something_else_is_refused_before_a_key_is_made(tmp_path):
    place = tmp_path / "extension"
    place.mkdir()
    (place / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(BundleError, match="files that are not a bundle of Fedboard's"):
        export(GOLDEN, place, Asked(key=tmp_path / "signing.key"))
    assert names(tmp_path) == ["extension/manifest.json"]

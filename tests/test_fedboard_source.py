"""Which corpus a run's commands use, and what they say of another. Nothing is trained."""

import os
import shutil
from pathlib import Path

import pytest

from device_runtime import config, weights
from device_runtime.errors import RunError
from fedboard import source
from fedboard.cli import app
from fedboard.run import MARK, Run, Settings, Source, create, mark_of
from model import corpora, imported

GOLDEN = Path(__file__).parent / "golden" / "run"


@pytest.fixture
def place(tmp_path, corpus_file, monkeypatch) -> Path:
    """A folder with two corpora of users' own, `one` and `two`; commands run there."""
    imported.import_file(corpus_file, tmp_path / "one")
    lines = Path(corpus_file).read_text().splitlines(keepends=True)
    (tmp_path / "two.jsonl").write_text("".join(lines[:-1]))
    imported.import_file(tmp_path / "two.jsonl", tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def chitchat() -> None:
    """A test that asks for this reads it, which takes a while: `tests/suite.py` knows its name."""


def trained(name: str, data: str, checkpoint, vocabulary) -> Run:
    """A run's folder as training on a corpus leaves it."""
    known = source.known(data, corpora.load(data))
    run = create(Path(name), Settings(data), replace=False, corpus=known)
    for path in (run.first, run.best):
        path.write_bytes(weights.to_bytes(checkpoint))
    run.tokenizer.write_bytes(vocabulary.model)
    return run


@pytest.fixture
def run(place, tiny_checkpoint, tiny_vocabulary) -> Run:
    return trained("a", "one", tiny_checkpoint, tiny_vocabulary)


def digest(name: str) -> str:
    return corpora.load(name).digest[:12]


def test_a_run_holds_its_corpus_by_name_place_and_digest(run, place):
    assert mark_of(run.path).corpus == Source("one", str(place / "one"), corpora.load("one").digest)
    # whose folder may have any name
    assert source.known("chitchat", corpora.load("one")).path == ""


@pytest.mark.parametrize("target", ["a", "a/checkpoints/best.safetensors"])
def test_without_a_corpus_named_a_runs_own_is_used_from_any_folder(
    run, place, monkeypatch, target, tmp_path_factory
):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    corpus, name, notes = source.for_targets([str(place / target), "kn2"], None)
    assert (corpus.digest, name, notes) == (mark_of(place / "a").corpus.digest, "one", [])


def test_a_bundle_in_a_runs_folder_is_scored_on_the_runs_corpus(run, tiny_bundle):
    shutil.copytree(tiny_bundle.path, run.bundle)
    assert source.of_target(str(run.bundle)) == run
    assert source.for_targets([str(run.bundle)], None)[1] == "one"
    assert source.of_target(str(tiny_bundle.path)) is None


def test_a_baseline_alone_is_scored_on_chitchat(place, chitchat):
    assert source.for_targets(["kn2"], None)[1] == "chitchat"


def test_a_corpus_imported_anew_under_the_same_name_is_refused_with_both_digests(run, place):
    before = digest("one")
    shutil.rmtree(place / "one")
    shutil.copytree(place / "two", place / "one")
    with pytest.raises(RunError) as refused:
        source.load(run)
    assert f"digest {before} at {place / 'one'}, found digest {digest('two')} at" in str(
        refused.value
    )


def test_a_corpus_that_was_moved_is_said_and_taken_from_its_new_place(run, place):
    before = digest("one")
    os.rename(place / "one", place / "new")
    with pytest.raises(RunError, match=f"digest {before}, expected at .*name its new place"):
        source.load(run)
    corpus, moved = source.load(run, "new")
    assert moved == Source("new", str(place / "new"), corpus.digest)
    with pytest.raises(RunError, match=f"found digest {digest('two')} at two"):
        source.load(run, "two")


def test_another_corpus_may_be_named_and_that_is_said(run, place):
    corpus, name, notes = source.for_targets(["a"], "two")
    assert (corpus.digest[:12], name) == (digest("two"), "two")
    (note,) = notes
    assert digest("one") in note
    assert digest("two") in note
    os.rename(place / "one", place / "new")
    assert source.for_targets(["a"], "new")[2] == []  # it is the same one


def test_runs_of_different_corpora_are_scored_on_neither(
    run, place, tiny_checkpoint, tiny_vocabulary
):
    trained("b", "two", tiny_checkpoint, tiny_vocabulary)
    trained("c", "one", tiny_checkpoint, tiny_vocabulary)
    with pytest.raises(RunError, match=f"{digest('one')} in a and .*{digest('two')} in b; name"):
        source.for_targets(["a", "b"], None)
    assert source.for_targets(["a", "c"], None)[1] == "one"
    assert len(source.for_targets(["a", "b"], "two")[2]) == 1


def test_a_run_of_an_earlier_version_is_taken_at_its_corpus_name_and_that_is_said(
    run, place, chitchat
):
    (run.path / MARK).unlink()
    corpus, name, (note,) = source.for_targets(["a"], None)
    assert (corpus.digest[:12], name) == (digest("one"), "one")
    assert "a does not hold the digest of its corpus" in note
    assert source.load(run)[1] == Source("one", "", "")
    assert source.for_targets([str(GOLDEN)], None)[1] == "chitchat"


def test_a_folder_above_a_bundle_that_is_no_run_says_nothing_of_it(place, tiny_bundle):
    shutil.copytree(tiny_bundle.path, place / "bundle")
    (place / "config.toml").write_text('title = "My lab notes"\n')
    assert source.of_target(str(place / "bundle")) is None


def test_evaluate_scores_a_run_on_its_own_corpus_and_says_so_of_another(run, capsys):
    app(["evaluate", "a"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "one, test users: " in printed
    assert "another corpus" not in printed
    app(["evaluate", "a", "--data", "two"], standalone_mode=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"a was trained on another corpus ({Path('one').absolute()}" in printed
    assert "two, test users: " in printed


def test_a_mark_survives_its_file(run):
    mark = mark_of(run.path)
    assert config.from_json(type(mark), config.to_json(mark), "run.json") == mark

"""What a command writes beside a run: results and keys never take the place of others' files."""

import json
import os
from pathlib import Path

import pytest

from device_runtime import signing
from device_runtime.bundle import is_zip_of_one, write_zip
from device_runtime.errors import RunError
from fedboard import cli, corpus_figures, devices, score
from fedboard.run import require_result_file, signing_key, trusted_keys, writable
from model import corpus, measures


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(RunError) as raised:
        require_result_file(path, "a number", lambda path: path.read_text().isdigit())
    for part in (str(path), *parts):
        assert part in str(raised.value)


def test_a_result_goes_to_a_new_file_an_empty_one_or_an_earlier_result(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "earlier").write_text("41")
    for path in (tmp_path / "new", tmp_path / "a" / "b", tmp_path / "empty", tmp_path / "earlier"):
        require_result_file(path, "a number", lambda path: path.read_text().isdigit())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["earlier", "empty"]


def test_a_result_takes_the_place_of_nothing_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    (tmp_path / "link").symlink_to("thesis.txt")
    refused(tmp_path / "thesis.txt", "something else than a number", "left as it is")
    refused(tmp_path / "link", "something else than a number")
    refused(tmp_path, "is a folder")
    refused(Path("/dev/null"), "no ordinary file")
    refused(tmp_path / "thesis.txt" / "x", "is a file, expected a folder")
    refused(tmp_path / ("a" * 300), "too long")
    assert (tmp_path / "thesis.txt").read_text() == "words"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_result_into_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    refused(tmp_path / "x", "cannot be written")
    refused(tmp_path / "a" / "x", "cannot be written")
    tmp_path.chmod(0o700)


def test_results_predictions_and_both_at_once_are_told_apart(tmp_path):
    predictions = tmp_path / "p.jsonl"
    with measures.predictions_file(predictions) as write:
        write(measures.Prediction("ann", ("i",), "am", ("am", "will", "do"), 2, -0.5, True))
    assert measures.are_predictions(predictions)
    score.require_files(predictions, [tmp_path / "new.json"])
    for path in (predictions, tmp_path / "other.json"):
        (tmp_path / "other.json").write_text('{"name": "not a result"}')
        with pytest.raises(RunError, match="something else than a result"):
            score.require_files(None, [path])
    with pytest.raises(RunError, match="something else than predictions"):
        score.require_files(tmp_path / "other.json", [])
    with pytest.raises(RunError, match="two results"):
        score.require_files(tmp_path / "a", [tmp_path / "b" / ".." / "a"])


@pytest.mark.parametrize("text", ["not json", "[1]", "[" * 100_000, '{"user": "ann"}', "\xff"])
def test_what_are_no_predictions_is_not_taken_for_them(tmp_path, text):
    (tmp_path / "file").write_text(text, encoding="latin-1")
    assert not measures.are_predictions(tmp_path / "file")
    assert not devices.are_outcomes(tmp_path / "file")
    assert not is_zip_of_one(tmp_path / "file")


def test_a_bundle_s_zip_and_a_device_s_outcomes_are_known(tmp_path, tiny_bundle):
    write_zip(tiny_bundle, tmp_path / "a.zip")
    assert is_zip_of_one(tmp_path / "a.zip")
    (tmp_path / "o.jsonl").write_text(json.dumps({"device": "d", "status": "counted"}) + "\n")
    assert devices.are_outcomes(tmp_path / "o.jsonl")


def test_a_key_is_made_once_for_its_owner_with_its_public_half(tmp_path):
    path = tmp_path / "keys" / "mine.key"
    key = signing_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_suffix(".pub").read_text() == f"{signing.public_hex(key)}\n"
    before = path.read_bytes()
    assert signing.public_hex(signing_key(path)) == signing.public_hex(key)
    assert path.read_bytes() == before
    assert trusted_keys([path.with_suffix(".pub")]) == {signing.public_hex(key)}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["mine.key", "mine.pub"]


@pytest.mark.parametrize("theirs", ["ssh-ed25519 AAAA me@here\n", "ab" * 32, "", "\xff"])
@pytest.mark.parametrize("with_key", [True, False])
def test_somebody_else_s_public_key_is_never_written_over(tmp_path, theirs, with_key):
    public = tmp_path / "id.pub"
    public.write_text(theirs, encoding="latin-1")
    if with_key:
        signing.load_or_create(tmp_path / "id")
    names = sorted(entry.name for entry in tmp_path.iterdir())
    with pytest.raises(RunError, match=r"id\.pub: holds something else .* --key FILE"):
        signing_key(tmp_path / "id")
    assert public.read_text(encoding="latin-1") == theirs
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names


def test_what_is_no_key_stays_and_says_that_it_may_be_removed(tmp_path):
    (tmp_path / "key").write_text("somebody's")
    with pytest.raises(RunError, match="--key FILE, or remove the file to have a new key made"):
        signing_key(tmp_path / "key")
    assert (tmp_path / "key").read_text() == "somebody's"


def test_where_no_key_can_be_made_the_option_is_named_and_nothing_is_to_be_removed(tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(RunError) as raised:
        signing_key(tmp_path / "runs" / "keys" / "signing.key")
    assert "no key can be made there" in str(raised.value)
    assert "name another key with --key FILE" in str(raised.value)
    assert "remove" not in str(raised.value)


@pytest.mark.parametrize("name", ["key.pub", ""])
def test_a_key_is_a_file_and_not_a_public_one(tmp_path, name):
    with pytest.raises(RunError, match="expected a private key's file"):
        signing_key(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_trusted_key_that_is_none_is_named(tmp_path):
    good, bad = tmp_path / "good.pub", tmp_path / "bad.pub"
    good.write_text("0" * 64)
    for data in (b"ssh-ed25519 AAAA", b"", b"\xff", b"0" * 63):
        bad.write_bytes(data)
        with pytest.raises(RunError, match=r"bad\.pub: expected a public key"):
            trusted_keys([good, bad])
    with pytest.raises(RunError, match=r"none\.pub: no trusted public key"):
        trusted_keys([good, tmp_path / "none.pub"])


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_the_result(tmp_path, tiny_bundle, there):
    (tmp_path / "results").mkdir()
    for name in ("zip", "jsonl", "json"):
        if there:
            (tmp_path / "results" / name).touch()
        (tmp_path / f"link.{name}").symlink_to(f"results/{name}")
    require_result_file(tmp_path / "link.json", "a number", lambda path: False)
    with writable(tmp_path / "link.json") as place:
        place.write_text("1")
    write_zip(tiny_bundle, tmp_path / "link.zip")
    with measures.predictions_file(tmp_path / "link.jsonl"):
        pass
    assert all((tmp_path / f"link.{name}").is_symlink() for name in ("zip", "jsonl", "json"))
    assert is_zip_of_one(tmp_path / "results" / "zip")
    assert (tmp_path / "results" / "jsonl").is_file()
    assert (tmp_path / "results" / "json").read_text() == "1"


def test_predictions_make_their_folder_as_results_do(tmp_path):
    path = tmp_path / "new" / "p.jsonl"
    score.require_files(path, [])
    with measures.predictions_file(path):
        pass
    assert path.is_file()


def test_plots_take_the_place_of_earlier_plots_and_of_nothing_else(tmp_path, tiny_corpus):
    thesis, stats = tmp_path / "thesis.svg", corpus.stats(tiny_corpus)
    drawing = "<svg><text>a drawing of somebody's</text></svg>"
    thesis.write_text(drawing)
    with pytest.raises(RunError, match="something else than"):
        cli.data_stats(str(tmp_path / "no corpus: refused before it is read"), thesis)
    assert thesis.read_text() == drawing
    thesis.write_text(corpus_figures.svg(stats))
    require_result_file(thesis, "plots of a corpus", corpus_figures.are_figures)

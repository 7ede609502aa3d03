"""What `fedboard bundle` says of bundles, on terminals of any width."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from device_runtime import bundle
from device_runtime.bundle import open_verified
from device_runtime.shown import printable
from fedboard import console, run
from fedboard.bundle_commands import EDGES, by_length, readable_pair
from fedboard.cli import app
from fedboard.run import open_bundle

SENTENCE = "noise multiplier 1.2, secure aggregation of 100 devices, epsilon 6.51 at delta 1e-06"


@pytest.fixture
def trust(trusted, tmp_path):
    """Words of a command line that trust the maker of the tiny bundle."""
    key = tmp_path / "maker.pub"
    key.write_text(next(iter(trusted)) + "\n")
    return ["--trust", str(key)]


@pytest.fixture
def newer(tiny_bundle, signing_key, tmp_path):
    """The tiny bundle a release later, with a long sentence about its privacy."""
    manifest = tiny_bundle.manifest
    lineage = replace(manifest.lineage, round=7, privacy=SENTENCE)
    bundle.write(
        tmp_path / "newer",
        replace(manifest, release=manifest.release + 1, lineage=lineage),
        tiny_bundle.content,
        signing_key,
    )
    return tmp_path / "newer"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_difference_names_every_field_and_fits_the_terminal(
    tiny_bundle, newer, trust, monkeypatch, width
):
    monkeypatch.setattr(console.out, "width", width)
    done = CliRunner().invoke(app, ["bundle", "diff", str(tiny_bundle.path), str(newer), *trust])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()[1:-1]  # the first holds the paths, the last is a sentence
    assert all(cell_len(line) <= max(width, 60) for line in lines)
    for field in ("release", "lineage.round", "lineage.privacy"):
        assert any(line.split()[:1] == [field] for line in lines)
    assert SENTENCE in " ".join(done.output.replace('"', "").split())


def test_values_are_shown_as_people_read_them():
    assert readable_pair(('"tiny"', '"gboard"')) == ("tiny", "gboard")
    assert readable_pair(("10013", "38.0")) == ("10,013", "38")
    assert readable_pair(("-", "null")) == ("-", "-")
    assert readable_pair(("true", "[1, 2]")) == ("true", "[1, 2]")
    assert readable_pair(('"%s"' % ("a" * 64), '"%s"' % ("b" * 64))) == ("a" * 16, "b" * 16)
    assert readable_pair(("NaN", "1e3")) == ("NaN", "1,000")


def test_what_differs_is_never_shown_alike():
    one, other = "a" * 63 + "1", "a" * 63 + "2"
    assert readable_pair((f'"{one}"', f'"{other}"')) == (one, other)
    assert readable_pair(("0.12345", "0.12346")) == ("0.12345", "0.12346")


@given(
    st.dictionaries(st.text(max_size=30), st.tuples(st.text(max_size=90), st.text(max_size=90))),
    st.integers(1, 200),
)
def test_every_field_is_in_the_table_or_under_it_and_the_table_fits(fields, width):
    rows, long = by_length(fields, width)
    assert sorted([*rows, *long]) == sorted([name, *pair] for name, pair in fields.items())
    columns = [[cell_len(printable(cell)) for cell in column] for column in zip(*rows, strict=True)]
    assert not rows or sum(map(max, columns)) + EDGES <= max(width, EDGES + max(columns[0]))


def test_a_zip_is_taken_wherever_a_folder_is(tiny_bundle, trust, tmp_path):
    packed, again = str(tmp_path / "bundle.zip"), str(tmp_path / "again.zip")
    zipped = ["bundle", "zip", str(tiny_bundle.path), packed, *trust]
    assert CliRunner().invoke(app, zipped).exit_code == 0
    for words in (
        ["bundle", "verify", packed],
        ["bundle", "show", packed],
        ["bundle", "diff", packed, str(tiny_bundle.path)],
        ["bundle", "zip", packed, again],
        ["predict", packed, "i will s"],
    ):
        done = CliRunner().invoke(app, [*words, *trust])
        assert done.exit_code == 0, (words, done.output)
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "bundle.zip").read_bytes()


def test_a_copy_of_the_reference_bundle_is_opened_without_naming_its_maker(
    tiny_bundle, trusted, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where no key of our own is
    monkeypatch.setattr(run, "REFERENCE_KEY", tmp_path / "reference.pub")
    with pytest.raises(run.RunError, match="no trusted public key"):
        open_bundle(tiny_bundle.path, None)
    (tmp_path / "reference.pub").write_text(next(iter(trusted)))
    bundle.write_zip(open_verified(tiny_bundle.path, trusted), tmp_path / "copy.zip")
    assert open_bundle(tmp_path / "copy.zip", None).signer in trusted
    (tmp_path / "other.pub").write_text("0" * 64)
    with pytest.raises(bundle.BundleError, match="not trusted"):  # whoever names one means it
        open_bundle(tmp_path / "copy.zip", [tmp_path / "other.pub"])


def test_words_added_and_removed_are_each_named_with_their_number(
    tiny_bundle, newer, trust, monkeypatch
):
    difference = bundle.Difference({}, {}, ("[/]", "b"), tuple("cdefgh"), None, 1.0)
    monkeypatch.setattr(bundle, "difference", lambda *_: replace(difference, files={"f": (1, 2)}))
    done = CliRunner().invoke(app, ["bundle", "diff", str(tiny_bundle.path), str(newer), *trust])
    assert "words: 2 added ([/], b), 6 removed (c, d, e, f, g, ...)" in done.output

"""Bundles on one device: swapped whole, never back, the last good one when the newest is damaged.

Kills are in test_device_runtime_kills.py.
"""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_runtime import bundle, installed
from device_runtime.errors import BundleError
from device_runtime.interpreter import Graph
from device_runtime.predictor import Predictor

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def release(tmp_path, tiny_bundle, signing_key):
    def make(number: int) -> Path:
        path = tmp_path / f"release-{number}"
        bundle.write(
            path, replace(tiny_bundle.manifest, release=number), tiny_bundle.content, signing_key
        )
        return path

    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "bundles"


def used(folder, trusted) -> int:
    return installed.current(folder, trusted).bundle.manifest.release


def test_the_bundle_installed_last_is_used_and_the_one_before_is_kept(folder, release, trusted):
    for number in (1, 2, 3):
        installed.install(folder, release(number), trusted)
    assert used(folder, trusted) == 3
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2


def test_the_same_bundle_again_changes_nothing(folder, release, trusted):
    installed.install(folder, release(1), trusted)
    installed.install(folder, release(2), trusted)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    installed.install(folder, release(2), trusted)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_lower_release_is_refused_even_when_the_newest_is_damaged(folder, release, trusted):
    installed.install(folder, release(2), trusted)
    installed.install(folder, release(5), trusted)
    newest = installed.current(folder, trusted).bundle.path
    (newest / "predict.tflite").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="release 4 is older than release 5"):
        installed.install(folder, release(4), trusted)


def test_a_damaged_bundle_is_not_used_but_the_last_good_one_and_the_reason_is_told(
    folder, release, trusted
):
    installed.install(folder, release(1), trusted)
    installed.install(folder, release(2), trusted)
    (installed.current(folder, trusted).bundle.path / "train.tflite").write_bytes(b"damaged")
    now = installed.current(folder, trusted)
    assert now.bundle.manifest.release == 1
    assert "train.tflite: expected" in now.problem
    installed.install(folder, release(2), trusted)  # mends it
    assert installed.current(folder, trusted).problem is None
    assert used(folder, trusted) == 2


def test_a_damaged_bundle_does_not_take_the_place_of_the_last_good_one(folder, release, trusted):
    for number in (1, 2):
        installed.install(folder, release(number), trusted)
    (installed.current(folder, trusted).bundle.path / "plan.json").write_bytes(b"damaged")
    installed.install(folder, release(3), trusted)
    (installed.current(folder, trusted).bundle.path / "plan.json").write_bytes(b"damaged")
    assert installed.current(folder, trusted).bundle.manifest.release == 1


def test_while_the_pointer_is_damaged_the_highest_release_is_used_and_nothing_is_installed(
    folder, release, trusted
):
    for number in (1, 2):
        installed.install(folder, release(number), trusted)
    (folder / installed.POINTER).write_bytes(b"\xff")
    now = installed.current(folder, trusted)
    assert (now.bundle.manifest.release, "current.json: cannot be read" in now.problem) == (2, True)
    # it knew the highest release there ever was
    with pytest.raises(BundleError, match=r"current\.json: cannot be read"):
        installed.install(folder, release(1), trusted)
    assert used(folder, trusted) == 2


def test_a_stranger_s_or_a_broken_bundle_changes_nothing(folder, release, trusted, tmp_path):
    installed.install(folder, release(1), trusted)
    broken = shutil.copytree(release(2), tmp_path / "broken")
    (broken / "checkpoint.safetensors").unlink()
    for source, keys in (
        (broken, trusted),
        (release(3), frozenset({"ab" * 32})),
        (tmp_path / "nowhere", trusted),
    ):
        with pytest.raises(BundleError):
            installed.install(folder, source, keys)
        assert used(folder, trusted) == 1


def test_without_an_installed_bundle_the_way_to_one_is_told(folder, trusted):
    with pytest.raises(BundleError, match="no bundle is installed"):
        installed.current(folder, trusted)


# --- the zip
# ------------------------------------------------------------------------------------------------


def test_a_zip_is_the_bundle_and_equal_bundles_are_equal_zips(
    tiny_bundle, trusted, tmp_path, folder
):
    bundle.write_zip(tiny_bundle, tmp_path / "one.zip")
    opened = bundle.open_verified(tmp_path / "one.zip", trusted)
    assert (opened.manifest, opened.content) == (tiny_bundle.manifest, tiny_bundle.content)
    bundle.write_zip(opened, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert installed.install(folder, tmp_path / "one.zip", trusted).content == tiny_bundle.content


def rewritten(path: Path, out: Path, change) -> Path:
    """The zip with its entries (name -> bytes) changed."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(out, "w") as archive:
        change(archive, entries)
    return out


def keep(archive, entries, **options):
    for name, data in entries:
        archive.writestr(name, data, **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda archive, entries: keep(archive, [*entries, ("../outside", b"x")]),
            "holds '../outside'",
        ),
        (
            lambda archive, entries: keep(archive, [*entries, ("plan.json", b"x")]),
            "holds 'plan.json'",
        ),
        (
            lambda archive, entries: keep(archive, entries, compress_type=zipfile.ZIP_DEFLATED),
            "is compressed or locked",
        ),
        (
            lambda archive, entries: keep(archive, [e for e in entries if e[0] != "plan.json"]),
            "plan.json: cannot be read",
        ),
        (
            lambda archive, entries: keep(
                archive, [(n, d + b"x" if n == "predict.tflite" else d) for n, d in entries]
            ),
            "predict.tflite: expected",
        ),
        (
            lambda archive, entries: keep(
                archive, [(n, bytes(2_000_000) if n == "manifest.json" else d) for n, d in entries]
            ),
            "manifest.json: expected",
        ),
    ],
    ids=[
        "path out of the folder",
        "a name twice",
        "compressed",
        "a file missing",
        "a file longer",
        "a manifest that fills the memory",
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_is_not_as_we_write_it_is_refused_by_name(
    tiny_bundle, trusted, tmp_path, change, said
):
    bundle.write_zip(tiny_bundle, tmp_path / "whole.zip")
    other = rewritten(tmp_path / "whole.zip", tmp_path / "other.zip", change)
    with pytest.raises(BundleError, match=said):
        bundle.open_verified(other, trusted)


def test_a_zip_cut_anywhere_is_refused(tiny_bundle, trusted, tmp_path):
    bundle.write_zip(tiny_bundle, tmp_path / "whole.zip")
    whole = (tmp_path / "whole.zip").read_bytes()
    for kept in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:kept])
        with pytest.raises(BundleError):
            bundle.open_verified(tmp_path / "cut.zip", trusted)


# --- the golden one
# ------------------------------------------------------------------------------------------------


def test_a_bundle_of_an_earlier_version_still_opens_predicts_and_trains():
    opened = bundle.open_verified(
        GOLDEN / "bundle.zip", frozenset({(GOLDEN / "bundle.pub").read_text().strip()})
    )
    assert (opened.manifest.format, opened.manifest.network, opened.manifest.lineage.corpus) == (
        2,
        "tiny",
        "tiny",
    )
    assert len(Predictor(opened).suggest("i will")) == 3
    rows = np.array([[1, 14, 15, 2, 0, 0, 0]] * opened.plan.batch_size, np.int32)
    trained = Graph(opened.train_graph).run(
        "train", rows=rows, learning_rate=np.float32(0.3), **opened.checkpoint.weights
    )
    assert np.isfinite(trained["loss"])
    assert (trained["embedding"] != opened.checkpoint.weights["embedding"]).any()

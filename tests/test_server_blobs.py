"""Blobs: immutable bytes by their SHA-256."""

import hashlib

import pytest

from device_runtime.errors import RunError
from server.blobs import Blobs


def test_a_blob_is_named_by_its_sha256_and_read_back_whole_or_in_part(tmp_path):
    blobs = Blobs(tmp_path / "new" / "blobs")
    name = blobs.put(b"0123456789")
    assert name == hashlib.sha256(b"0123456789").hexdigest()
    assert (blobs.get(name), blobs.part(name, 2, 5), blobs.part(name, 3, 3), blobs.size(name)) == (b"0123456789", b"234", b"", 10)


def test_putting_a_blob_again_changes_nothing(tmp_path):
    blobs = Blobs(tmp_path)
    assert blobs.put(b"same") == blobs.put(b"same")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"same"]


def test_a_name_that_is_no_sha256_is_no_blob(tmp_path):
    (tmp_path / "secret").write_text("not a blob")
    blobs = Blobs(tmp_path / "blobs")
    assert [blobs.size(name) for name in ("../secret", "", "A" * 64, "0" * 64)] == [None] * 4


def test_a_damaged_or_missing_blob_is_never_handed_out_as_the_right_one(tmp_path):
    blobs = Blobs(tmp_path)
    name = blobs.put(b"checkpoint")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(RunError, match="damaged"):
        blobs.get(name)
    with pytest.raises(RunError, match="missing"):
        blobs.get("0" * 64)


def test_putting_a_blob_mends_a_damaged_one(tmp_path):
    blobs = Blobs(tmp_path)
    name = blobs.put(b"checkpoint")
    (tmp_path / name).write_bytes(b"check")
    assert blobs.get(blobs.put(b"checkpoint")) == b"checkpoint"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be made"):
        Blobs(tmp_path / "file" / "blobs")

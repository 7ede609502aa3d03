"""Blobs: kept by their hash, whole or not at all, in a folder and in a real S3 server."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from device_runtime.errors import RunError
from device_runtime.weights import digest
from server.blobs import Blobs
from tests import s3


@pytest.fixture(scope="module")
def bucket():
    with s3.running() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path, monkeypatch):
    """How to open the blobs anew, and how to spoil one."""
    if request.param == "folder":
        return lambda: Blobs(tmp_path / "blobs"), lambda name, data: (
            tmp_path / "blobs" / name
        ).write_bytes(data)
    url, prefix = request.getfixturevalue("bucket"), tmp_path.name
    for name, value in s3.environment(url).items():
        monkeypatch.setenv(name, value)
    return lambda: Blobs.open(f"s3://fedboard/{prefix}"), lambda name, data: s3.spoil(
        f"{prefix}/{name}", data
    )


def test_a_blob_is_found_by_the_hash_of_its_bytes(place):
    open_blobs, _ = place
    name = open_blobs().put(b"a checkpoint")
    assert name == digest(b"a checkpoint")
    blobs = open_blobs()
    assert (blobs.get(name), blobs.size(name)) == (b"a checkpoint", 12)
    assert [bytes(blobs.part(name, *window)) for window in ((0, 12), (2, 5), (11, 12), (4, 4))] == [
        b"a checkpoint",
        b"che",
        b"t",
        b"",
    ]


def test_the_same_blob_may_be_put_again_by_several_at_once(place):
    open_blobs, _ = place
    data = os.urandom(100_000)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: open_blobs().put(data), range(8))) == {digest(data)}
    assert open_blobs().get(digest(data)) == data


def test_what_is_not_there_has_no_size_and_is_one_clear_line(place):
    open_blobs, _ = place
    blobs = open_blobs()
    assert [blobs.size(name) for name in ("0" * 64, "../server.sqlite", "", "A" * 64)] == [None] * 4
    with pytest.raises(RunError, match="missing; restore"):
        blobs.get("0" * 64)


def test_a_damaged_blob_is_refused_and_mended_by_putting_it_again(place):
    open_blobs, spoil = place
    name = open_blobs().put(b"a checkpoint")
    for torn in (b"a check", b"another one!", b""):
        spoil(name, torn)
        for read in (lambda blobs: blobs.get(name), lambda blobs: blobs.part(name, 0, 3)):
            with pytest.raises(RunError, match="damaged"):
                read(open_blobs())
    open_blobs().put(b"a checkpoint")
    assert open_blobs().get(name) == b"a checkpoint"


def test_a_blob_asked_for_often_is_kept_in_memory_and_an_old_one_let_go(tmp_path):
    blobs = Blobs(tmp_path / "blobs", hot_bytes=250)
    names = [blobs.put(bytes([number]) * 100) for number in range(3)]
    for name in names:
        blobs.get(name)
    for name in names:
        (tmp_path / "blobs" / name).unlink()
    assert [blobs.size(name) for name in names] == [None, 100, 100]
    assert bytes(blobs.part(names[2], 0, 1)) == b"\x02"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        Blobs(tmp_path / "file" / "blobs")


@pytest.mark.parametrize(
    "address", ["s3://nobody-has-this-bucket/x", "http://fedboard", "s3:/fedboard", "s3://"]
)
def test_a_bucket_that_cannot_be_used_is_one_clear_line_without_the_keys(
    bucket, monkeypatch, address
):
    for name, value in s3.environment(bucket).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError) as caught:
        Blobs.open(address)
    assert [
        secret
        for secret in s3.KEYS.values()
        if secret in str(caught.value) and secret != "us-east-1"
    ] == []


def test_without_keys_nobody_is_asked_for_any(monkeypatch):
    for name in (*s3.KEYS, "AWS_METADATA_ENDPOINT", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match="keys are needed"):
        Blobs.open("s3://fedboard/x")


def test_a_store_that_does_not_answer_is_given_up_on_within_seconds(monkeypatch):
    for name, value in s3.environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(RunError, match="cannot keep a blob"):
        Blobs.open("s3://fedboard/x")
    assert time.monotonic() - began < 60  # not the minutes a store's own patience would take

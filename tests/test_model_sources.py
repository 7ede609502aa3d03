"""Sources: what a path stands for, and how it is unpacked."""

import gzip

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import CorpusError
from model.formats import suffix
from model.sources import content, lines, listed, text_blocks


def unpacked(path):
    (source,) = listed([path], suffix)
    return b"".join(content(source, lambda read: None))


def as_stream(data):
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush()


PACKERS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "two gzip members": lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:]),
    "zstandard": zstandard.compress,
    "two zstandard frames": lambda data: (
        zstandard.compress(data[:5]) + zstandard.compress(data[5:])
    ),
    "a stream of zstandard": as_stream,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_what_was_packed_is_unpacked_whatever_its_name(tmp_path, packer):
    data = bytes(range(32, 127)) * 40_000  # longer than a block
    (tmp_path / "a.csv").write_bytes(PACKERS[packer](data))
    assert unpacked(tmp_path / "a.csv") == data


@pytest.mark.parametrize("packer", list(PACKERS)[1:])
def test_what_is_cut_short_is_refused(tmp_path, packer):
    packed = PACKERS[packer](b"hello there, you " * 100)
    (tmp_path / "a.csv").write_bytes(packed[:-3])
    with pytest.raises(CorpusError, match="found one that is cut short or damaged"):
        unpacked(tmp_path / "a.csv")


def test_bytes_read_are_told(tmp_path):
    told = []
    (tmp_path / "a.csv").write_bytes(b"x" * 3_000_000)
    (source,) = listed([tmp_path / "a.csv"], suffix)
    assert len(b"".join(content(source, told.append))) == sum(told) == source.size == 3_000_000


def test_a_folder_stands_for_its_parts_in_order(tmp_path):
    for name in ("part-2.csv.gz", "part-1.csv", "_SUCCESS", ".part-1.csv.crc"):
        (tmp_path / name).write_bytes(b"x")
    assert [each.path.name for each in listed([tmp_path], suffix)] == [
        "part-1.csv",
        "part-2.csv.gz",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "is a folder without a file"),
        (["a.csv", "notes.md"], "found 'notes.md' among them"),
        (["a.csv", "b.jsonl"], "expected parts of one format, found csv, json"),
    ],
)
def test_a_folder_of_other_things_is_refused_by_name(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CorpusError, match=message):
        listed([tmp_path], suffix)


def test_a_file_that_is_not_there_or_comes_twice_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="no such file"):
        listed([tmp_path / "a.csv"], suffix)
    (tmp_path / "a.csv").write_bytes(b"x")
    (tmp_path / "b.csv").symlink_to("a.csv")
    with pytest.raises(CorpusError, match=r"b\.csv: is named twice"):
        listed([tmp_path / "a.csv", tmp_path / "b.csv"], suffix)


@given(st.lists(st.text(st.sampled_from("a\r\n\u2028\x0b\x85"), max_size=4), max_size=6))
def test_lines_are_the_same_in_whatever_blocks_they_come(blocks):
    class Any:
        name = "a"

    text = "".join(blocks)
    assert list(lines(Any, blocks)) == list(lines(Any, [text]))
    assert "".join(lines(Any, blocks)) == text


def test_text_is_decoded_across_blocks(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"")
    (source,) = listed([tmp_path / "a.csv"], suffix)
    data = "caf\u00e9 \U0001f600".encode()
    pieces = [data[i : i + 1] for i in range(len(data))]
    assert "".join(text_blocks(source, iter(pieces))) == "caf\u00e9 \U0001f600"

"""A user's own file: what is kept of it, what a bad one is told, and the directory it becomes."""

import csv
import json
import shutil
from pathlib import Path

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import CorpusError
from model.corpora import load
from model.corpus import Utterance, split_of
from model.directory import open_directory
from model.imported import Dropped, Reading, import_file
from tests.kill_points import every_kill_point

TRAIN, VALIDATION, TEST = "user0", "user26", "user13"  # where their names fall
USERS = (TRAIN, VALIDATION, TEST)
ROWS = [{"user": user, "text": text} for user in USERS for text in ("hello there", f"I am {user}!")]
GOLDEN = Path(__file__).parent / "golden" / "corpus"  # as `import_file` wrote it in format 1


def texts(utterances: list[Utterance]) -> list[str]:
    return [utterance.text for utterance in utterances]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    polars.DataFrame(rows).write_parquet(path)
    return path


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}


@pytest.mark.parametrize("extension", WRITERS)
def test_an_imported_file_is_loaded_as_it_was(tmp_path, extension):
    rows = [
        {"user": user, "text": text, "timestamp": time}
        for user in USERS
        for text, time in (("B \u201cq\u201d, x", 2), ("a\nnewline", 1))
    ]
    report = import_file(WRITERS[extension](tmp_path / f"log{extension}", rows), tmp_path / "out")
    assert (report.rows, report.kept, report.users, report.words, report.dropped) == (
        6,
        6,
        3,
        15,
        (),
    )
    toy = load(tmp_path / "out")
    assert (toy.name, toy.digest) == ("out", report.digest)
    assert toy.test[TEST] == [
        Utterance("a\nnewline", ("a", "newline"), 1.0),
        Utterance("B \u201cq\u201d, x", ("b", "<sym>", "q", "<sym>", ",", "x"), 2.0),
    ]


def test_columns_are_named_by_options_and_numbers_can_be_users(tmp_path):
    path = write_jsonl(
        tmp_path / "log.jsonl", [{"who": i, "said": "hello", "at": "2020-01-01"} for i in range(60)]
    )
    reading = Reading(user="who", text="said", timestamp="at")
    assert import_file(path, tmp_path / "out", reading).users == 60
    toy = load(tmp_path / "out")
    assert toy.split(split_of("7"))["7"] == [Utterance("hello", ("hello",), 1_577_836_800.0)]


def test_what_is_dropped_is_counted_by_reason_with_its_first_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    good = "".join(json.dumps(row) + "\n" for row in ROWS)  # lines 1 to 6
    bad = [
        "not json",
        "[1]",
        '{"user": "", "text": "hi"}',
        '{"text": "hi"}',
        '{"user": "x", "text": null}',
        '{"user": "x", "text": "\\ud800"}',
        '{"user": "x", "text": "42"}',
        '{"user": "x", "text": "hi", "timestamp": "soon"}',
        '{"user": "x", "text": "hi", "timestamp": NaN}',
        "",
    ]
    path.write_text(good + "\n".join(bad))
    report = import_file(path, tmp_path / "out", Reading(allow_damage=True))
    assert (report.rows, report.kept) == (15, 7)
    place = f"{path}:{{}}".format
    time = "ISO 8601 or an epoch"
    assert set(report.dropped) == {
        Dropped("no user", 2, False, "", "", (place(9), place(10))),
        Dropped("no text", 1, False, "", "", (place(11),)),
        Dropped("no word", 1, False, "", "", (place(13),)),
        Dropped("bad row", 1, True, "a JSON object", "no JSON", (place(7),)),
        Dropped("bad row", 1, True, "a JSON object", "a list", (place(8),)),
        Dropped("bad row", 1, True, "Unicode text", "half a surrogate pair", (place(12),)),
        Dropped("unreadable timestamp", 1, True, time, "text", (place(14),)),
    }
    assert load(tmp_path / "out").dropped == {
        "bad row": 3,
        "no user": 2,
        "no text": 1,
        "no word": 1,
        "unreadable timestamp": 1,
    }


def test_more_than_one_damaged_row_in_a_hundred_must_be_allowed(tmp_path):
    path = write_jsonl(tmp_path / "log.jsonl", ROWS * 33)  # 198 rows
    for damaged in (2, 3):
        with open(path, "a") as file:
            file.write("{\n" * (damaged - (damaged == 3) * 2))
        if damaged == 2:
            assert import_file(path, tmp_path / "out").kept == 198
    with pytest.raises(CorpusError, match=r"found 3 of 201: bad row 3 \(first in .*log\.jsonl:199"):
        import_file(path, tmp_path / "out")
    assert import_file(path, tmp_path / "out", Reading(allow_damage=True)).kept == 198


def test_a_csv_row_with_too_many_fields_is_dropped_and_the_next_is_read(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user,text\n"
        + "".join(f"{user},hello\n" for user in USERS)
        + "x,one, two\n"
        + f'{TEST},"one, two"\n'
    )
    report = import_file(path, tmp_path / "out", Reading(allow_damage=True))
    assert report.dropped == (Dropped("bad row", 1, True, "2 fields", "3", (f"{path}:5",)),)
    assert texts(load(tmp_path / "out").test[TEST]) == ["hello", "one, two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.jsonl", b"", r"log\.jsonl: the file has no rows"),
        ("log.csv", b"", r"log\.csv: the file has no rows"),
        ("log.csv", b"user,text\n", r"log\.csv: the file has no rows"),
        (
            "log.csv",
            b"name,text\nx,hello\n",
            r"log\.csv:1: no column 'user', found name, text; name your columns",
        ),
        (
            "log.csv",
            b"user,text\nx,ok\ny,caf\xe9\n",
            r"log\.csv:3: expected UTF-8 text, found the byte 0xe9; name its encoding",
        ),
        (
            "log.jsonl",
            b'{"name": "x", "text": "hello"}\n',
            r"log\.jsonl: no column 'user', found name, text; name your columns",
        ),
        (
            "log.jsonl",
            b"hello\n\x00\n",
            r"none of 2 rows can be used: bad row 2 \(first in .*log\.jsonl:1: expected",
        ),
        ("log.jsonl", b'{"user": "x", "text": "hello"}\n', r"1 user, none of whom falls into"),
        ("log.parquet", b"PAR1 no", r"log\.parquet: expected a Parquet file, found one that"),
        (
            "log.txt",
            b"hello",
            r"log\.txt: expected a chat that WhatsApp exported, found other text",
        ),
    ],
)
def test_a_bad_file_gets_one_clear_line_and_leaves_nothing_behind(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as raised:
        import_file(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"missing\.csv: no such file"):
        import_file(tmp_path / "missing.csv", tmp_path / "out")


def test_a_named_timestamp_column_must_be_there(tmp_path):
    with pytest.raises(CorpusError, match="no column 'at'"):
        import_file(
            write_csv(tmp_path / "log.csv", ROWS), tmp_path / "out", Reading(timestamp="at")
        )


def test_a_folder_of_other_things_is_not_overwritten_but_an_older_import_is(tmp_path):
    path, out = write_jsonl(tmp_path / "log.jsonl", ROWS), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(CorpusError, match="holds files that are not a corpus"):
        import_file(path, out)
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    first = import_file(path, out)
    second = import_file(write_jsonl(path, [*ROWS, {"user": TRAIN, "text": "more"}]), out)
    assert load(out).digest == second.digest != first.digest
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.jsonl", "out"]


def test_an_import_that_fails_leaves_the_older_one(tmp_path):
    out = tmp_path / "out"
    report = import_file(write_jsonl(tmp_path / "log.jsonl", ROWS), out)
    (tmp_path / "log.jsonl").write_text("broken")
    with pytest.raises(CorpusError, match="none of 1 rows"):
        import_file(tmp_path / "log.jsonl", out)
    assert load(out).digest == report.digest


def test_an_altered_directory_is_refused(tmp_path):
    out = tmp_path / "out"
    import_file(write_jsonl(tmp_path / "log.jsonl", ROWS), out)
    with open(out / "corpus.jsonl", "a") as file:
        file.write('{"user": "x", "text": "slipped in"}\n')
    with pytest.raises(
        CorpusError, match=r"corpus\.jsonl: its SHA-256 is not the one in corpus\.json"
    ):
        load(out)
    (out / "corpus.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"corpus\.jsonl: cannot be read"):
        load(out)
    (out / "corpus.json").write_text("{}")
    with pytest.raises(CorpusError, match="not a corpus directory"):
        load(out)


CELLS = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(USERS),
)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.dictionaries(st.sampled_from(["user", "text", "timestamp", "x"]), CELLS),
        ),
        max_size=12,
    )
)
def test_any_jsonl_file_is_imported_or_refused_by_name(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "log.jsonl").write_bytes(b"\n".join(lines))
    try:
        report = import_file(folder / "log.jsonl", folder / "out", Reading(allow_damage=True))
    except CorpusError as error:
        assert "\n" not in str(error)
        assert not (folder / "out").exists()
    else:
        assert report.rows == report.kept + sum(drop.rows for drop in report.dropped)
        assert load(folder / "out").digest == report.digest


def test_a_directory_of_an_earlier_version_still_opens():
    corpus = open_directory(GOLDEN)
    assert corpus.digest == "8273ed5c443b01f459c0bbe274b8028b9c99f2963b0d36711da40f5e555ac166"
    assert corpus.dropped == {"no word": 3, "no user": 1}
    cafe = Utterance("see you at caf\u00e9 7", ("see", "you", "at", "caf\u00e9", "<num>"), 3.0)
    for split, user in zip(("train", "validation", "test"), USERS, strict=True):
        hello = Utterance(f"Hello, {user}!", ("hello", ",", user, "!"), 9.0)
        assert corpus.split(split) == {user: [cafe, hello]}


def test_a_directory_of_another_format_is_refused_with_the_way_out(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "later")
    manifest = tmp_path / "later" / "corpus.json"
    manifest.write_text(manifest.read_text().replace("corpus-1", "corpus-9"))
    with pytest.raises(
        CorpusError,
        match=r"expected format fedboard-corpus-1, \S+ or fedboard-corpus-3, found .*import the",
    ):
        open_directory(tmp_path / "later")


def test_an_import_killed_at_any_step_leaves_the_old_corpus_or_the_new_one(tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    write_jsonl(old, ROWS)
    write_jsonl(new, [{**row, "text": "entirely new words"} for row in ROWS])
    script = f"""
from model import imported

def work(folder):
    imported.import_file({str(new)!r}, folder)
"""
    digests = {
        name: import_file(path, tmp_path / name).digest
        for name, path in (("an old one", old), ("a new one", new))
    }
    seen = set()

    def prepare(place):
        import_file(old, place)
        (place / "notes.md").write_text("mine")

    def check(place):
        seen.add(load(place).digest)
        assert sorted(path.name for path in place.iterdir()) == [
            "corpus.json",
            "corpus.jsonl",
            "notes.md",
            "users.jsonl",
        ]

    assert every_kill_point(script, tmp_path / "place", prepare, check) > 10
    assert seen == set(digests.values())


EVERYBODY = [{"user": f"u{i}", "text": f"hello number {i}"} for i in range(60)]


def test_one_unclosed_quote_loses_nobodys_messages(tmp_path):
    path = write_csv(tmp_path / "log.csv", EVERYBODY * 12)
    lines = path.read_text().splitlines(keepends=True)
    lines[200] = lines[200].replace(",", ',"')
    path.write_text("".join(lines))
    with pytest.raises(CorpusError, match=r"log\.csv:201: .*quote"):
        import_file(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_files_of_any_format_are_one_corpus(tmp_path):
    paths = [
        write_csv(tmp_path / "a.csv", EVERYBODY),
        write_jsonl(tmp_path / "b.jsonl", EVERYBODY),
        write_parquet(tmp_path / "messages[1].parquet", EVERYBODY),
    ]
    write_parquet(tmp_path / "messages1.parquet", [{"user": "other", "text": "no"}])
    report = import_file(paths, tmp_path / "out")
    assert (report.rows, report.users) == (180, 60)


def test_how_files_were_read_is_said_and_kept(tmp_path):
    rows = [{**row, "timestamp": 1_614_592_800_000 + i} for i, row in enumerate(EVERYBODY)]
    rows[3]["timestamp"] = None
    rows[4]["text"] = "From: a\nSubject: b\n\nhello"
    report = import_file(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out")
    assert report.notes == (
        "59 times read as milliseconds",
        "messages without a time: 1",
        "messages that mail headers were cut off: 1",
    )
    untimed = import_file(tmp_path / "a.jsonl", tmp_path / "out", Reading(no_timestamp=True))
    assert (untimed.kept, len(untimed.notes)) == (60, 1)


def test_a_source_in_the_folder_to_be_written_is_not_touched(tmp_path):
    out = tmp_path / "out"
    import_file(write_jsonl(tmp_path / "log.jsonl", EVERYBODY), out)
    (out / "raw").mkdir()
    path = write_csv(out / "raw" / "base.csv", EVERYBODY)
    before = path.read_bytes()
    with pytest.raises(CorpusError, match=r"base\.csv: is to be read, but lies in the folder"):
        import_file(path, out)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": "ab"}, "--delimiter: expected one character"),
        ({"delimiter": '"'}, "--delimiter: expected one character"),
        ({"encoding": "rot13"}, "--encoding: expected the name of an encoding"),
        ({"format": "xml"}, "--format: expected one of csv, json"),
        ({"timestamp_format": "%Q"}, "--timestamp-format: expected a format"),
        ({"timestamp": "at", "no_timestamp": True}, "--no-timestamp: expected no other"),
        ({"user": "text"}, "expected three columns, found one twice"),
    ],
)
def test_options_are_checked_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(CorpusError, match=message):
        import_file(tmp_path / "none.csv", tmp_path / "out", Reading(**options))


MARKS = st.sampled_from(
    [b"{", b"[", b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"user,text\n", b"[1/2/23, 1:00] a: b\n",
     b'{"user": 1, "text": "x"}', b'{"messages": [', b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd",
     b"\xef\xbb\xbf", b"\xff\xfe", b"1/2/23, 1:00 - "]
)  # fmt: skip


@given(
    st.lists(MARKS | st.binary(max_size=6), max_size=10),
    st.sampled_from(["a.csv", "a.json", "a.jsonl", "a.txt", "a", "a.parquet"]),
)
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, pieces, name):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / name).write_bytes(b"".join(pieces))
    with pytest.raises(CorpusError) as raised:  # too few users at the least
        import_file(folder / name, folder / "out", Reading(allow_damage=True))
    assert "\n" not in str(raised.value)
    assert [path.name for path in folder.iterdir()] == [name]

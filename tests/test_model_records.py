"""Records: tables come back as they were written, and damage stays where it is."""

import csv
import io
import json
import re

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import CorpusError
from model.fields import Reader
from model.formats import Choice, records, suffix
from model.records import Columns, Damage, Record
from model.sources import listed

HEADER = "user,text,timestamp\n"


def read(path, **choice):
    """All that is in a file."""
    (source,) = listed([path], suffix)
    return list(records(source, Choice(**choice), lambda read: None))


def read_text(folder, name, text, **choice):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read(path, **choice)


def values(rows):
    return [row[1:] for row in rows if isinstance(row, Record)]


def damage(rows):
    return [row[0::2] for row in rows if isinstance(row, Damage)]  # line and what was expected


# text that a file can hold; a field that begins with a quote or holds line ends is quoted
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
MARKED = st.text(st.sampled_from('ab",;\t\r\n '), max_size=8)
ROWS = st.lists(st.tuples(CELLS | MARKED, CELLS | MARKED, MARKED), max_size=8)


@given(
    ROWS,
    st.sampled_from(",;\t"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_csv_writers_write_comes_back(tmp_path_factory, rows, delimiter, quoting, end):
    file = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if end == "\r" else quoting  # else Python's does not quote line feeds
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("user", "text", "timestamp"), *rows])
    try:
        read_rows = read_text(tmp_path_factory.mktemp("csv"), "a.csv", file.getvalue())
    except CorpusError as error:  # a message may look like rows, and is then no message
        assert "looks like a row" in str(error)
    else:
        # a return that ends an unquoted field belongs to the line's end
        assert [(*row[:2], row[2].rstrip("\r")) for row in values(read_rows)] == [
            (*row[:2], row[2].rstrip("\r")) for row in rows
        ]


@given(ROWS, st.booleans(), st.sampled_from([None, 2]))
def test_json_comes_back_as_lines_and_as_one_list(tmp_path_factory, rows, lines, indent):
    objects = [dict(zip(("user", "text", "timestamp"), row, strict=True)) for row in rows]
    text = "\n".join(map(json.dumps, objects)) if lines else json.dumps(objects, indent=indent)
    assert values(read_text(tmp_path_factory.mktemp("json"), "a.json", text)) == rows


@given(ROWS.filter(bool))
def test_parquet_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("parquet") / "a[1].parquet"
    polars.DataFrame(rows, ["user", "text", "timestamp"], orient="row").write_parquet(path)
    assert values(read(path)) == rows


PLAIN = st.text(st.sampled_from("abc ,'"), min_size=1, max_size=8)


@given(
    st.lists(PLAIN, min_size=6, max_size=40),
    st.integers(0, 2000),
    st.sampled_from(['"', ",", "\n", "x", ""]),
    st.booleans(),
    st.booleans(),
)
def test_one_wrong_character_in_a_csv_is_an_error_or_changes_no_other_row(
    tmp_path_factory, texts, place, instead, insert, quote_all
):
    file = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    rows = [(f"u{i % 3}", text, str(1_600_000_000 + i)) for i, text in enumerate(texts)]
    csv.writer(file, quoting=quoting, lineterminator="\n").writerows(rows)
    text = file.getvalue()
    place %= len(text)
    wrong = text[:place] + instead + text[place + (not insert) :]
    try:
        read_rows = read_text(tmp_path_factory.mktemp("flip"), "a.csv", HEADER + wrong)
    except CorpusError as error:
        assert re.search(r"a\.csv:\d+: ", str(error))
        return
    missing = set(rows) - set(values(read_rows))
    # a line's end that is gone makes one row of two, and is told; a row changed alone is one row
    assert len(missing) <= 1 or (len(missing) == 2 and damage(read_rows))


@given(st.lists(PLAIN, min_size=3, max_size=20), st.integers(0, 1000))
def test_a_csv_that_ends_early_has_the_rows_before(tmp_path_factory, texts, place):
    file = io.StringIO(newline="")
    rows = [(f"u{i % 3}", text, "1600000000") for i, text in enumerate(texts)]
    csv.writer(file, lineterminator="\n").writerows(rows)
    text = file.getvalue()[: place % len(file.getvalue())]
    whole = text.count("\n")
    assert (
        values(read_text(tmp_path_factory.mktemp("cut"), "a.csv", HEADER + text))[:whole]
        == rows[:whole]
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("a,hi\n", (2, "3 fields")),
        ("a,hi,1,2\n", (2, "3 fields")),
        ('a,"hi" you,1\n', (2, "a delimiter or a line's end after a closing quote")),
        ("a,h\0i,1\n", (2, "text")),
        ('b,x,1\na,"hi', (3, "a delimiter or a line's end after a closing quote")),
    ],
)
def test_a_damaged_row_is_dropped_alone(tmp_path, rows, expected):
    text = HEADER + rows + "" * rows.endswith("\n")
    after = 'b,five feet 6",2\n' if rows.endswith("\n") else ""
    read_rows = read_text(tmp_path, "a.csv", text + after)
    assert damage(read_rows) == [expected]
    if after:
        assert values(read_rows)[-1] == ("b", 'five feet 6"', "2")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('a,"hi,1\nb,yo,2\nc,you,3\n', 2),  # never closed
        ('b,x,1\n"a","hi,1\n"b","yo",2\n', 3),  # closed by the next row's
        ('b,"x\ny",1\na,"hi,1\nb,yo,2\nc,"you, too",3\n', 4),  # by a later one's
        ('b,x,1\na,"hi,1\nb,yo",2\nc,you,3\n', 3),  # by a stray one: b is known
        ('a,"hi,1\nb,yo,2\nc,",you",3\n', 2),  # by one before a delimiter
        ('b,x,1\na,"hi,1\nb,yo,2\nc,you", 3\n', 3),  # among rows of which one is surely one
    ],
)
def test_a_quote_whose_end_cannot_be_told_stops_at_its_line(tmp_path, rows, line):
    with pytest.raises(CorpusError, match=rf"a\.csv:{line}: .*quote"):
        read_text(tmp_path, "a.csv", HEADER + rows)


def test_a_message_may_call_people_by_name_on_a_line_of_its_own(tmp_path):
    text = 'user,text\nann,hi\nbob,"well\nann, come here\nann,really"\nbob,"ann, come"\n'
    assert len(values(read_text(tmp_path, "a.csv", text))) == 3
    with pytest.raises(CorpusError, match=r"a\.csv:3: .* takes in line 4"):
        read_text(tmp_path, "a.csv", 'user,text\nann,hi\nbob,"well\nann,come here\nann,yes"\n')


def test_a_long_message_with_line_ends_is_one_row(tmp_path):
    message = "well, you see: it is so\n" * 9000
    rows = read_text(tmp_path, "a.csv", f'{HEADER}a,"{message}",1\nb,hi,2\n')
    assert values(rows) == [("a", message, "1"), ("b", "hi", "2")]
    assert rows[1].line == 9003


@pytest.mark.parametrize(
    ("name", "text", "choice", "message"),
    [
        ("a.csv", "user;text\na;b\n", {"delimiter": ","}, "it looks like ; between columns"),
        ("a.csv", "user|text\na|b\n", {}, "it looks like | between columns"),
        ("a.csv", "user,text,text\na,b,c\n", {}, "two columns are named 'text'"),
        ("a.csv", "u1,my secret plan!,5\n", {}, "a.csv:1: expected the names of the columns"),
        ("a.csv", '{"user": 1, "text": "b"}\n', {}, "expected CSV, found JSON"),
        ("a.jsonl", '{\n  "user": 1,\n  "text": "b"\n}\n', {}, "found an object over several"),
        ("a.json", '[{"user": 1}, {"user": 2', {}, "a.json:1: expected the end of the value"),
        ("a.json", '[{"user": 1, "text": "x}, {"user": 2, "text": "b"}]', {}, "a.json:1: "),
        ("a.json", '[{"user": 1, "text": "x\n"}]', {}, "a.json:1: expected a closing quote"),
        ("a.json", '[{"user": 1, "text": "x"} {}]', {}, "expected , or ], found {"),
        ("a.csv", b"PK\x03\x04zip", {}, "found a zip archive or a spreadsheet"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00cut", {}, "expected a whole gzip file"),
        ("a.csv", b"\x28\xb5\x2f\xfdcut", {}, "expected a whole Zstandard file"),
        ("a.csv", "user,text\na,b\n".encode("utf-16-le"), {}, "name --encoding utf-16-le"),
        ("a.csv", "user,text\na,b\n".encode("utf-16")[:-1], {}, "expected UTF-16 text"),
        ("a.parquet", "user,text\na,b\n", {}, "expected a Parquet file, found other content"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_one_error(tmp_path, name, text, choice, message):
    with pytest.raises(CorpusError) as raised:
        read_text(tmp_path, name, text, **choice)
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "choice"),
    [
        ("a.csv", "\ufeffuser,text\r\n1,h\u00e9\r\n", {}),
        ("a.csv", '"user" ; text \n1;h\u00e9\n\n  \n', {}),
        ("a.csv", "sep=;\nuser;text\n1;h\u00e9", {}),
        ("a.tsv", "user\ttext\n1\th\u00e9\n", {}),
        ("a.csv", "user|text\n1|h\u00e9\n", {"delimiter": "|"}),
        ("a.csv", "user,text\n1,h\u00e9\n".encode("utf-16"), {}),
        ("a.csv", b"\xfe\xff" + "user,text\n1,h\u00e9\n".encode("utf-16-be"), {}),
        ("a.csv", "user,text\n1,h\u00e9\n".encode("latin-1"), {"encoding": "latin-1"}),
        ("a", 'user,text\n"1","h\u00e9"', {}),
        ("a.jsonl", '\ufeff{"user": "1", "text": "h\u00e9"}\r\n\r\n', {}),
        ("a.json", '[\n{"user": "1", "text": "h\\u00e9"}\n]\n', {}),
        ("a.txt", "user,text\n1,h\u00e9\n", {"format": "csv"}),
    ],
)
def test_a_table_is_read_however_it_is_written(tmp_path, name, text, choice):
    assert values(read_text(tmp_path, name, text, **choice)) == [("1", "h\u00e9", None)]


def test_a_bad_byte_is_told_with_its_line_wherever_it_lies(tmp_path):
    text = b"user,text\r\n" + b"1,hello\r\n" * 300_000 + b"1,caf\xe9\r\n"
    with pytest.raises(CorpusError, match=r"a\.csv:300002: expected UTF-8 .* 0xe9"):
        read_text(tmp_path, "a.csv", text)


def test_a_damaged_object_is_dropped_alone(tmp_path):
    good = '{"user": 1, "text": "b"}'
    bad = ['{"user": 1, "user": 2}', "[1]", '{"user": 1,}', "7", '{"a":' * 9999 + "1" + "}" * 9999]
    lines = read_text(tmp_path, "a.jsonl", "\n".join([good, *bad, '{"user": "x', good]))
    assert [line for line, _ in damage(lines)] == [2, 3, 4, 5, 6, 7]
    as_list = read_text(tmp_path, "b.json", "[" + ",\n".join([good, *bad, good]) + "]")
    assert [line for line, _ in damage(as_list)] == [2, 3, 4, 5, 6]
    assert len(values(lines)) == len(values(as_list)) == 2


def test_columns_may_have_any_name(tmp_path):
    rows = read_text(
        tmp_path, "a.csv", "who,said,at\n1,b,2\n", columns=Columns("who", "said", "at")
    )
    assert values(rows) == [("1", "b", "2")]


@pytest.mark.parametrize("first", ['"0,a,1600000000', 'u0,"a,1600000000', 'u0,a,"1600000000'])
def test_a_quote_in_the_first_row_takes_no_later_one_in(tmp_path, first):
    rest = [f"u{i},b,160000000{i}" for i in range(1, 6)]
    text = "\n".join(["user,text,timestamp", first, *rest, 'u6,",c",1600000006', ""])
    with pytest.raises(CorpusError, match=r"a\.csv:2: a quote opens here"):
        read_text(tmp_path, "a.csv", text)


def test_carriage_returns_beside_nul_bytes_are_damage_and_no_fault(tmp_path):
    rows = read_text(tmp_path, "a.csv", 'user,text\nann,"one\0\nann,x\r\r\0y\rz\n"\nben,hello\n')
    assert values(rows)[-1:] == [("ben", "hello", None)] and len(damage(rows)) == 1
    with pytest.raises(CorpusError, match=r"a\.csv:1: "):
        read_text(tmp_path, "a.csv", "user,te\rxt\0\nann,hello\n")


def test_a_header_and_a_mark_in_the_middle_are_of_a_file_put_behind_another(tmp_path):
    text = '\ufeffuser,text\na,b\n\ufeffuser,text\nc,d\n\ufeff"e","f, g"\n'
    rows = read_text(tmp_path, "a.csv", text)
    assert values(rows) == [("a", "b", None), ("c", "d", None), ("e", "f, g", None)]


def test_excels_word_on_the_delimiter_may_be_quoted(tmp_path):
    rows = read_text(tmp_path, "a.csv", '"sep=|"\r\nuser|text\r\na|b, c\r\n')
    assert values(rows) == [("a", "b, c", None)]


def test_an_open_quote_before_another_person_swallows_none_of_their_messages(tmp_path):
    rows = 'a,hi,1614592800\na,"open,1614592801\nb,x,1614592802\nb,it is 50",1614592803\n'
    with pytest.raises(CorpusError, match=r"a.csv:3: a quote opens here that takes in line 4"):
        read_text(tmp_path, "a.csv", HEADER + rows)


@pytest.mark.parametrize("kind", [polars.Datetime("ms"), polars.Datetime("ms", "UTC"), polars.Date])
def test_a_date_of_parquet_beyond_all_calendars_is_one_damaged_time(tmp_path, kind):
    days = polars.Series([2**30, 18687, None], dtype=polars.Int64)
    unit = 1 if kind == polars.Date else 86_400_000
    times = (days * unit).cast(polars.Int32 if unit == 1 else polars.Int64).cast(kind)
    table = polars.DataFrame({"user": [1, 2, 3], "text": ["a", "b", "c"], "timestamp": times})
    table.write_parquet(tmp_path / "a.parquet")
    messages = [Reader().message(row) for row in read(tmp_path / "a.parquet")]
    assert messages[0][1] == "unreadable timestamp"
    assert messages[1:] == [("2", "b", 1614556800.0), ("3", "c", None)]


@pytest.mark.parametrize("column", [{"0": "a", "1": "b"}, ["a", "b"]])
def test_an_object_of_whole_columns_is_told_how_to_be_written(tmp_path, column):
    text = json.dumps({"user": column, "text": column})
    with pytest.raises(CorpusError, match=r"a.json:1: expected an object a message.*'records'"):
        read_text(tmp_path, "a.json", text)


@pytest.mark.parametrize("blank", ["\u2028", "\x0b", "\u00a0"])
def test_a_blank_that_json_has_not_is_damage_of_its_own(tmp_path, blank):
    text = f'[{{"user":"a","text":"b"}},{blank},{{"user":"c","text":"d"}}]'
    rows = read_text(tmp_path, "a.json", text)
    assert values(rows) == [("a", "b", None), ("c", "d", None)]
    assert damage(rows) == [(1, "a JSON object")]

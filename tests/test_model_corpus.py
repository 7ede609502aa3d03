"""Corpora: what is kept, for whom, and what a bad file is told."""

import contextlib
import csv
import itertools
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import CorpusError
from model.corpus import (
    SPLITS,
    LazyUsers,
    Utterance,
    cleaned,
    import_file,
    load,
    only,
    prepare,
    sample,
    seconds,
    split_of,
    stats,
    token_lists,
)
from model.vocabulary import build

TRAIN, VALIDATION, TEST = "user0", "user26", "user13"  # where their names fall
USERS = (TRAIN, VALIDATION, TEST)
ROWS = [{"user": user, "text": text} for user in USERS for text in ("hello there", f"I am {user}!")]


def corpus(*rows):
    """Three users who say hello, and these rows."""
    return prepare("toy", "0" * 64, [*((user, "hello", None) for user in USERS), *rows])


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


# --- preparation ---


@pytest.fixture(scope="module")
def chitchat():
    return load("chitchat")


def test_chitchat_has_the_figures_of_the_protocol(chitchat):
    found = stats(chitchat)
    assert (found.total.users, found.train.users, found.validation.users, found.test.users) == (
        1314,
        933,
        137,
        244,
    )
    assert (found.total.utterances, found.total.words) == (255_966, 2_450_432)
    assert (found.train.words, found.validation.words, found.test.words) == (
        1_725_976,
        222_230,
        502_226,
    )
    assert found.dropped == {"no word": 912, "mashing": 1155, "verbatim in train": 112}
    assert (found.median_utterances, round(found.largest_ten, 3)) == (17, 0.421)
    vocabulary = build(token_lists(chitchat.train))
    targets = [
        i
        for utterances in chitchat.test.values()
        for u in utterances[-200:]
        for i, t in zip(vocabulary.ids(u.tokens), u.tokens, strict=True)
        if t[0].isalnum()
    ]
    assert len(targets) == 120_464
    assert round(targets.count(3) / len(targets), 3) == 0.026


def test_chitchat_users_speak_in_time_order(chitchat):
    for utterances in chitchat.test.values():
        times = [utterance.time for utterance in utterances]
        assert times == sorted(times)


def test_users_fall_into_splits_by_name():
    assert [split_of(user) for user in USERS] == list(SPLITS)
    found = [split_of(f"user{i}") for i in range(2000)]
    assert 0.17 < found.count("test") / 2000 < 0.23
    assert 0.08 < found.count("validation") / 2000 < 0.12


def test_utterances_without_a_word_and_mashing_are_dropped():
    found = corpus(
        (TRAIN, "123 !!", None),
        (TRAIN, "ha ha ha ha ha ha", None),
        (TRAIN, "ha ha ha ha ha", None),
        (TRAIN, "a b a b a b", None),
    )
    assert texts(found.train[TRAIN]) == ["hello", "ha ha ha ha ha"]
    assert found.dropped == {"no word": 1, "mashing": 2, "verbatim in train": 0}


def test_long_utterances_of_train_are_dropped_elsewhere_short_ones_stay():
    long, short = "one two three four five six seven eight", "one two three four five six seven"
    found = corpus(*((user, text, None) for user in USERS for text in (long, long.upper(), short)))
    assert texts(found.train[TRAIN]) == ["hello", long, long.upper(), short]
    assert texts(found.validation[VALIDATION]) == texts(found.test[TEST]) == ["hello", short]
    assert found.dropped["verbatim in train"] == 4


def test_utterances_are_in_time_order_and_equal_times_keep_theirs():
    found = prepare(
        "toy",
        "",
        [
            (user, text, time)
            for user in USERS
            for text, time in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 3.0))
        ],
    )
    assert texts(found.test[TEST]) == ["a", "b", "c", "d"]


def test_without_a_time_for_every_utterance_the_order_given_stands():
    assert texts(corpus((TEST, "later", 9.0), (TEST, "sooner", 1.0)).test[TEST]) == [
        "hello",
        "later",
        "sooner",
    ]


def test_users_come_in_alphabetical_order_whatever_the_order_of_rows():
    rows = [(f"user{i}", "hello", None) for i in range(40)]
    forward, backward = prepare("toy", "", rows), prepare("toy", "", rows[::-1])
    assert forward == backward
    assert list(forward.train) == sorted(forward.train)


def test_too_few_users_to_split_are_counted_and_told_how_many_are_needed():
    with pytest.raises(
        CorpusError,
        match=r"^toy: 1 user, none of whom falls into validation or test; give at least 3 users",
    ):
        prepare("toy", "", [(TRAIN, "hello", None)])
    with pytest.raises(CorpusError, match="no utterance is left after cleaning"):
        prepare("toy", "", [(TRAIN, "123", None)])


def test_stats_count_users_words_and_the_share_of_the_largest():
    found = stats(corpus((TRAIN, "hello again, 3 times", None)))
    assert (found.total.users, found.total.utterances, found.total.words) == (3, 4, 6)
    assert (
        found.train.words,
        found.median_words,
        found.median_utterances,
        found.distinct_words,
        found.largest_ten,
    ) == (4, 1, 1, 3, 1)


def test_an_unknown_split_is_refused():
    with pytest.raises(
        CorpusError, match="expected a split, one of train, validation, test, found 'dev'"
    ):
        corpus().split("dev")


# --- users read when they are asked for ---


def lazy(names, keep=0):
    """Users who say their name, and the list of those who were read."""
    read = []

    def say(name):
        read.append(name)
        return cleaned([(name, None)])

    return LazyUsers(names, say, keep), read


def test_naming_counting_and_finding_users_reads_nobody():
    users, read = lazy(["ann", "bob", "cid"])
    assert (len(users), list(users), "bob" in users, "dan" in users, users.get("dan")) == (
        3,
        ["ann", "bob", "cid"],
        True,
        False,
        None,
    )
    assert list(sample(users, 2)) == ["ann", "bob"]
    assert read == []


def test_a_loop_over_users_reads_them_one_by_one():
    users, read = lazy(["ann", "bob", "cid"])
    assert next(iter(users.items())) == ("ann", (Utterance("ann", ("ann",)),))
    assert read == ["ann"]
    assert list(itertools.islice(token_lists(users), 2)) == [("ann",), ("bob",)]
    assert read == ["ann", "ann", "bob"]


def test_the_users_asked_for_last_are_remembered():
    users, read = lazy(["ann", "bob", "cid"], keep=2)
    for name in ("ann", "bob", "ann", "cid", "ann", "bob"):
        assert texts(users[name]) == [name]
    assert read == ["ann", "bob", "cid", "bob"]


def test_an_unknown_user_is_a_key_error_and_is_not_looked_for():
    users, read = lazy(["ann"])
    with pytest.raises(KeyError):
        users["bob"]
    assert read == []


def test_users_narrowed_by_name_share_what_is_remembered():
    users, read = lazy(["ann", "bob", "cid"], keep=2)
    some = only(users, ["cid", "ann"])
    assert (list(some), texts(some["ann"]), texts(users["ann"]), "bob" in some) == (
        ["cid", "ann"],
        ["ann"],
        ["ann"],
        False,
    )
    assert read == ["ann"]


def test_vocabulary_and_stats_of_a_large_corpus_read_a_few_users_of_each_split():
    users, read = lazy([f"user{i}" for i in range(9)])
    found = replace(corpus(), train=users, validation=users, test=users, dropped=None, most=2)
    counted = stats(found)
    assert read == ["user0", "user4"] * 3
    assert (counted.users, counted.most) == ({"train": 9, "validation": 9, "test": 9}, 2)
    assert (counted.train.users, counted.total.words, counted.distinct_words, counted.dropped) == (
        2,
        6,
        2,
        None,
    )
    assert list(token_lists(users, most=3)) == [("user0",), ("user3",), ("user6",)]


def test_users_of_whom_cleaning_leaves_nothing_do_not_count_in_stats():
    silent, _ = lazy(["1", "2"])
    assert stats(replace(corpus(), test=silent)).test.users == 0
    with pytest.raises(CorpusError, match=r"^toy: no utterance is left after cleaning"):
        stats(replace(corpus(), train=silent, validation=silent, test=silent))


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_sample_is_spread_evenly_and_never_larger_than_asked(users, most):
    found = [int(name) for name in sample({f"{i:02d}": [] for i in range(users)}, most)]
    even = {users // len(found), -(-users // len(found))}
    assert (len(found), found[0]) == (min(users, most), 0)
    assert {later - earlier for earlier, later in itertools.pairwise([*found, users])} <= even


def test_a_sample_of_everybody_is_the_users_themselves():
    users = corpus().train
    assert sample(users, None) is sample(users, 1) is users


# --- importing ---


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
    found = load(tmp_path / "out")
    assert (found.name, found.digest) == ("out", report.digest)
    assert found.test[TEST] == [
        Utterance("a\nnewline", ("a", "newline"), 1.0),
        Utterance("B \u201cq\u201d, x", ("b", "<sym>", "q", "<sym>", ",", "x"), 2.0),
    ]


def test_columns_are_named_by_options_and_numbers_can_be_users(tmp_path):
    path = write_jsonl(
        tmp_path / "log.jsonl", [{"who": i, "said": "hello", "at": "2020-01-01"} for i in range(60)]
    )
    assert import_file(path, tmp_path / "out", user="who", text="said", timestamp="at").users == 60
    found = load(tmp_path / "out")
    assert found.split(split_of("7"))["7"] == [Utterance("hello", ("hello",), 1_577_836_800.0)]


def test_what_is_dropped_is_counted_by_reason_with_its_first_line(tmp_path):
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
    report = import_file(path, tmp_path / "out")
    assert (report.rows, report.kept) == (15, 6)
    assert {drop.reason: (drop.rows, drop.first_line) for drop in report.dropped} == {
        "bad row": (3, 7),
        "no user": (2, 9),
        "no text": (1, 11),
        "no word": (1, 13),
        "unreadable timestamp": (2, 14),
    }
    assert load(tmp_path / "out").dropped == {
        "bad row": 3,
        "no user": 2,
        "no text": 1,
        "no word": 1,
        "unreadable timestamp": 2,
    }


def test_a_csv_row_with_too_many_fields_is_dropped_and_the_next_is_read(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user,text\n"
        + "".join(f"{user},hello\n" for user in USERS)
        + "x,one, two\n"
        + f'{TEST},"one, two"\n'
    )
    report = import_file(path, tmp_path / "out")
    assert [(drop.reason, drop.rows, drop.first_line) for drop in report.dropped] == [
        ("bad row", 1, 5)
    ]
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
            r"log\.csv: no column 'user', found name, text; name your columns",
        ),
        ("log.csv", b"user,text\nx,ok\ny,caf\xe9\n", r"log\.csv:\d: not UTF-8 text"),
        (
            "log.jsonl",
            b'{"name": "x", "text": "hello"}\n',
            r"log\.jsonl: no column 'user', found name, text; name your columns",
        ),
        (
            "log.jsonl",
            b"hello\n\x00\xff\n",
            r"none of 2 rows can be used: bad row 2 \(first in line 1\)",
        ),
        ("log.jsonl", b'{"user": "x", "text": "hello"}\n', r"1 user, none of whom falls into"),
        ("log.parquet", b"PAR1 no", r"log\.parquet: not a readable Parquet file"),
        (
            "log.txt",
            b"hello",
            r"unknown extension '\.txt', expected one of \.jsonl, \.csv, \.parquet",
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
    with pytest.raises(
        CorpusError, match=r"missing\.csv: cannot be read or written \(No such file"
    ):
        import_file(tmp_path / "missing.csv", tmp_path / "out")


def test_a_named_timestamp_column_must_be_there(tmp_path):
    with pytest.raises(CorpusError, match="no column 'at'"):
        import_file(write_csv(tmp_path / "log.csv", ROWS), tmp_path / "out", timestamp="at")


def test_a_folder_of_other_things_is_not_overwritten_but_an_older_import_is(tmp_path):
    path, out = write_jsonl(tmp_path / "log.jsonl", ROWS), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(CorpusError, match="exists and is not a corpus directory"):
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


def test_a_name_that_is_no_corpus_is_told_what_to_use(tmp_path):
    with pytest.raises(CorpusError, match="no such corpus, expected `chitchat` or a directory"):
        load(tmp_path / "nothing")
    with pytest.raises(
        CorpusError, match=r"is a file.*run `fedboard data import .*log\.jsonl --out DIR` first"
    ):
        load(write_jsonl(tmp_path / "log.jsonl", ROWS))


@pytest.mark.parametrize(
    "timestamp",
    [
        0.5,
        500,
        "0.5",
        "1970-01-01T00:00:00.5Z",
        "1970-01-01 01:00:00.500+01:00",
        " 1970-01-01T00:00:00.500 ",
        datetime(1970, 1, 1, 0, 0, 0, 500_000),
        datetime(1970, 1, 1, 0, 0, 0, 500_000, UTC),
        datetime(1970, 1, 1, 2, 0, 0, 500_000, timezone(timedelta(hours=2))),
    ],
)
def test_a_time_is_iso_or_an_epoch(timestamp):
    assert seconds(timestamp) == (500 if timestamp == 500 else 0.5)


def test_an_epoch_of_thirteen_digits_is_in_milliseconds():
    assert (
        seconds(1_577_836_800_000)
        == seconds("1577836800")
        == seconds(date(2020, 1, 1))
        == 1_577_836_800
    )


@given(st.one_of(st.text(), st.booleans(), st.floats(), st.integers(), st.lists(st.integers())))
def test_any_other_time_is_a_value_error(timestamp):
    with contextlib.suppress(ValueError, OverflowError):
        assert abs(seconds(timestamp)) >= 0


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
        report = import_file(folder / "log.jsonl", folder / "out")
    except CorpusError as error:
        assert "\n" not in str(error)
        assert not (folder / "out").exists()
    else:
        assert report.rows == report.kept + sum(drop.rows for drop in report.dropped)
        assert load(folder / "out").digest == report.digest

"""Corpus directories: equal to what `prepare` makes in memory, refused where they were altered."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.config import from_json
from device_runtime.errors import CorpusError
from model import directory, sorting
from model.corpora import load
from model.corpus import IN_TRAIN, SPLITS, Corpus, Utterance, prepare, stats
from model.directory import Manifest, Writer, is_ours, open_directory

TRAIN, VALIDATION, TEST = "user0", "user26", "user13"  # where their names fall
USERS = (TRAIN, VALIDATION, TEST)
LONG = "one two three four five six seven eight"
GOLDEN = Path(__file__).parent / "golden" / "corpus-2"  # as `Writer` wrote it in format 2

Rows = list[tuple[str, str, float | None]]


def write(folder: Path, rows: Rows) -> tuple[Manifest, Counter[str]]:
    """The manifest, and what `add` left out by reason."""
    folder.mkdir()
    with Writer(folder) as writer:
        reasons = Counter(reason for row in rows if (reason := writer.add(*row)))
        return writer.finish("toy", len(rows), reasons), reasons


def in_memory(corpus: Corpus) -> dict[str, list[tuple[str, list[Utterance]]]]:
    """Every user of each split, in the corpus's order."""
    return {
        split: [(name, list(own)) for name, own in corpus.split(split).items()] for split in SPLITS
    }


# few texts, so that many are said twice; few times, so that many are equal
TEXTS = st.one_of(
    st.sampled_from([LONG, LONG + "!", "hello", "ha " * 6, "42", "caf\u00e9\n\u2028x", "a\x85b"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
TIMES = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5, -3.0]), st.floats(-1e9, 1e9))
NAMES = st.sampled_from([*USERS, "user1", "\u00fcser", "a\nb", "\U0001f600", "Z"])
ROWS = st.one_of(
    st.lists(st.tuples(NAMES, TEXTS, TIMES), max_size=30),
    st.lists(st.tuples(NAMES, TEXTS, st.integers(0, 3).map(float)), max_size=30),
)


@given(ROWS, st.sampled_from([1, 700, sorting.RUN]))
def test_a_directory_is_the_corpus_that_is_prepared_in_memory(tmp_path_factory, rows, run):
    folder = tmp_path_factory.mktemp("corpus") / "toy"
    rows = [*((user, f"I am {user}", 0.0) for user in USERS), *rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting.Sorter.__init__, "__defaults__", (run,))
        manifest, _ = write(folder, rows)
    expected, corpus = prepare("toy", manifest.digest, rows), open_directory(folder)
    assert in_memory(corpus) == in_memory(expected)
    assert corpus.dropped == {reason: n for reason, n in expected.dropped.items() if n}
    assert (corpus.name, corpus.digest, corpus.most) == ("toy", manifest.digest, None)
    assert manifest.kept == len(rows) - sum(corpus.dropped.values())
    words = [
        token
        for split in SPLITS
        for own in expected.split(split).values()
        for utterance in own
        for token in utterance.tokens
        if token[0].isalnum()
    ]
    assert (manifest.words, manifest.distinct_words) == (len(words), len(set(words)))
    assert sorted(path.name for path in folder.iterdir()) == sorted(directory.FILES)


@given(ROWS)
def test_equal_rows_have_an_equal_digest(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("corpus")
    rows = [*((user, "hi", 0.0) for user in USERS), *rows]
    assert write(folder / "a", rows)[0] == write(folder / "b", rows)[0]


def test_what_stands_in_train_word_for_word_is_left_out_and_counted(tmp_path):
    rows = [(TEST, LONG, None), (TEST, "hi", 1.0), (VALIDATION, "hi", None), (TRAIN, LONG, 2.0)]
    manifest, _ = write(tmp_path / "toy", rows)
    assert (manifest.rows, manifest.kept, manifest.dropped) == (4, 3, {IN_TRAIN: 1})
    assert open_directory(tmp_path / "toy").test[TEST] == [Utterance("hi", ("hi",), 1.0)]


def test_a_split_that_loses_its_last_message_is_refused(tmp_path):
    (tmp_path / "toy").mkdir()
    rows = [(TEST, LONG, None), (VALIDATION, "hi", None), (TRAIN, LONG, None)]
    with (
        pytest.raises(CorpusError, match=r"toy: 3 users, none of whom falls into test; give"),
        Writer(tmp_path / "toy") as writer,
    ):
        for row in rows:
            writer.add(*row)
        writer.finish("toy", 3, {})
    assert not is_ours(tmp_path / "toy")


def test_the_manifest_keeps_what_the_import_said_and_the_progress_is_told(tmp_path):
    (tmp_path / "toy").mkdir()
    told = []
    with Writer(tmp_path / "toy") as writer:
        for user in USERS:
            writer.add(user, "hello there", None)
        manifest = writer.finish(
            "chat.csv",
            5,
            {"no user": 2},
            {"no user": ["chat.csv:4", "chat.csv:5"]},
            ["times are milliseconds"],
            lambda done, total: told.append((done, total)),
        )
    assert (manifest.rows, manifest.kept, manifest.users, manifest.words) == (5, 3, 3, 6)
    assert manifest.distinct_words == 2
    assert (manifest.dropped, manifest.notes) == ({"no user": 2}, ("times are milliseconds",))
    assert manifest.places == {"no user": ("chat.csv:4", "chat.csv:5")}
    assert from_json(Manifest, (tmp_path / "toy/corpus.json").read_bytes(), "toy") == manifest
    assert told == [(3, 3)]


def test_messages_are_read_one_user_at_a_time(tmp_path):
    write(tmp_path / "toy", [(user, f"I am {user}", 1.0) for user in USERS])
    lines = [json.loads(line) for line in (tmp_path / "toy/users.jsonl").read_text().splitlines()]
    assert [line[:2] for line in lines] == [
        [TRAIN, "train"],
        [TEST, "test"],
        [VALIDATION, "validation"],
    ]
    data = (tmp_path / "toy/corpus.jsonl").read_bytes()
    assert data[: lines[0][2]] == b'{"user": "user0", "text": "I am user0", "timestamp": 1.0}\n'
    corpus = open_directory(tmp_path / "toy")
    assert corpus.train[TRAIN] == [Utterance("I am user0", ("i", "am", "user0"), 1.0)]
    assert corpus.train[TRAIN] is not corpus.train[TRAIN]  # not kept
    with pytest.raises(KeyError):
        corpus.train[TEST]


@given(st.lists(st.tuples(TEXTS, TIMES), max_size=9), st.slices(9))
def test_a_user_with_very_many_messages_is_read_message_by_message(tmp_path_factory, said, part):
    folder = tmp_path_factory.mktemp("corpus") / "toy"
    rows = [(user, f"I am {user}", 0.0) for user in USERS]
    write(folder, [*rows, *((TRAIN, text, time) for text, time in said)])
    whole = open_directory(folder).train[TRAIN]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "LARGE", 50)  # bytes, and of the blocks that are looked through
        messages = open_directory(folder).train[TRAIN]
    assert type(messages) is not type(whole)
    assert (len(messages), list(messages), messages[part]) == (len(whole), whole, whole[part])
    assert messages == whole
    assert whole == messages
    assert messages != [*whole, whole[0]]
    assert messages[-1] == whole[-1]
    with pytest.raises(IndexError):
        messages[len(whole)]


def test_what_is_counted_at_the_import_is_what_is_counted_by_reading(tmp_path):
    rows = [
        (f"user{i}", f"hello {'again ' * (i % 3)}person number {i}", None)
        for i in range(60)
        for _ in range(1 + i % 5)
    ]
    write(tmp_path / "toy", rows)
    corpus = open_directory(tmp_path / "toy")
    read = prepare("toy", corpus.digest, rows)
    noted = stats(replace(corpus, train={}, validation={}, test={}))  # nothing is read
    assert replace(noted, users=stats(read).users, dropped=stats(read).dropped) == stats(read)


def test_only_a_very_large_corpus_is_scored_on_a_sample(tmp_path, monkeypatch):
    write(tmp_path / "toy", [(user, "hello", None) for user in USERS])
    assert open_directory(tmp_path / "toy").most is None
    monkeypatch.setattr(directory, "MANY", 2)
    assert open_directory(tmp_path / "toy").most == 1000


def test_an_open_corpus_outlives_an_import_in_its_place(tmp_path):
    write(tmp_path / "toy", [(user, "before", None) for user in USERS])
    corpus = open_directory(tmp_path / "toy")
    shutil.rmtree(tmp_path / "toy")
    write(tmp_path / "toy", [(user, "after", None) for user in USERS])
    assert corpus.train[TRAIN][0].text == "before"
    assert load(tmp_path / "toy").train[TRAIN][0].text == "after"


def test_a_file_that_is_written_over_while_it_is_open_is_named(tmp_path):
    write(tmp_path / "toy", [(user, "before", None) for user in USERS])
    corpus = open_directory(tmp_path / "toy")
    (tmp_path / "toy/corpus.jsonl").write_bytes(b"\xff" * 500)
    with pytest.raises(CorpusError, match=r"corpus\.jsonl: was altered while it was open"):
        corpus.train[TRAIN]


def test_a_truncated_or_altered_or_missing_file_is_named(tmp_path):
    write(tmp_path / "toy", [(user, "hello", 1.0) for user in USERS])
    for name in ("corpus.jsonl", "users.jsonl"):
        path = tmp_path / "toy" / name
        data = path.read_bytes()
        for other in (data[:-1], data + data[-30:], data.replace(b"user0", b"user1"), b""):
            path.write_bytes(other)
            with pytest.raises(CorpusError, match=rf"{name}: its SHA-256 is not the one in corpus"):
                open_directory(tmp_path / "toy")
        path.unlink()
        with pytest.raises(CorpusError, match=rf"{name}: cannot be read \(No such file"):
            open_directory(tmp_path / "toy")
        path.write_bytes(data)
    assert len(open_directory(tmp_path / "toy").test) == 1


@pytest.mark.parametrize(
    "lines",
    [
        "[]\n",
        "nothing\n",
        '["user0", "train", 9, 1]\n',
        '["user0", "elsewhere", 9, 1, 1]\n',
        '["b", "train", 9, 1, 1]\n["a", "test", 9, 1, 1]\n',
        '[1, "train", 9, 1, 1]\n',
        '["user0", "train", 1, 1, 1]\n',
        '["user0", "train", 40, 1, 1]\n["user13", "test", 40, 1, 1]\n'
        '["user26", "validation", 40, 1, 1]\n',
    ],
)
def test_an_index_that_does_not_fit_is_named_even_if_its_digest_does(tmp_path, lines):
    manifest, _ = write(tmp_path / "toy", [(user, "hello", None) for user in USERS])
    (tmp_path / "toy/users.jsonl").write_text(lines)
    marker = tmp_path / "toy/corpus.json"
    digest = hashlib.sha256(lines.encode()).hexdigest()
    marker.write_text(marker.read_text().replace(manifest.index, digest))
    with pytest.raises(CorpusError, match=r"users\.jsonl: (is not a list of users|does not fit)"):
        open_directory(tmp_path / "toy")


@pytest.mark.parametrize(
    "marker",
    [b"", b"{}", b"[]", b'{"format": 1}', b'{"format": "fedboard-corpus-2"}', b"\xff", b"[" * 9999],
)
def test_a_folder_with_another_marker_is_not_ours(tmp_path, marker):
    (tmp_path / "corpus.json").write_bytes(marker)
    assert not is_ours(tmp_path)
    with pytest.raises(CorpusError, match="not a corpus directory"):
        open_directory(tmp_path)


def test_a_directory_of_this_format_still_opens():
    assert is_ours(GOLDEN)
    corpus = open_directory(GOLDEN)
    assert corpus.digest == "71ff3dc42c51d8466c0b7367b8a05f2949ed177d8bd11e8a3ad472381d18c3fe"
    assert corpus.dropped == {"no word": 3, "no user": 1}
    cafe = Utterance("see you at caf\u00e9 7", ("see", "you", "at", "caf\u00e9", "<num>"), 3.0)
    for split, user in zip(SPLITS, USERS, strict=True):
        hello = Utterance(f"Hello, {user}!", ("hello", ",", user, "!"), 9.0)
        assert dict(corpus.split(split)) == {user: [cafe, hello]}

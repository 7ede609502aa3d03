"""TFF's own corpora, on the few clients TFF makes up for tests, in files of the form TFF fetches.
No network is reached.
"""

import functools
import lzma
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from device_runtime.errors import CorpusError
from device_runtime.metrics import recall
from model import evaluation, measures, ngram, tff_corpora, vocabulary
from model.corpora import load
from model.corpus import Utterance, sample, split_of, stats, token_lists

CLOSED = "http://127.0.0.1:9"  # nothing listens there
MACBETH, EMILIA, CUPID = (
    "THE_TRAGEDY_OF_KING_LEAR_MACBETH",
    "MUCH_ADO_ABOUT_NOTHING_EMILIA",
    "THE_TAMING_OF_THE_SHREW_CUPID",
)


@pytest.fixture(scope="module")
def tff():
    import tensorflow_federated as tff

    return tff


@pytest.fixture(scope="module")
def posts(tff):
    """TFF's synthetic StackOverflow: client -> examples."""
    return examples(tff.simulation.datasets.stackoverflow.get_synthetic())


@pytest.fixture(scope="module")
def speeches(tff):
    """TFF's synthetic Shakespeare, and a character whom nwp-v1 calls validation, who says two lines
    at a time.
    """
    stranger = next(
        name for name in (f"ROMEO_{i}" for i in range(99)) if split_of(name) == "validation"
    )
    return {
        **examples(tff.simulation.datasets.shakespeare.get_synthetic()),
        stranger: [{"snippets": b"Ay me!\n\nWhat's here?"}],
    }


def examples(data) -> dict[str, list[dict]]:
    return {
        client: list(data.create_tf_dataset_for_client(client).as_numpy_iterator())
        for client in data.client_ids
    }


def write_database(path: Path, splits: dict[str, dict[str, list[dict | bytes]]]) -> Path:
    """A file of the form TFF fetches; an example given as bytes is written as it is."""
    import tensorflow as tf

    def feature(value) -> tf.train.Feature:
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    def encoded(example: dict) -> bytes:
        return tf.train.Example(
            features=tf.train.Features(
                feature={name: feature(value) for name, value in example.items()}
            )
        ).SerializeToString()

    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)"
    )
    database.execute(
        "CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)"
    )
    for split, clients in splits.items():
        for client, own in clients.items():
            database.execute(
                "INSERT INTO client_metadata VALUES (?, ?, ?)", (client, split, len(own))
            )
            blobs = (example if isinstance(example, bytes) else encoded(example) for example in own)
            database.executemany(
                "INSERT INTO examples VALUES (?, ?, ?)", ((split, client, blob) for blob in blobs)
            )
    database.commit()
    database.close()
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory, posts, speeches):
    """A folder in which TFF finds both files."""
    folder = tmp_path_factory.mktemp("cache")
    held_out = {"synthetic_9": posts["synthetic_2"]}
    damaged = {"damaged": [b"no example"]}
    later = {"synthetic_3": posts["synthetic_3"]}
    write_database(
        folder / "stackoverflow.sqlite",
        {"train": {**posts, **damaged}, "heldout": held_out, "test": later},
    )
    write_database(folder / "shakespeare.sqlite", {"train": speeches, "test": speeches})
    return folder


@pytest.fixture(scope="module")
def stackoverflow(cache):
    return load("stackoverflow", cache)


@pytest.fixture(scope="module")
def shakespeare(cache):
    return load("shakespeare", cache)


def texts(utterances) -> list[str]:
    return [utterance.text for utterance in utterances]


# --- clients ---


def test_stackoverflow_has_tffs_splits_and_names_its_clients_in_order(stackoverflow):
    assert list(stackoverflow.train) == ["damaged", "synthetic_1", "synthetic_2", "synthetic_3"]
    assert (list(stackoverflow.validation), list(stackoverflow.test)) == (
        ["synthetic_9"],
        ["synthetic_3"],
    )
    assert (stackoverflow.name, len(stackoverflow.digest), stackoverflow.dropped) == (
        "stackoverflow",
        64,
        None,
    )


def test_a_post_is_utterances_by_our_text_rules_with_its_date(stackoverflow):
    assert stackoverflow.test["synthetic_3"] == (
        Utterance("edit :", ("edit", "<sym>"), 1_225_385_366.9),  # 2008-10-30 16:49:26.9
        Utterance(
            "the spec is available here .",
            ("the", "spec", "is", "available", "here", "."),
            1_225_385_366.9,
        ),
    )


def test_posts_come_in_time_order_and_the_sentences_of_one_post_keep_theirs(stackoverflow):
    earlier, later = (
        ["css3 does finally define the", "which is exactly how you'd want it to work ."],
        "if you're using sql 2005 or better",
    )
    assert texts(stackoverflow.train["synthetic_1"])[:2] == earlier  # 2008, given after 2010
    assert texts(stackoverflow.train["synthetic_1"])[2].startswith(later)


def test_a_client_is_read_when_asked_for_so_a_damaged_one_harms_nobody_else(stackoverflow, cache):
    assert (
        len(stackoverflow.train) == 4
        and "damaged" in stackoverflow.train
        and "nobody" not in stackoverflow.train
    )
    assert len(stackoverflow.train["synthetic_2"]) == 3
    with pytest.raises(
        CorpusError,
        match=r"stackoverflow\.sqlite: the examples of client 'damaged' cannot be read .*; "
        r"delete the file",
    ):
        stackoverflow.train["damaged"]
    with pytest.raises(KeyError):
        stackoverflow.train["nobody"]


def test_sampling_three_of_a_thousand_clients_opens_the_datasets_of_three(tff, posts):
    import tensorflow as tf

    opened = []

    def dataset(client: tf.Tensor) -> tf.data.Dataset:
        tf.py_function(lambda name: opened.append(name.numpy().decode()), [client], [])
        post = posts["synthetic_3"][1]
        return tf.data.Dataset.from_tensors(
            {name: tf.constant(value) for name, value in post.items()}
        )

    data = tff.simulation.datasets.ClientData.from_clients_and_tf_fn(
        [f"client{i:03d}" for i in range(1000)], dataset
    )
    opened.clear()  # TFF looks at one to know its form
    toy = tff_corpora.corpus_of(tff_corpora.SOURCES["stackoverflow"], [data, data, data], "toy")
    assert (len(toy.train), opened) == (1000, [])
    some = sample(toy.train, 3)
    assert (list(some), opened) == (["client000", "client333", "client666"], [])
    assert {name: texts(utterances) for name, utterances in some.items()} == {
        name: ["the spec is available here ."] for name in some
    }
    assert opened == list(some)
    assert len(some["client333"]) == 1 and len(opened) == 3  # remembered


def test_shakespeares_later_lines_of_a_validation_user_are_validation_and_the_rest_test(
    shakespeare, speeches
):
    (stranger,) = shakespeare.validation
    assert list(shakespeare.train) == sorted(speeches)
    assert list(shakespeare.test) == [EMILIA, CUPID, MACBETH]
    assert texts(shakespeare.validation[stranger]) == ["Ay me!", "What's here?"]


def test_a_line_is_an_utterance_and_lines_keep_their_order(shakespeare):
    assert shakespeare.train[CUPID] == (
        Utterance(
            "Hail to thee, worthy Timon, and to all",
            ("hail", "to", "thee", ",", "worthy", "timon", ",", "and", "to", "all"),
            None,
        ),
    )
    assert texts(shakespeare.test[MACBETH])[:3] == ["Hark!", "When?", "My name's Macbeth."]


def test_lines_without_a_word_and_mashing_are_left_out(tff):
    data = tff.simulation.datasets.TestClientData(
        {
            "a": {"snippets": [b"!!!\nNo, no, no, no, no, no\nEnter", b"1599"]},
            "b": {"snippets": [b"..."]},
        }
    )
    users = tff_corpora.users_of(data, tff_corpora.SOURCES["shakespeare"], "toy")
    assert {name: texts(utterances) for name, utterances in users.items()} == {
        "a": ["Enter"],
        "b": [],
    }


def test_vocabulary_baseline_and_evaluation_work_on_clients_read_lazily(shakespeare):
    words = vocabulary.build(token_lists(shakespeare.train, shakespeare.most), 40)
    engine = evaluation.ngram_engine(
        ngram.train([words.ids(tokens) for tokens in token_lists(shakespeare.train)], 2, len(words))
    )
    result = evaluation.evaluate(engine, shakespeare.validation, words)
    # ay me what's here
    assert (list(result.users), result.total.targets) == (list(shakespeare.validation), 4)
    assert 0 < recall(result.total, "top3") <= 1
    assert measures.summarise(result, np.random.default_rng(0)).users == 1


def test_stats_count_what_was_read_of_each_split(shakespeare):
    figures = stats(shakespeare)
    assert figures.users == {"train": 4, "validation": 1, "test": 3}
    assert (figures.train.users, figures.train.utterances, figures.validation.words) == (4, 15, 4)
    assert (figures.most, figures.dropped) == (None, None)


# --- the file ---


def test_without_file_and_network_the_error_says_where_to_put_the_file_before_tff_is_loaded(
    tmp_path,
):
    no_network = {"https_proxy": CLOSED, "HTTPS_PROXY": CLOSED, "no_proxy": "", "NO_PROXY": ""}
    environment = {**os.environ, **no_network, "FEDBOARD_CACHE": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "fedboard.cli",
        "data",
        "stats",
        "stackoverflow",
    ]
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, len(said)) == (1, 1)
    path = tmp_path / "cache" / "stackoverflow.sqlite"
    assert said[0].startswith(
        f"CorpusError: stackoverflow: {path} is not there, and cannot be fetched from https://"
    )
    assert (
        "Connection refused" in said[0]
        and "put it there (`curl -L https" in said[0]
        and said[0].endswith("or use `chitchat`")
    )
    assert "tensorflow" not in done.stderr
    assert time.monotonic() - started < 20
    assert not path.parent.exists()


def test_a_network_that_swallows_everything_is_given_up_after_seconds(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            tff_corpora, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/{{}}.sqlite.lzma"
        )
        monkeypatch.setattr(tff_corpora, "REACH_S", 0.2)
        with pytest.raises(CorpusError, match=r"cannot be fetched from http://.* \(timed out\)"):
            load("stackoverflow", tmp_path)


@pytest.fixture
def network(tmp_path, tff, cache, monkeypatch):
    """A server that has shakespeare.sqlite.lzma, which our URL and TFF's both mean."""
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "shakespeare.sqlite.lzma").write_bytes(
        lzma.compress((cache / "shakespeare.sqlite").read_bytes())
    )
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{{}}.sqlite.lzma"
    from tensorflow_federated.python.simulation.datasets import download

    fetch, theirs = download._fetch_lzma_file, tff_corpora.URL.format("shakespeare")

    def redirected(origin: str, filename: str) -> None:
        assert origin == theirs  # so the address in our messages is TFF's
        fetch(url.format("shakespeare"), filename)

    monkeypatch.setattr(download, "_fetch_lzma_file", redirected)
    monkeypatch.setattr(tff_corpora, "URL", url)
    yield folder
    server.shutdown()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_file_is_fetched_once_into_the_folder_the_environment_names(
    network, tmp_path, monkeypatch, shakespeare
):
    monkeypatch.setenv("FEDBOARD_CACHE", str(tmp_path / "new" / "cache"))
    toy = load("shakespeare")
    assert toy.digest == shakespeare.digest
    assert toy.test[CUPID] == shakespeare.test[CUPID]
    assert [entry.name for entry in (tmp_path / "new" / "cache").iterdir()] == [
        "shakespeare.sqlite"
    ]
    (network / "shakespeare.sqlite.lzma").unlink()
    assert load("shakespeare").digest == toy.digest


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    "damage", [half, lambda _: b"<html>log in</html>", lambda _: b""], ids=["half", "page", "empty"]
)
def test_a_download_that_breaks_leaves_nothing_that_could_pass_for_the_file(
    network, tmp_path, damage
):
    path = network / "shakespeare.sqlite.lzma"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        CorpusError, match=r"shakespeare\.sqlite is not there, and cannot be fetched"
    ) as raised:
        load("shakespeare", tmp_path / "cache")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_that_stalls_is_given_up(network, tmp_path, monkeypatch):
    over = threading.Event()

    def stall(request: QuietHandler) -> None:
        request.send_response(200)
        request.end_headers()
        over.wait(30)

    monkeypatch.setattr(QuietHandler, "do_GET", stall)
    monkeypatch.setattr(tff_corpora, "STALL_S", 0.2)
    before = socket.getdefaulttimeout()
    with pytest.raises(CorpusError, match=r"cannot be fetched from .* \(timed out\)"):
        load("shakespeare", tmp_path / "cache")
    over.set()
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize(
    "damage", [half, lambda _: b"hello" * 99, lambda _: b""], ids=["half", "text", "empty"]
)
def test_a_damaged_file_in_the_cache_is_refused(tmp_path, cache, damage):
    path = tmp_path / "shakespeare.sqlite"
    path.write_bytes(damage((cache / "shakespeare.sqlite").read_bytes()))
    with pytest.raises(
        CorpusError,
        match=r"shakespeare\.sqlite: not TFF's shakespeare \(.*\); "
        r"delete the file, and it is fetched again",
    ) as raised:
        load("shakespeare", tmp_path)
    assert "\n" not in str(raised.value)


def test_another_corpus_under_the_name_is_refused(tmp_path, cache):
    (tmp_path / "stackoverflow.sqlite").write_bytes((cache / "shakespeare.sqlite").read_bytes())
    with pytest.raises(CorpusError, match="not TFF's stackoverflow: it has no client of heldout"):
        load("stackoverflow", tmp_path)

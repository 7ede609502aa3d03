"""The tiny world every test may use.

A corpus of a few made-up users, its vocabulary, a network of some thousand weights, and a signed
bundle. `tests/suite.py` says which test is which.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, signing
from device_runtime.bundle import Bundle, open_verified
from device_runtime.examples import rows
from device_runtime.interpreter import CHOICE, LOADERS, installed
from device_runtime.text import Vocabulary
from device_runtime.weights import Checkpoint
from device_runtime.wire import Plan
from model import corpora, corpus, imported, network

pytest_plugins = ["tests.suite"]

# each interpreter is tested: here the one that the `device` extra installs, the other where it is
# the only one, as in the environment of `make test-numpy2`
if len(installed()) == len(LOADERS):
    os.environ.setdefault(CHOICE, "tflite-runtime")

GOLDEN = Path(__file__).parent / "golden"
SUBJECTS = ("i", "you", "we", "they")
VERBS = ("will see", "like", "want to call", "do not know", "can hear")
OBJECTS = ("you", "my dog", "the new house", "her tomorrow", "it", "what they said")
TINY_PLAN = Plan(
    batch_size=4, length=6, epochs=1, learning_rate=0.3, max_rows=16, clipping_norm=5.0, bits=8
)
ENOUGH_BYTES = 50_000_000  # in memory, for a folder of tests


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Sentences of a small grammar: a model can learn what follows what."""
    pick = [rng.integers(len(words), size=count) for words in (SUBJECTS, VERBS, OBJECTS)]
    return [f"{SUBJECTS[a]} {VERBS[b]} {OBJECTS[c]}." for a, b, c in zip(*pick, strict=True)]


@pytest.fixture(scope="session")
def tiny_plan() -> Plan:
    return TINY_PLAN


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> str:
    """A JSONL corpus of 40 users with 30 messages each."""
    rng = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("corpus") / "chat.jsonl"
    lines = [
        {"user": f"user{u}", "text": text, "timestamp": 1000 * u + i}
        for u in range(40)
        for i, text in enumerate(sentences(rng, 30))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="session")
def tiny_corpus(corpus_file, tmp_path_factory) -> corpus.Corpus:
    directory = tmp_path_factory.mktemp("imported") / "tiny"
    imported.import_file(corpus_file, directory)
    return corpora.load(directory)


@pytest.fixture(scope="session")
def tiny_vocabulary() -> Vocabulary:
    """That of the tiny bundle: the words of the tiny corpus, by a model of text rules 1."""
    with zipfile.ZipFile(GOLDEN / "tiny-3.zip") as bundled:
        return Vocabulary(bundled.read("tokenizer.model"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_vocabulary) -> Checkpoint:
    weights = network.initial_weights(
        network.SIZES["tiny"], tiny_vocabulary, np.random.default_rng(3)
    )
    return Checkpoint(weights, tokenizer=tiny_vocabulary.hash)


@pytest.fixture(scope="session")
def tiny_rows(tiny_corpus, tiny_vocabulary) -> np.ndarray:
    return rows(
        (tiny_vocabulary.ids(tokens) for tokens in corpus.token_lists(tiny_corpus.train)),
        TINY_PLAN.length,
    )


@pytest.fixture(scope="session")
def signing_key() -> Ed25519PrivateKey:
    """The same key in every worker: the bundle that one of them signs is opened by all."""
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(scope="session")
def trusted(signing_key) -> frozenset[str]:
    return frozenset({signing.public_hex(signing_key)})


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory, signing_key, trusted) -> Bundle:
    """A signed bundle on disk, opened as a device opens it. Do not write into its folder: copy
    it.

    Its files were made of this tiny world and are kept in golden/tiny-3.zip, so that only the tests
    of the export need TensorFlow; test_conversion.py holds them equal to what the export makes.
    """
    golden = open_verified(
        GOLDEN / "tiny-3.zip", frozenset((GOLDEN / "tiny-3.pub").read_text().split())
    )
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    bundle.write(path, golden.manifest, golden.content, signing_key)
    return open_verified(path, trusted)


@pytest.fixture
def fast_folder(tmp_path) -> Iterator[Path]:
    """A folder in memory where there is one: for work that is killed at every step, and flushes
    its files thousands of times. Whether a disk keeps what was flushed is not what it tests.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < ENOUGH_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="fedboard-tests-", dir=memory) as folder:
        yield Path(folder)

"""Coverage-guided fuzzing of every reader of foreign bytes: they are read, or refused in our words.

The error is one of ours, whatever the bytes hold.

python fuzz/readers.py manifest -max_total_time=60        (or zip, checkpoint, update, difference,
codes, index, typing_log, unfinished, outgoing, seal, schedule, trace, chain; of people's own:
files, corpus; of the server: messages, proof, window, counted, settings; of a helper: helper,
answer; of who signs a task: terms; of a fleet: recording, columns)
"""

import contextlib
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import atheris
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

with atheris.instrument_imports(
    include=[
        *("device_runtime", "model", "server", "helper", "fleet", "fedboard", "zipfile"),
        "safetensors",
    ]
):
    from device_runtime import (
        agreement,
        bundle,
        chain,
        codes,
        conditions,
        config,
        daemon,
        difference,
        exposure,
        masking,
        outgoing,
        own_words,
        packing,
        patch,
        personal,
        releases,
        secagg_wire,
        signing,
        spent,
        unfinished,
        weights,
    )
    from device_runtime import helper_wire as wire_of_helpers
    from device_runtime import update as updates
    from device_runtime.errors import FedboardError
    from device_runtime.noise import Mechanism, Noise
    from device_runtime.spent import Part
    from device_runtime.terms import Aggregation, Terms
    from device_runtime.typing_log import TypingLog
    from device_runtime.wire import (
        MOST_WORDS,
        Abandon,
        Assignment,
        CheckIn,
        Enrolment,
        Kind,
        Plan,
        Scores,
        Signed,
    )
    from fleet import columns, traces
    from helper import answers
    from helper.tasks import Rules, Task
    from model import directory, imported
    from server import access, bodies, contract, judging, mechanism, sums, task
    from server.settings import ServerSettings

import numpy as np

CONSTANTS = {
    "bias": patch.Constant("float32", 8, 2),
    "kernel": patch.Constant("int8", 16, 6, 4),
}
PREDICT = patch.predict(b"TFL3" + bytes(18), CONSTANTS, {"bias": np.ones(2), "kernel": np.ones(6)})
PATCHED = patch.predict(
    PREDICT, CONSTANTS, {"bias": np.full(2, 1.5), "kernel": np.arange(6) / np.float32(4)}
)
FOLDER = Path(tempfile.mkdtemp(prefix="fedboard-fuzz-"))
OLD = weights.to_bytes(weights.Checkpoint({"a": np.arange(6, dtype=np.float32)}), np.float16)
NEW = weights.to_bytes(weights.Checkpoint({"a": np.arange(6, dtype=np.float32) * 1.01}), np.float16)
LOG = FOLDER / "typing_log.sqlite"
with TypingLog(LOG) as log:
    log.append_many([("hello there", 1.0), ("how are you", 2.0)])
    SEALED = log.seal(b"{}", unfinished.PURPOSE)
LOG_BYTES = LOG.read_bytes()


def manifest(data: bytes) -> None:
    """A bundle's manifest.json."""
    bundle._manifest(data, FOLDER)


def zip_(data: bytes) -> None:
    """A bundle that comes as one zip file."""
    path = FOLDER / "bundle.zip"
    path.write_bytes(data)
    bundle.open_verified(path, frozenset({"ab" * 32}))


def checkpoint(data: bytes) -> None:
    """A checkpoint: whatever is read has values that are finite."""
    parsed = weights.from_bytes(data)
    assert all(np.isfinite(array).all() for array in parsed.weights.values())


def update(data: bytes) -> None:
    """An update of any form: what is read has as many numbers as its header says."""
    about, layout = updates.header(data), packing.layout(4096, 15, 100)
    if about.form is updates.Form.CODES:
        assert len(updates.codes(data, TASK.plan.bits)) == about.numbers
    elif about.form is updates.Form.SEALED:
        assert len(updates.sealed(data, layout).words) == layout.words
    else:
        assert len(updates.words(data, layout)) == layout.words


def difference_(data: bytes) -> None:
    """A difference between checkpoints: what applies gives the new one, to the byte."""
    assert difference.apply(OLD, data) == NEW


def codes_(data: bytes) -> None:
    """A difference between files that predict: what applies gives the new one, to the byte."""
    assert codes.apply(PREDICT, data, CONSTANTS, weights.digest(PATCHED)) == PATCHED


def index(data: bytes) -> None:
    """An index of releases: nobody has signed what is in it."""
    assert releases.statements_in(data, frozenset({"ab" * 32}), "default").named == ()


def typing_log(data: bytes) -> None:
    """A damaged typing log: what is read was typed."""
    LOG.write_bytes(data)
    for suffix in ("-wal", "-shm"):
        LOG.with_name(LOG.name + suffix).unlink(missing_ok=True)
    with TypingLog(LOG) as opened:
        assert set(opened.read(99)) <= {"hello there", "how are you"}
        opened.count(usable=True)


def unfinished_(data: bytes) -> None:
    """Half-done work: nothing that was not sealed here is gone on with."""
    with TypingLog(LOG) as opened:
        assert unfinished.unseal(data, opened) is None


def outgoing_(data: bytes) -> None:
    """A report that waits for its answer: nothing that was not sealed here is sent."""
    with TypingLog(LOG) as opened:
        assert outgoing.unseal(data, opened) is None


def seal(data: bytes) -> None:
    """The sealed seed of a mask: opened whole, as it was made, or not at all."""
    assert masking.open_seal(data, ABOUT, PRIVATE) == (SEED if data == SEAL else None)


def schedule(data: bytes) -> None:
    """The device's small files: its schedule, its verdict on personal weights, its trust."""
    for kind in (daemon.Schedule, personal.Verdict):
        config.from_json(kind, data, "file")
    own_words.read_trust(data, "file")


def trace(data: bytes) -> None:
    """A trace of conditions."""
    conditions.parse(data.decode("utf-8", "replace"))(0.0)


def recording(data: bytes) -> None:
    """A recording of phones: what is read can be kept, and its devices answer for any moment."""
    path = FOLDER / "recording.json"
    path.write_bytes(data)
    read = traces.read(path)
    traces.save(read, FOLDER / "traces")
    lives = traces.Traces(traces.load(FOLDER / "traces"), 3, 0, repeat=True)
    devices = np.arange(3)
    ready = lives.ready_at(devices, np.zeros(3))
    waits = np.isfinite(ready)
    assert (lives.signals(devices[waits], ready[waits]) == 7).all()


def columns_(data: bytes) -> None:
    """Arrays of a fleet: those that were written, or none."""
    path = FOLDER / "columns.npz"
    path.write_bytes(data)
    read = columns.read(path, {"a": np.int32})
    assert read["a"].dtype == np.int32 and read["a"].nbytes <= len(data)


def files(data: bytes) -> None:
    """A person's own file, of a kind that its first byte chooses: what is imported can be opened,
    and every row was kept or counted.
    """
    path = FOLDER / NAMES[data[0] % len(NAMES) if data else 0]
    path.write_bytes(data[1:])
    report = imported.import_file(path, FOLDER / "imported")
    assert report.rows == report.kept + sum(drop.rows for drop in report.dropped)
    directory.open_directory(FOLDER / "imported")


def corpus(data: bytes) -> None:
    """A corpus directory with a file that was altered: it is not opened."""
    name = directory.FILES[data[0] % len(directory.FILES) if data else 0]
    path = CORPUS / name
    whole = path.read_bytes()
    try:
        path.write_bytes(data[1:])
        directory.open_directory(CORPUS)
        assert data[1:] == whole or name == directory.MARKER
    finally:
        path.write_bytes(whole)


def messages(data: bytes) -> None:
    """Every message a server reads: one that is read can be written and read again."""
    for kind in (
        CheckIn,
        Enrolment,
        Abandon,
        Scores,
        contract.TaskSettings,
        contract.Rollback,
        contract.NewCodes,
        Signed,
        *secagg_wire.SENT.values(),
        *secagg_wire.HEARD.values(),
    ):
        with contextlib.suppress(FedboardError):
            assert config.from_json(
                kind, config.to_json(config.from_json(kind, data, "message")), "message"
            )
    scores = judging.scores_of(data)
    assert (
        isinstance(scores, str)
        or 0 <= scores.top1 <= scores.top3 <= scores.in_vocabulary <= scores.targets <= MOST_WORDS
    )


def proof(data: bytes) -> None:
    """The headers that prove who asks: none that is made up proves anything."""
    names = (
        "content-digest",
        "fedboard-round",
        "fedboard-nonce",
        "fedboard-server",
        "fedboard-time",
        "fedboard-signature",
        "fedboard-task",
        "fedboard-device",
        "authorization",
    )
    headers = dict(zip(names, data.decode("latin-1").split("\n"), strict=False))
    claim = access.proof(headers)
    assert claim is None or not access.is_signed(bytes(32), claim, "GET", "/")
    assert not access.is_token(headers, "a token nobody knows of")


def chain_(data: bytes) -> None:
    """What a certified key and its operator have signed, whatever it is: trusted, or refused in
    words that any terminal prints.
    """
    texts = data.partition(b"\n")[::2]
    if data.isascii():
        certificate, link = (
            signing.sign_text(KEY, purpose, text)
            for purpose, text in zip((chain.CERTIFICATE, chain.LINK), texts, strict=True)
        )
        sha = "ab" * 32
        work = Assignment("a1" * 16, 1, sha, sha, sha, 60.0, certificate=certificate, link=link)
        by = chain.Verifier(frozenset({signing.public_hex(KEY)}), "default", 1.0)
        untrusted = chain.why_untrusted(work, by)
        assert untrusted is None or untrusted.reason.isprintable()


def window(data: bytes) -> None:
    """The range of a download: a window within its 1000 bytes."""
    asked, _, condition = data.decode("latin-1").partition("\n")
    start, end = bodies.window(
        {"range": asked, "if-range": condition} if condition else {"range": asked}, '"tag"', 1000
    ) or (0, 1000)
    assert start >= 0 and end <= 1000


def counted(data: bytes) -> None:
    """An update that a round would count: it moves the mean by no more than an honest one, and the
    sum it is added to is what it holds, as it is read again.
    """
    by, encoded = mechanism.plain(TASK), task.encoding_of(TASK)
    checked = by.check(data, 1)
    if isinstance(checked, sums.Checked):
        added = by.add(by.empty(), [by.weigh(checked, 0)])
        assert added.total.tolist() == checked.codes.tolist()
        assert bytes(sums.Sum.from_bytes(bytes(added.to_bytes())).to_bytes()) == added.to_bytes()
        assert np.linalg.norm(by.finish(added, 1)) <= encoded.bound * encoded.clipping_norm * 1.0001


def helper_(data: bytes) -> None:
    """Every message a helper reads, and its judgement of a set of reports: what no device has
    signed is in no sum.
    """
    for kind in (
        wire_of_helpers.Registration,
        wire_of_helpers.KeysAsked,
        wire_of_helpers.Named,
        wire_of_helpers.AnswerTaken,
    ):
        with contextlib.suppress(FedboardError):
            message = config.from_json(kind, data, "message")
            assert config.from_json(kind, config.to_json(message), "message") == message
            if isinstance(message, wire_of_helpers.Named):
                assert answers.set_digest(message)
                no = answers.why_not(message, SUMMED, Rules("ab" * 32, 1), NOBODY, SEAL_KEYS)
                assert no is not None and config.to_json(no)


def answer(data: bytes) -> None:
    """What a helper answers: its words and what it has spent, as they were written."""
    noised, words = wire_of_helpers.from_answer(data, len(WORDS))
    assert len(words) == len(WORDS)
    again = wire_of_helpers.to_answer(noised, words)
    assert wire_of_helpers.from_answer(again, len(words)) == (noised, words)


def terms(data: bytes) -> None:
    """Terms with noise, as they stand in a certificate: told in words that any terminal prints,
    their masked sums have room for it, and what they spend is a number.
    """
    read = config.from_json(Terms, data, "terms")
    assert config.from_json(Terms, config.to_json(read), "terms").name == read.name
    if read.noise is not None and read.noise.rounds > 1000:  # are worked through one by one
        return
    assert all(each.text.isprintable() for each in exposure.sentences(read))
    layout = read.layout
    assert layout.base > read.largest * read.most + 2 * read.room
    assert layout.base**layout.digits <= 256**layout.size
    cost = spent.of(Part("5e" * 16, "default", "7a" * 16, (1, 3), read.noise))
    assert cost.account.rho >= cost.if_apart.rho >= 0
    agreement.why_exposed(read, agreement.Pins(noise=True, epsilon=8.0, delta=1e-10))


def settings(data: bytes) -> None:
    """A server's settings file."""
    path = FOLDER / "server.toml"
    path.write_bytes(data)
    config.from_toml(ServerSettings, path)


NAMES = ("a.csv", "a.jsonl", "a.json", "_chat.txt", "result.json", "a.parquet", "a.csv.gz")
CORPUS = FOLDER / "corpus"
ROWS = b"user,text\n" + b"".join(b"u%d,hello there\n" % i for i in range(40))
(FOLDER / "rows.csv").write_bytes(ROWS)
imported.import_file(FOLDER / "rows.csv", CORPUS)
TASK = task.Task(
    plan=Plan(clipping_norm=10.0, bits=2),
    seed=1,
    tokenizer="ab" * 32,
    shapes="ab" * 32,
    dimension=3,
    aggregation=Aggregation.PLAIN,
)
UPDATE = updates.of_delta(
    {"a": np.ones(3, np.float32)}, 1, task.terms(TASK), np.random.default_rng(0)
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
CERTIFICATE = chain.Certificate(
    signing.public_hex(KEY),
    *("5e" * 16, "default", "7a" * 16, "default", "ab" * 32, "ab" * 32),
    *(1, 9, 1e9, task.terms(TASK)),
)
LINK = chain.Link("ab" * 32, 0, "ab" * 32)
SUMMED = Task(
    "7a" * 16,
    "default",
    "5e" * 16,
    Kind.TRAINING,
    Terms(Aggregation.HELPER, 4, 1.0, 3, "ab" * 32, 1, 9, 1, 1, helper="ab" * 32),
)
WORDS = bytes(range(64))
ANSWER = wire_of_helpers.to_answer(wire_of_helpers.Noised((1, 7), 9, 0.25, 4.5), WORDS)
NOISE = Noise(Mechanism.BLT, 4.0, 8.0, 1e-10, 100, 6, decays=(0.9, 0.5), scales=(0.25, 0.125))
NOBODY = answers.History({})
PRIVATE = X25519PrivateKey.from_private_bytes(bytes(range(32)))
SEED = bytes(range(32))
ABOUT = masking.Bound(
    *("5e" * 16, "7a" * 16, 1, "ab" * 32, "cd" * 32),
    PRIVATE.public_key().public_bytes_raw().hex(),
)
SEAL = masking.seal(SEED, ABOUT, lambda count: bytes(range(1, count + 1)))
SEAL_KEYS = answers.SealKeys({1: PRIVATE.public_key().public_bytes_raw().hex()}, {1: PRIVATE})
columns.write(FOLDER / "columns.npz", {"a": np.arange(4, dtype=np.int32)})
COLUMNS = (FOLDER / "columns.npz").read_bytes()
READERS = {
    "answer": (answer, ANSWER),
    "terms": (terms, config.to_json(replace(SUMMED.terms, noise=NOISE, compression=4))),
    "helper": (
        helper_,
        b'{"task_id":"'
        + b"7a" * 16
        + b'","round":1,"reports":[{"public_key":"'
        + b"ab" * 32
        + b'","round":1,"seal":"'
        + b"ab" * 80
        + b'","signature":"'
        + b"ab" * 64
        + b'"}]}',
    ),
    "messages": (
        messages,
        b'{"conditions":{"charging":true},"examples":3,"tokenizer":"ab","holds":"",'
        b'"population":"default"}',
    ),
    "proof": (
        proof,
        b"sha-256=:"
        + b"A" * 43
        + b"=:\n7\n"
        + b"0" * 32
        + b"\n"
        + b"0" * 32
        + b"\n1700000000\n"
        + b"A" * 86
        + b"==\ndefault\nab\nBasic Zm9vOmJhcg==",
    ),
    "window": (window, b'bytes=1-5\n"tag"'),
    "counted": (
        counted,
        UPDATE,
    ),
    "settings": (settings, b"[rules]\nreport_goal = 5\n[storage]\nblobs = 's3://a/b'\n"),
    "manifest": (manifest, b'{"format":3,"constants":{"a":{"type":"int8"}},"graph":"00"}'),
    "zip": (zip_, b"PK\x05\x06" + bytes(18)),
    "checkpoint": (checkpoint, OLD),
    "update": (
        update,
        UPDATE,
    ),
    "difference": (difference_, difference.encode(OLD, NEW)),
    "codes": (codes_, codes.encode(PREDICT, PATCHED, CONSTANTS)),
    "index": (index, b'{"offers":[{"statement":{"text":"{}","signer":"","signature":""}}]}'),
    "typing_log": (typing_log, LOG_BYTES),
    "unfinished": (unfinished_, SEALED[:-1] + bytes([SEALED[-1] ^ 1])),
    "outgoing": (outgoing_, SEALED),
    "seal": (seal, SEAL),
    "schedule": (schedule, b'{"asked_at":1.0,"wait_s":2.0,"errors":0}'),
    "chain": (chain_, config.to_json(CERTIFICATE) + b"\n" + config.to_json(LINK)),
    "trace": (trace, b"1\twifi\n"),
    "recording": (
        recording,
        b'{"a":{"messages":"2020-01-29 00:03:34\\tbattery_charged_on\\n'
        b'2020-01-29 00:03:34\\twifi\\n2020-01-29 01:00:00\\tscreen_off\\n","model":"x"}}',
    ),
    "columns": (columns_, COLUMNS),
    "files": (files, b"\0" + ROWS),
    "corpus": (corpus, b"\0" + (CORPUS / directory.DATA).read_bytes()),
}


def main() -> None:
    """Fuzz the reader that the first argument names, by the options of libFuzzer after it."""
    reader, seed = READERS[sys.argv.pop(1)]
    seeds = Path(tempfile.mkdtemp(prefix="fedboard-seeds-"))
    (seeds / "whole").write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(FedboardError):  # refused by name: what a reader is to do
            reader(data)

    atheris.Setup([*sys.argv, str(seeds)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

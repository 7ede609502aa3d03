"""A device on its way to another release: differences, whole bundles, refusals, withdrawals.

The transport is a plain function that hands out blobs by their SHA-256; where bytes and headers
matter, an HTTP server does. Kills are in test_device_runtime_kills.py.
"""

import contextlib
import resource
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import (
    bundle,
    codes,
    config,
    installed,
    interpreter,
    local,
    patch,
    personal,
    releases,
    signing,
    upgrade,
    weights,
)
from device_runtime.bundle import CHECKPOINT, MANIFEST, SIGNATURE
from device_runtime.daemon import Daemon
from device_runtime.errors import RunError, ServerError
from device_runtime.home import BUNDLES, CONFIG, FETCHED, DeviceConfig, Home
from device_runtime.keyboard import Keyboard
from device_runtime.releases import WHOLE, Blob, Newest, Offer, Statement
from device_runtime.transport import Reply, Unreachable, http
from device_runtime.turn import Outcome, Status
from device_runtime.upgrade import Means, follow, remembered
from device_runtime.weights import digest
from model import vocabulary
from tests.test_device_runtime_daemon import ABLE
from tests.test_device_runtime_personal import HABIT, likelier, release

GOLDEN = Path(__file__).parent / "golden"
NOW = 1_000_000.0
UNKNOWN = b'{"cause":"unknown_blob","detail":"none"}'


class Blobs:
    """What a server of releases hands out, and what it was asked for."""

    def __init__(self):
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []

    def put(self, data: bytes) -> str:
        self.blobs[digest(data)] = data
        return digest(data)

    def send(self, method, path, body, headers) -> Reply:
        self.headers.append(dict(headers))
        sha = path.removeprefix("/v1/releases/")
        self.asked.append(sha)
        data = self.blobs.get(sha)
        return Reply(404, body=UNKNOWN) if data is None else Reply(200, body=data)

    def connect(self):
        return contextlib.nullcontext(self.send)


@contextlib.contextmanager
def serving(blobs: Blobs):
    """The address of a server that hands these out."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = blobs.send("GET", self.path, b"", headers)
            with contextlib.suppress(ConnectionError):
                self.send_response(reply.status)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Maker:
    """Who signs releases and puts them on the server."""

    def __init__(self, first, key, folder):
        self.first, self.key, self.folder, self.blobs = first, key, folder, Blobs()
        self.names: dict[int, str] = {}  # manifests by release
        self.signatures: dict[int, bytes] = {}

    def make(self, release: int, key=None, changed=None, **fields) -> bundle.Bundle:
        """A bundle of this release, on the server and in a folder: the first's files but those
        changed.
        """
        key, path = key or self.key, self.folder / f"release-{release}"
        content = {**self.first.content, **(changed or {})}
        manifest = replace(
            self.first.manifest, release=release, files=bundle.describe(content), **fields
        )
        bundle.write(path, manifest, content, key)
        made = bundle.Bundle(path, manifest, content, (path / MANIFEST).read_bytes())
        self.names[release] = self.blobs.put((path / MANIFEST).read_bytes())
        self.signatures[release] = (path / SIGNATURE).read_bytes()
        for data in content.values():
            self.blobs.put(data)
        return made

    def states(self, release: int, share=WHOLE, serial=1, withdrawn=False, **fields) -> Offer:
        table = {"population": "default", "manifest": self.names[release], **fields}
        statement = Statement(release, share=share, serial=serial, withdrawn=withdrawn, **table)
        signed = signing.sign_text(self.key, releases.PURPOSE, config.to_json(statement))
        return Offer(signed, self.signatures[release].decode())

    def index(self, *offers: Offer) -> str:
        return self.blobs.put(config.to_json(Newest(offers)))


@pytest.fixture
def maker(tiny_bundle, signing_key, tmp_path):
    return Maker(tiny_bundle, signing_key, tmp_path)


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted):
    settings = DeviceConfig(tuple(trusted), device_class="low")
    return Home.create(tmp_path / "device", settings, [("i see you", 1.0)], tiny_bundle.path)


@pytest.fixture
def means(maker):
    return Means(maker.blobs.connect, lambda: NOW, sleep=lambda seconds: None)


@pytest.fixture
def over_http(maker, means):
    with serving(maker.blobs) as address:
        yield replace(means, connect=partial(http, address))


def test_a_device_goes_to_the_release_it_is_offered_and_keeps_the_one_before(
    maker, home, over_http
):
    maker.make(1, changed={bundle.BLOCKED: b"dog\n"})
    index = maker.index(maker.states(1))
    done = follow(home, index, over_http)
    assert (home.bundle().manifest.release, home.bundle_before().manifest.release) == (1, 0)
    assert home.bundle().blocked == {"dog"}
    # index, manifest, and the one file that the device had not
    assert maker.blobs.asked == [index, maker.names[1], digest(b"dog\n")]
    expected = sum(len(maker.blobs.blobs[sha]) for sha in maker.blobs.asked)
    assert done.upgraded == upgrade.Upgraded(NOW, 0, 1, expected, 0.0, upgrade.WHOLE)
    assert not (home.folder / FETCHED).exists()


def test_nothing_a_device_says_while_it_fetches_tells_who_it_is(maker, home, over_http):
    maker.make(1)
    follow(home, maker.index(maker.states(1)), over_http)
    assert len(maker.blobs.headers) == 2
    for headers in maker.blobs.headers:
        assert not any(name.startswith("fedboard") for name in headers)
        assert "cookie" not in headers


def runs(home) -> int:
    return home.bundle().manifest.release


def test_a_device_outside_of_the_share_stays_and_comes_when_the_share_is_raised(maker, home, means):
    maker.make(1)
    place = releases.uniform(upgrade.secret_of(home), maker.names[1])
    outside, inside = int(place * WHOLE), int(place * WHOLE) + 1
    assert follow(home, maker.index(maker.states(1, share=outside)), means).upgraded is None
    assert runs(home) == 0
    follow(home, maker.index(maker.states(1, share=inside, serial=2)), means)
    assert runs(home) == 1


def test_an_index_that_was_followed_is_not_looked_at_again_and_another_one_is(maker, home, means):
    maker.make(1)
    first = maker.index(maker.states(1, share=0))
    assert upgrade.is_due(home, first, NOW)
    follow(home, first, means)
    assert not upgrade.is_due(home, first, NOW + 1e6)
    assert not upgrade.is_due(home, "", NOW)
    assert upgrade.is_due(home, maker.index(maker.states(1)), NOW)


def test_a_withdrawn_release_is_left_for_the_last_good_one_without_a_download(maker, home, means):
    maker.make(1)
    follow(home, maker.index(maker.states(1)), means)
    withdrawn = maker.index(maker.states(1, serial=2, withdrawn=True))
    maker.blobs.asked.clear()
    done = follow(home, withdrawn, means)
    assert runs(home) == 0
    assert maker.blobs.asked == [withdrawn]
    assert (done.upgraded.before, done.upgraded.release, done.upgraded.how) == (1, 0, upgrade.BACK)
    # the one that was withdrawn is no last good one
    assert home.bundle_before() is None


def test_after_a_withdrawal_an_earlier_statement_brings_nothing_back_and_a_later_release_does(
    maker, home, means
):
    maker.make(1)
    maker.make(2)
    maker.make(3)
    follow(home, maker.index(maker.states(2)), means)
    follow(home, maker.index(maker.states(2, serial=2, withdrawn=True), maker.states(1)), means)
    assert runs(home) == 1
    follow(home, maker.index(maker.states(2), maker.states(1)), means)  # said before
    assert runs(home) == 1
    follow(home, maker.index(maker.states(3)), means)
    assert runs(home) == 3
    assert installed.pointer_of(home.folder / BUNDLES).release == 3


def test_a_lower_release_is_not_gone_to_and_what_was_installed_by_hand_is_no_reason(
    maker, home, means
):
    maker.make(1)
    maker.make(5)
    home.install(maker.folder / "release-5")
    assert follow(home, maker.index(maker.states(1)), means).upgraded is None
    assert runs(home) == 5


def refused(home, maker, means, index: str) -> str:
    """Why the only release of an index is refused; it is not asked for again."""
    before = home.bundle().manifest
    done = follow(home, index, means)
    assert done.upgraded is None
    assert home.bundle().manifest == before
    assert not (home.folder / FETCHED).exists()
    # the next index names it too
    maker.make(9)
    again = maker.index(maker.states(9, share=0), *_offers(maker, index))
    maker.blobs.asked.clear()
    assert follow(home, again, means).refused == ()
    assert maker.blobs.asked == [again]
    assert [each.why for each in remembered(home).refused] == [done.refused[0].why]
    return done.refused[0].why


def _offers(maker, index):
    return config.from_json(Newest, maker.blobs.blobs[index], "index").offers


def passed_over(home, means, index: str) -> str:
    """Why the only release of an index is not gone to, and nothing is remembered against it."""
    done = follow(home, index, means)
    assert (done.upgraded, runs(home)) == (None, 0)
    assert not upgrade.is_due(home, index, NOW)
    assert remembered(home).refused == ()
    return done.refused[0].why


def test_a_manifest_that_a_stranger_signed_is_not_gone_to(maker, home, means):
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    maker.make(1, key=stranger)
    why = passed_over(home, means, maker.index(maker.states(1)))
    assert "signed by a key that is not trusted" in why


def test_what_a_server_altered_beside_a_statement_keeps_nobody_from_the_release(maker, home, means):
    maker.make(1)
    maker.make(2)
    altered = replace(maker.states(1), signature=maker.signatures[2].decode())
    why = passed_over(home, means, maker.index(altered))
    assert "manifest.json: altered: its signature does not match" in why
    follow(home, maker.index(maker.states(1)), means)
    assert runs(home) == 1


def test_a_manifest_of_another_release_than_stated_waits_for_a_statement_of_its_own(
    maker, home, means
):
    maker.make(3)
    maker.names[4], maker.signatures[4] = maker.names[3], maker.signatures[3]
    why = passed_over(home, means, maker.index(maker.states(4)))
    assert "expected release 4, as was stated, found 3" in why
    follow(home, maker.index(maker.states(3, serial=2)), means)
    assert runs(home) == 3


def test_a_bundle_that_lies_there_stated_as_a_higher_release_keeps_nobody_from_the_next_best(
    maker, home, means
):
    maker.make(1)
    maker.make(2)
    maker.make(3)
    follow(home, maker.index(maker.states(1)), means)
    follow(home, maker.index(maker.states(2)), means)
    maker.names[9], maker.signatures[9] = maker.names[1], maker.signatures[1]
    done = follow(home, maker.index(maker.states(9, serial=2), maker.states(3)), means)
    assert "expected release 9, as was stated, found 1" in done.refused[0].why
    assert runs(home) == 3


def test_a_release_for_a_later_runtime_is_refused(maker, home, means, monkeypatch):
    tflite = [interpreter.Runtime("tflite-runtime", "2.14.0")]
    monkeypatch.setattr(interpreter, "installed", lambda: tflite)
    monkeypatch.setenv(interpreter.CHOICE, "tflite-runtime")
    maker.make(1, minimum_runtime="99.0.0")
    why = refused(home, maker, means, maker.index(maker.states(1)))
    assert "needs tflite-runtime 99.0.0 or later" in why


def test_a_release_for_another_class_of_devices_is_refused_and_one_for_its_own_is_not(
    maker, home, means
):
    maker.make(2, device_class="low")
    follow(home, maker.index(maker.states(2)), means)
    assert runs(home) == 2
    maker.make(3, device_class="high")
    why = refused(home, maker, means, maker.index(maker.states(3)))
    assert "expected a release for devices of class `low`, found one for `high`" in why


def test_what_was_refused_is_looked_at_again_on_a_device_of_another_class_or_runtime(
    maker, home, means
):
    maker.make(1, device_class="high")
    index = maker.index(maker.states(1))
    assert len(follow(home, index, means).refused) == 1
    assert not upgrade.is_due(home, index, NOW)
    (home.folder / CONFIG).write_text(config.to_toml(replace(home.config, device_class="high")))
    other = Home.open(home.folder)
    assert upgrade.is_due(other, index, NOW)
    assert follow(other, index, means).upgraded.release == 1


@pytest.mark.parametrize("broken", ["other graph", "no graph"])
def test_a_release_that_does_not_predict_is_refused(maker, home, means, broken):
    graph = maker.first.train_graph if broken == "other graph" else b"no flatbuffer" * 100
    maker.make(1, changed={bundle.PREDICT: graph}, constants=None, graph=None)
    why = refused(home, maker, means, maker.index(maker.states(1)))
    assert "expected probabilities of all words of its vocabulary that sum to 1, found" in why


def test_a_release_larger_than_any_is_refused_before_its_files_are_fetched(maker, home, means):
    made = maker.make(1)
    files = {**made.manifest.files, CHECKPOINT: bundle.File(1 << 40, "ab" * 32)}
    manifest = replace(made.manifest, files=files)
    bundle.write(maker.folder / "large", manifest, made.content, maker.key)
    maker.names[1] = maker.blobs.put((maker.folder / "large" / MANIFEST).read_bytes())
    maker.signatures[1] = (maker.folder / "large" / SIGNATURE).read_bytes()
    why = refused(home, maker, means, maker.index(maker.states(1)))
    assert "expected at most 67,108,864 bytes" in why


def test_a_refused_release_is_passed_over_for_the_next_best(maker, home, means):
    maker.make(1)
    broken = {bundle.PREDICT: b"no flatbuffer" * 100}
    maker.make(2, changed=broken, constants=None, graph=None)
    done = follow(home, maker.index(maker.states(2), maker.states(1)), means)
    assert [each.release for each in done.refused] == [2]
    assert (runs(home), done.upgraded.release) == (1, 1)


def test_what_another_population_or_another_maker_states_is_left_out(maker, home, means):
    maker.make(1)
    foreign = maker.states(1, population="other")
    done = follow(home, maker.index(foreign), means)
    assert runs(home) == 0
    assert "for `default`, found format 1 for `other`" in done.left_out[0]
    assert remembered(home).known == ()


@pytest.mark.parametrize("data", [b"", b"[1, 2", b'{"offers": 1}'])
def test_an_index_that_is_none_is_not_fetched_again(maker, home, means, data):
    index = maker.blobs.put(data)
    assert "index of releases" in follow(home, index, means).left_out[0]
    assert not upgrade.is_due(home, index, NOW)


# --- differences
# ------------------------------------------------------------------------------------------------


def other_weights(maker, seed: int) -> dict[str, bytes]:
    """The files of weights a little different, as a maker packages them."""
    rng, first = np.random.default_rng(seed), maker.first
    moved = {
        name: array + rng.normal(0, 0.02, array.shape) for name, array in first.weights.items()
    }
    values = {name: np.float16(array).astype(np.float32) for name, array in moved.items()}
    return {
        bundle.PREDICT: patch.predict(first.predict_graph, first.manifest.constants, values),
        CHECKPOINT: weights.to_bytes(replace(first.checkpoint, weights=values), np.float16),
    }


def with_difference(maker, release: int, difference: bytes, since: int = 0) -> Offer:
    """What is offered of a release, with what makes its predict.tflite of an older one."""
    name = maker.names[since]
    blob = Blob(maker.blobs.put(difference), len(difference))
    return replace(maker.states(release), differences={name: blob})


@pytest.fixture
def changed(maker):
    """Files of another release, and the difference from those of the first."""
    files = other_weights(maker, 1)
    maker.names[0] = digest(maker.first.encoded)
    old, new = maker.first.predict_graph, files[bundle.PREDICT]
    return files, codes.encode(old, new, maker.first.manifest.constants)


def test_other_weights_of_the_same_graph_come_as_a_difference_and_without_their_checkpoint(
    maker, home, over_http, changed
):
    files, difference = changed
    maker.make(1, changed=files)
    index = maker.index(with_difference(maker, 1, difference))
    done = follow(home, index, over_http)
    assert maker.blobs.asked == [index, maker.names[1], digest(difference)]
    asked = sum(len(maker.blobs.blobs[sha]) for sha in maker.blobs.asked)
    assert (done.upgraded.how, done.upgraded.bytes_down) == (upgrade.DIFFERENCE, asked)
    now = home.bundle()
    assert (now.manifest.release, now.is_lean) == (1, True)
    assert now.predict_graph == files[bundle.PREDICT]
    # within half a step of the codes of those that were signed, all together
    signed = weights.from_bytes(files[CHECKPOINT]).weights
    apart = weights.norm(weights.subtract(now.weights, signed))
    assert 0 < apart <= local.rounding(now) < 0.1 * weights.norm(signed)
    assert local.rounding(maker.first) == 0


@pytest.mark.parametrize("spoil", ["none", "damaged", "of another", "lost", "as large"])
def test_without_a_difference_that_does_it_the_whole_file_comes(maker, home, means, changed, spoil):
    files, difference = changed
    maker.make(1, changed=files)
    offered = with_difference(maker, 1, difference)
    if spoil == "none":
        offered = replace(offered, differences={})
    elif spoil == "damaged":
        offered = with_difference(maker, 1, difference[:-9] + bytes(9))
    elif spoil == "of another":
        other = other_weights(maker, 2)[bundle.PREDICT]
        constants = maker.first.manifest.constants
        between = codes.encode(other, files[bundle.PREDICT], constants)
        offered = with_difference(maker, 1, between)
    elif spoil == "lost":
        del maker.blobs.blobs[digest(difference)]
    elif spoil == "as large":
        offered = with_difference(maker, 1, bytes(len(files[bundle.PREDICT])))
    index = maker.index(offered)
    done = follow(home, index, means)
    assert done.refused == ()
    assert digest(files[bundle.PREDICT]) in maker.blobs.asked
    assert digest(files[CHECKPOINT]) not in maker.blobs.asked
    assert home.bundle().predict_graph == files[bundle.PREDICT]


def test_differences_that_help_nobody_do_not_fill_the_disk(maker, home, means, changed):
    files, _ = changed
    maker.make(1, changed=files)
    del maker.blobs.blobs[digest(files[bundle.PREDICT])]
    for number in range(3):
        index = maker.index(with_difference(maker, 1, bytes([number]) * 1000))
        failed(home, index, means, "refused with 404")
    assert {path.name for path in (home.folder / FETCHED).iterdir()} == {maker.names[1]}


def test_parts_of_releases_that_never_came_are_bounded(maker, home, means):
    maker.make(1, changed={bundle.BLOCKED: b"dog\n", bundle.CARD: b"another card"})
    index = maker.index(maker.states(1))
    del maker.blobs.blobs[digest(b"dog\n")]
    failed(home, index, means, "refused with 404")
    with (home.folder / FETCHED / "older").open("wb") as file:
        file.truncate(upgrade.MOST_BUNDLE + 1)
    with pytest.raises(ServerError, match="refused with 404"):
        follow(home, index, means)
    assert "older" not in {path.name for path in (home.folder / FETCHED).iterdir()}


def test_a_network_that_breaks_off_in_a_difference_is_no_reason_for_the_whole_file(
    maker, home, means, changed
):
    files, difference = changed
    maker.make(1, changed=files)

    def send(method, path, body, headers):
        if path.endswith(digest(difference)):
            raise Unreachable(path, "no connection", "wait")
        return maker.blobs.send(method, path, body, headers)

    index = maker.index(with_difference(maker, 1, difference))
    broken = replace(means, connect=lambda: contextlib.nullcontext(send))
    failed(home, index, broken, "no connection")
    assert digest(files[bundle.PREDICT]) not in maker.blobs.asked


def test_a_lean_release_goes_on_to_the_next_one_and_back(maker, home, means, changed):
    files, difference = changed
    maker.make(1, changed=files)
    follow(home, maker.index(with_difference(maker, 1, difference)), means)
    later = other_weights(maker, 2)
    maker.make(2, changed=later)
    constants = maker.first.manifest.constants
    further = codes.encode(files[bundle.PREDICT], later[bundle.PREDICT], constants)
    offered = with_difference(maker, 2, further, since=1)
    done = follow(home, maker.index(offered), means)
    assert (done.upgraded.how, home.bundle().is_lean) == (upgrade.DIFFERENCE, True)
    assert home.bundle_before().is_lean
    done = follow(home, maker.index(maker.states(2, serial=2, withdrawn=True)), means)
    assert (done.upgraded.how, runs(home), home.bundle().is_lean) == (upgrade.BACK, 1, True)
    # what it holds for rounds is the first release's, which tells nothing of those
    assert home.held_checkpoint() == maker.first.manifest.files[CHECKPOINT].sha256


def test_another_graph_is_a_whole_bundle_by_the_same_route(maker, home, means):
    maker.first = bundle.open_verified(
        GOLDEN / "bundle.zip", frozenset((GOLDEN / "bundle.pub").read_text().split())
    )
    made = maker.make(1)
    done = follow(home, maker.index(maker.states(1)), means)
    assert (done.upgraded.how, home.bundle().is_lean) == (upgrade.WHOLE, False)
    assert digest(made.content[bundle.PREDICT]) in maker.blobs.asked


def test_a_bundle_of_format_2_is_left_for_one_of_format_3_and_gone_back_to(
    maker, tmp_path, means, trusted
):
    nothing = {"constants": None, "graph": None, "device_class": None}
    maker.make(1, format=2, **nothing)
    maker.make(2)
    settings = DeviceConfig(tuple(trusted))
    messages = [("i see you", 1.0)]
    home = Home.create(tmp_path / "old", settings, messages, maker.folder / "release-1")
    done = follow(home, maker.index(maker.states(2)), means)
    assert (done.upgraded.how, home.bundle().manifest.format) == (upgrade.WHOLE, 3)
    follow(home, maker.index(maker.states(2, serial=2, withdrawn=True)), means)
    assert (runs(home), home.bundle().manifest.format) == (1, 2)
    with home.typing_log() as log:
        assert [each.text for each in log.records(9)] == ["i see you"]


def test_another_vocabulary_is_a_whole_bundle_and_what_was_typed_carries_over(
    maker, home, means, tiny_vocabulary
):
    with home.typing_log() as log:
        log.append_many([("the quagga sees the quagga", 2.0)] * 2)
    made_up = [a + b for a in "abcde" for b in "vwxyz"]
    # as many ids, so that the graph serves
    others = [vocabulary.build([["grazes", "grazes", *made_up]], size) for size in range(20, 28)]
    other = next(each for each in others if len(each) == len(tiny_vocabulary)).model
    files = {**other_weights(maker, 1), bundle.TOKENIZER: other}
    maker.make(1, changed=files, tokenizer=digest(other))
    maker.names[0] = digest(maker.first.encoded)
    done = follow(home, maker.index(with_difference(maker, 1, b"of no use")), means)
    assert (done.upgraded.how, home.bundle().is_lean) == (upgrade.WHOLE, False)
    with home.typing_log() as log:
        assert log.count() == 3
    with Keyboard(home, home.bundle()) as keyboard:
        assert [each.word for each in keyboard.suggest("the quag")] == ["quagga"]


def test_another_vocabulary_without_its_whole_bundle_is_said_and_the_strip_goes_on(
    maker, home, means
):
    other = maker.first.content[bundle.TOKENIZER] + b"\0"
    changed = {**other_weights(maker, 1), bundle.TOKENIZER: other}
    maker.make(1, changed=changed, tokenizer=digest(other))
    del maker.blobs.blobs[digest(changed[CHECKPOINT])]
    failed(home, maker.index(maker.states(1)), means, "refused with 404 unknown_blob")
    assert Keyboard(home, home.bundle()).suggest("i will ")


# --- what may go better later
# ------------------------------------------------------------------------------------------------


def failed(home, index, means, match: str) -> None:
    """An upgrade that fails: the device goes on, and waits before it tries this index again."""
    with pytest.raises((ServerError, RunError), match=match):
        follow(home, index, means)
    assert runs(home) == 0
    assert not upgrade.is_due(home, index, NOW)
    assert not upgrade.is_due(home, index, NOW + 3599)
    assert upgrade.is_due(home, index, NOW + 3600)


def test_a_file_that_the_server_lacks_or_damaged_is_tried_again_later(maker, home, means):
    maker.make(1, changed={bundle.BLOCKED: b"dog\n", bundle.CARD: b"another card"})
    index = maker.index(maker.states(1))
    maker.blobs.blobs[digest(b"dog\n")] = b"cat\n"
    failed(home, index, means, "4 bytes it sent have another SHA-256")
    del maker.blobs.blobs[digest(b"dog\n")]
    with pytest.raises(ServerError, match="refused with 404"):
        follow(home, index, means)
    assert not upgrade.is_due(home, index, NOW + 7199)  # twice as long after the second
    maker.blobs.put(b"dog\n")
    maker.blobs.asked.clear()
    follow(home, index, means)
    assert runs(home) == 1
    # what had come already is not fetched again
    assert maker.blobs.asked == [index, digest(b"dog\n")]
    assert remembered(home).failed is None


def test_waits_double_up_to_a_day_and_a_clock_that_went_back_lengthens_none():
    waits = [upgrade.Failed("ab" * 32, NOW, times, "").waits(NOW) for times in (1, 2, 5, 6, 1000)]
    assert waits == [3600, 7200, 57_600, 86_400, 86_400]
    assert upgrade.Failed("ab" * 32, NOW, 1, "").waits(0.0) == 3600
    assert upgrade.Failed("ab" * 32, NOW, 1, "").waits(NOW + 5000) == 0


def test_a_server_that_sends_more_than_the_manifest_says_is_cut_off(maker, home, over_http):
    maker.make(1, changed={bundle.BLOCKED: b"dog\n"})
    maker.blobs.blobs[digest(b"dog\n")] = bytes(5000)
    failed(home, maker.index(maker.states(1)), over_http, "expected at most 4096 bytes, found more")


def test_an_index_without_end_is_cut_off(maker, home, over_http):
    sha = "ab" * 32
    maker.blobs.blobs[sha] = bytes(releases.INDEX_BYTES + 1)
    failed(home, sha, over_http, "expected at most 262144 bytes, found more")


def test_a_disk_without_room_is_found_before_anything_is_fetched(maker, home, means, monkeypatch):
    monkeypatch.setattr(upgrade, "ROOM", 1 << 60)
    maker.make(1, changed={bundle.BLOCKED: b"dog\n"})
    index = maker.index(maker.states(1))
    failed(home, index, means, "bytes free for a release, found")
    assert maker.blobs.asked == [index, maker.names[1]]


def test_a_disk_that_fills_up_meanwhile_refuses_no_release(maker, home, means):
    maker.make(1, changed={bundle.CARD: bytes(200_000)})
    index = maker.index(maker.states(1))
    with files_up_to(100_000):
        failed(home, index, means, "release: cannot be written")
    assert remembered(home).refused == ()
    follow(home, index, means)
    assert runs(home) == 1


@contextlib.contextmanager
def files_up_to(size: int):
    """No file of this process grows larger: an operating system's refusal, as of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_network_that_is_lost_ends_it_between_two_files_and_the_parts_wait(maker, home, means):
    maker.make(1, changed={bundle.BLOCKED: b"dog\n", bundle.CARD: b"another card"})
    index = maker.index(maker.states(1))
    answers = iter([True, True, True, False])
    broken = replace(means, may_go_on=lambda: next(answers))
    failed(home, index, broken, "expected an unmetered network")
    assert len(list((home.folder / FETCHED).iterdir())) == 2
    maker.blobs.asked.clear()
    follow(home, index, means)
    assert len(maker.blobs.asked) == 2
    assert runs(home) == 1


# --- after a turn
# ------------------------------------------------------------------------------------------------


def test_after_a_turn_a_device_goes_to_the_release_it_was_told_of(maker, home, means):
    maker.make(1)
    told = Outcome(Status.COUNTED, releases=maker.index(maker.states(1)))
    assert upgrade.after(replace(told, status=Status.PAUSED), home, means) is None
    assert upgrade.after(told, home, replace(means, may_go_on=lambda: False)) is None
    assert upgrade.after(replace(told, releases=""), home, means) is None
    assert maker.blobs.asked == []
    assert upgrade.after(told, home, means).upgraded.release == 1


def test_a_failing_upgrade_never_fails_the_turn(maker, home, means, caplog):
    told = Outcome(Status.COUNTED, releases="ab" * 32)
    assert upgrade.after(told, home, means) is None
    assert "no other release: GET /v1/releases/abab" in caplog.text

    @contextlib.contextmanager
    def faulty():
        raise ZeroDivisionError("what was typed")
        yield

    other = Outcome(Status.COUNTED, releases="cd" * 32)
    assert upgrade.after(other, home, replace(means, connect=faulty)) is None
    assert "failed with ZeroDivisionError" in caplog.text
    assert "what was typed" not in caplog.text


# --- what carries over
# ------------------------------------------------------------------------------------------------


def test_the_old_checkpoint_is_held_and_no_check_in_tells_the_new_release(maker, home, means):
    maker.make(1, changed={bundle.BLOCKED: b"dog\n"})
    assert home.held_checkpoint() is None
    assert not upgrade.has_upgraded(home)
    follow(home, maker.index(maker.states(1)), means)
    old = maker.first.content[CHECKPOINT]
    assert home.checkpoint() == old
    assert upgrade.has_upgraded(home)
    home.keep_checkpoint(digest(b"of a round"), b"of a round")
    maker.make(2)
    follow(home, maker.index(maker.states(2)), means)
    assert home.checkpoint() == b"of a round"


def test_the_age_of_the_weights_goes_on(maker, home, means):
    old = maker.first.manifest.files[CHECKPOINT].sha256
    assert home.age_of(old, 100.0) == 0
    home.go_on_counting(old, "ab" * 32)
    assert home.age_of("ab" * 32, 500.0) == 400
    home.go_on_counting("cd" * 32, old)  # of another bundle: begins anew
    assert home.age_of(old, 500.0) == 0


def test_a_device_that_uses_a_bundle_in_place_gets_its_own_and_its_open_keyboard_too(
    maker, tmp_path, trusted, means
):
    path = str(maker.first.path)
    phone = Home.create(tmp_path / "phone", DeviceConfig(tuple(trusted), path), [])
    with Keyboard(phone, phone.bundle()) as keyboard:
        best = keyboard.suggest("i will ")[0].word
        maker.make(1, changed={bundle.BLOCKED: best.encode()})
        follow(phone, maker.index(maker.states(1)), means)
        assert (runs(phone), phone.bundle_before().manifest.release) == (1, 0)
        assert best not in [each.word for each in keyboard.suggest("i will ")]
        follow(phone, maker.index(maker.states(1, serial=2, withdrawn=True)), means)
        assert runs(phone) == 0
        assert keyboard.suggest("i will ")[0].word == best


def test_a_device_whose_pointer_is_damaged_comes_to_the_next_release(maker, home, means):
    maker.make(1)
    maker.make(2)
    follow(home, maker.index(maker.states(1)), means)
    (home.folder / BUNDLES / installed.POINTER).write_bytes(b"{")
    assert runs(home) == 1
    follow(home, maker.index(maker.states(1)), means)  # nothing to go to
    assert (runs(home), home.installed().problem) == (1, None)
    (home.folder / BUNDLES / installed.POINTER).write_bytes(b"")
    follow(home, maker.index(maker.states(2)), means)
    assert (runs(home), home.bundle_before().manifest.release) == (2, 1)


def test_a_damaged_memory_begins_anew_and_is_bounded(maker, home, means):
    home.keep("releases.json", b"\xff")
    assert (remembered(home).known, remembered(home).refused) == ((), ())
    known = tuple(Statement(n + 1, f"{n:064x}", "default", 0, 1) for n in range(256))
    home.keep("releases.json", config.to_json(upgrade.Remembered(known)))
    maker.make(1000)
    follow(home, maker.index(maker.states(1000)), means)
    kept = remembered(home).known
    assert (len(kept), kept[0].release, kept[-1].release) == (256, 1000, 2)


def test_a_device_that_lost_its_memory_of_upgrades_tells_no_check_in_what_it_runs(
    maker, home, means
):
    assert not upgrade.has_upgraded(home)
    maker.make(1)
    follow(home, maker.index(maker.states(1)), means)
    home.keep("releases.json", b"\xff")
    assert upgrade.has_upgraded(home)
    follow(home, maker.index(maker.states(1, serial=2)), means)  # it is written anew
    assert upgrade.has_upgraded(home)


def test_wiping_everything_takes_what_was_learned_of_releases_too(maker, home, means):
    maker.make(1, changed={bundle.BLOCKED: b"dog\n"})
    answers = iter([True, True, False])
    with pytest.raises(RunError):
        follow(home, maker.index(maker.states(1)), replace(means, may_go_on=lambda: next(answers)))
    assert (home.folder / FETCHED).exists()
    home.wipe(everything=True)
    assert not home.folder.exists()


def test_what_was_served_of_the_users_own_is_judged_beside_the_new_release_in_the_same_window(
    maker, tmp_path, tiny_bundle, trusted, over_http
):
    (tmp_path / "trace.tsv").write_text(ABLE)
    settings = DeviceConfig(tuple(trusted), conditions=str(tmp_path / "trace.tsv"))
    typed = [(text, float(at)) for at, text in enumerate(HABIT * 20)]
    home = Home.create(tmp_path / "user", settings, typed, tiny_bundle.path)
    first = personal.update(home, home.bundle(), 100.0, lambda: True)
    maker.make(1, changed=release(tiny_bundle, likelier(tiny_bundle, "house")).content)
    device = Daemon(home, lambda *request: None, lambda: NOW)
    device.follow_releases(over_http.connect)
    device.upgrade(Outcome(Status.COUNTED, releases=maker.index(maker.states(1))))
    assert runs(home) == 1
    assert personal.served(home, home.bundle()).name == first.weights
    assert personal.verdict(home).at == NOW
    withdrawn = maker.index(maker.states(1, serial=2, withdrawn=True))
    device.upgrade(Outcome(Status.COUNTED, releases=withdrawn))
    assert runs(home) == 0
    assert personal.served(home, home.bundle()).name == first.weights

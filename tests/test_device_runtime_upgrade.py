"""A device on its way to another release: whole bundles, refusals, withdrawals.

The server is a plain HTTP server that hands out blobs by their SHA-256, so each byte is counted on
a real socket. Kills are in test_device_runtime_kills.py.
"""

import contextlib
import json
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime import bundle, config, installed, releases, signing, upgrade
from device_runtime.bundle import CHECKPOINT, MANIFEST, SIGNATURE
from device_runtime.errors import RunError, ServerError
from device_runtime.home import BUNDLES, FETCHED, DeviceConfig, Home
from device_runtime.releases import WHOLE, Newest, Offer, Statement
from device_runtime.transport import http
from device_runtime.turn import Outcome, Status
from device_runtime.upgrade import Means, follow, remembered
from device_runtime.weights import digest

NOW = 1_000_000.0


class Blobs:
    """What a server of releases hands out, and what it was asked for."""

    def __init__(self):
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []

    def put(self, data: bytes) -> str:
        self.blobs[digest(data)] = data
        return digest(data)

    def get(self, path: str, headers: dict[str, str]) -> bytes | None:
        self.headers.append(headers)
        sha = path.removeprefix("/v1/releases/")
        self.asked.append(sha)
        return self.blobs.get(sha)


@contextlib.contextmanager
def serving(blobs: Blobs):
    """The address of a server that hands these out."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = blobs.get(self.path, {k.lower(): v for k, v in self.headers.items()})
            body = b'{"cause":"not_found","detail":"none"}' if data is None else data
            with contextlib.suppress(ConnectionError):
                self.send_response(404 if data is None else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

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
        self.names[release] = self.blobs.put((path / MANIFEST).read_bytes())
        self.signatures[release] = (path / SIGNATURE).read_bytes()
        for data in content.values():
            self.blobs.put(data)
        return bundle.open_verified(path, frozenset({signing.public_hex(key)}))

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
def address(maker):
    with serving(maker.blobs) as address:
        yield address


@pytest.fixture
def home(tmp_path, tiny_bundle, trusted):
    settings = DeviceConfig(tuple(trusted), device_class="low")
    return Home.create(tmp_path / "device", settings, [("i see you", 1.0)], tiny_bundle.path)


@pytest.fixture
def means(address):
    return Means(partial(http, address), lambda: NOW, sleep=lambda seconds: None)


def test_a_device_goes_to_the_release_it_is_offered_and_keeps_the_one_before(maker, home, means):
    maker.make(1, changed={bundle.BLOCKED: b"dog\n"})
    index = maker.index(maker.states(1))
    done = follow(home, index, means)
    assert (home.bundle().manifest.release, home.bundle_before().manifest.release) == (1, 0)
    assert home.bundle().blocked == {"dog"}
    # index, manifest, and the one file that the device had not
    assert maker.blobs.asked == [index, maker.names[1], digest(b"dog\n")]
    expected = sum(len(maker.blobs.blobs[sha]) for sha in maker.blobs.asked)
    assert done.upgraded == upgrade.Upgraded(NOW, 0, 1, expected, 0.0, upgrade.WHOLE)
    assert not (home.folder / FETCHED).exists()


def test_nothing_a_device_says_while_it_fetches_tells_who_it_is(maker, home, means):
    maker.make(1)
    follow(home, maker.index(maker.states(1)), means)
    assert len(maker.blobs.headers) == 2
    for headers in maker.blobs.headers:
        assert not any(name.startswith("fedboard") for name in headers)
        assert "cookie" not in headers

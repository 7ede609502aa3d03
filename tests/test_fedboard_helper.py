"""`fedboard helper`: the process, what it says of itself, and how it comes back. Real processes."""

import contextlib
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from device_runtime import chain, config, signing
from device_runtime.helper_wire import HelperReport, KeysAsked, Registration, SealKey, SealKeys
from device_runtime.terms import LEAST_COUNT
from fedboard.__main__ import program
from fedboard.cli import main
from tests.toy_helper import OPERATOR, SERVER, TASK_ID, TERMS, Report, expected, named, opened
from tests.toy_helper import report as of_device


class Running:
    """A helper's process, its log, and its leader's client."""

    def __init__(self, folder: Path, *options: object):
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        (folder / "address").unlink(missing_ok=True)
        command = program("helper", "--dir", folder, "--port", 0, *options)
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        token = (folder / "helper.token").read_text().strip()
        self.client = httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {token}"}, timeout=30.0
        )

    @property
    def url(self) -> str:
        return (self.folder / "address").read_text().strip()

    def report(self) -> HelperReport:
        return config.from_json(HelperReport, self.client.get("/v1/helper").content, "reply")

    def post(self, path: str, message: object) -> bytes:
        reply = self.client.post(path, content=config.to_json(message))
        assert reply.status_code == 200, reply.text
        return reply.content

    def end(self, how: int = signal.SIGTERM) -> int:
        self.client.close()
        self.process.send_signal(how)
        return self.process.wait(timeout=30)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except (OSError, httpx.HTTPError):
            return False


@contextlib.contextmanager
def running(folder: Path, *options: object):
    helper = Running(folder, *options)
    try:
        yield helper
    finally:
        if helper.process.poll() is None:
            helper.end()


def test_a_helper_that_is_killed_comes_back_with_its_key_and_its_answers(tmp_path):
    folder = tmp_path / "helper"
    with running(folder, "--least", 3) as helper:
        identity = helper.report().helper
        terms = replace(TERMS, helper=identity)
        text = config.to_json(
            chain.Certificate(
                "0e" * 32, SERVER, "words", TASK_ID, "default", "aa" * 32, "bb" * 32, 1, 9, 1e11,
                terms,
            )
        )  # fmt: skip
        certificate = signing.sign_text(OPERATOR, chain.CERTIFICATE, text)
        helper.post("/v1/tasks", Registration(certificate, "words", TASK_ID))
        given = helper.post("/v1/seal-keys", KeysAsked(TASK_ID, 1))
        (signed,) = config.from_json(SealKeys, given, "reply").keys
        seal_key = config.from_json(SealKey, signed.text.encode(), "key").key
        sent: list[Report] = [of_device(number, 1, seal_key, terms) for number in range(3)]
        mask = helper.post("/v1/answers", named(sent, 1))
        assert opened(mask, sent, terms) == expected(sent)
        for path in ("helper.key", "helper.token", "keys", "answers"):
            assert (folder / path).stat().st_mode & 0o077 == 0
        assert helper.end(signal.SIGKILL) == -signal.SIGKILL
    with running(folder, "--least", 3, "--max-epsilon", 8) as helper:
        assert (helper.report().helper, helper.report().answers) == (identity, 1)
        assert helper.post("/v1/answers", named(sent[::-1], 1)) == mask
        # beside the one that runs no other starts
        command = program("helper", "--dir", folder, "--port", 0)
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "another server is using this folder" in done.stderr
        assert helper.report().answers == 1
    said = helper.log.read_text()
    for part in (
        f"helper {identity}",
        f"its leader needs the token in {folder / 'helper.token'}",
        "together with the server whose sums it opens it could read every update",
        f"expected at least {LEAST_COUNT}: among few, one is easily guessed",
        "it serves tasks signed by anybody",
        "a server could invent some to fill a sum around one",
        "it adds noise to the sums of a task whose terms have some",
        "--require-noise serves none",
        "it serves no task with a budget larger than epsilon 8 at a delta of at most 1e-05",
    ):
        assert part in said
    for each in sent:
        assert each.sealed.public_key not in said and each.seed.hex() not in said


@pytest.fixture
def fails(capfd, monkeypatch):
    """The one line that a command ends with."""

    def run(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["fedboard", "helper", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        (line,) = capfd.readouterr().err.strip().splitlines()
        return line

    return run


def test_what_keeps_a_helper_from_starting_is_one_line_and_changes_nothing(tmp_path, fails):
    folder, strange = tmp_path / "helper", tmp_path / "strange"
    assert "other machines could read along" in fails("--dir", folder, "--host", "0.0.0.0")
    no_key = tmp_path / "no.pub"
    no_key.write_text("no key")
    for option in ("--trust", "--enrolment-key"):
        assert "expected a public key" in fails("--dir", folder, option, no_key)
    certificate = tmp_path / "none.pem"
    line = fails("--dir", folder, "--tls-certificate", certificate)
    assert "the certificate and its key cannot be used" in line
    assert not folder.exists()
    strange.mkdir()
    (strange / "address").write_text("12 High Street")
    assert "is not a server's address" in fails("--dir", strange, "--port", 0)
    assert [path.name for path in strange.iterdir()] == ["address"]
    (strange / "address").unlink()
    (strange / "helper.sqlite").write_text("12 High Street, and not a database of anybody")
    assert "cannot be used as the helper's database" in fails("--dir", strange, "--port", 0)
    assert [path.name for path in strange.iterdir()] == ["helper.sqlite"]
    server = tmp_path / "server"
    server.mkdir()
    (server / "operator.token").write_text("of a server")
    assert "found that of a server (operator.token)" in fails("--dir", server, "--port", 0)
    assert [path.name for path in server.iterdir()] == ["operator.token"]
    (folder / "helper.key").mkdir(parents=True)
    assert re.search("helper.key: the private key cannot be read", fails("--dir", folder))
    line = fails("--dir", tmp_path / "third", "--port", 0, "--database", "no address")
    assert "expected an address such as postgresql" in line


def test_a_file_that_is_no_enrolment_key_is_told_by_its_own_option(tmp_path):
    (tmp_path / "key").write_text("not a key")
    words = ("--dir", str(tmp_path / "h"), "--port", "0", "--enrolment-key", str(tmp_path / "key"))
    done = subprocess.run(
        list(map(str, program("helper", *words))), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "--enrolment-key FILE" in done.stderr and "--trust" not in done.stderr
    assert not (tmp_path / "h").exists()

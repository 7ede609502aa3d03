"""A server whose disk is full or whose files are gone says so, and acknowledges nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from device_runtime.causes import Cause
from device_runtime.errors import RunError
from device_runtime.wire import Ack
from server import disk
from server.requests import Reporting
from server.rounds import Rules
from server.store import Store
from tests import toy_server
from tests.test_server_endpoint import Device, running
from tests.toy_server import READY, encoded, enrolled

ROOT = Path(__file__).parent.parent
RULES = Rules(report_goal=3, over_selection=1.0)

# on SIGUSR1 no file of the process can grow beyond a byte, as on a full disk; on SIGUSR2 it may
SERVER = """
import resource, signal, sys
from pathlib import Path
from server import endpoint
from tests import toy_server

def limit(most):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, limit(1))
signal.signal(signal.SIGUSR2, limit(resource.RLIM_INFINITY))
sock = endpoint.bind("127.0.0.1", 0)
print(sock.getsockname()[1], flush=True)
coordinator = toy_server.reopened(Path(sys.argv[1]))
endpoint.serve(endpoint.app(coordinator), sock)
"""


def test_a_server_on_a_full_disk_is_not_ready_and_is_again_when_there_is_room(tmp_path):
    toy_server.new(tmp_path, RULES).close()
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            device, other = Device(url, 1), Device(url, 2)
            work = device.check_in()
            assert ready(url) == 200
            process.send_signal(signal.SIGUSR1)
            assert until(url, 503) == 503
            device.work = work
            path = f"/v1/assignments/{work.assignment}/update"
            assert device.send("PUT", path, encoded(work, 1)).status_code == 503
            process.send_signal(signal.SIGUSR2)
            assert until(url, 200) == 200
            assert device.upload(work, 1).counted
            assert other.upload(other.check_in(), 2).counted
        finally:
            process.kill()


def ready(url: str) -> int:
    return httpx.get(f"{url}/readyz").status_code


def until(url: str, status: int) -> int:
    """The answer of /readyz as soon as it is `status`, at the latest the thousandth."""
    return next((answer for _ in range(1000) if (answer := ready(url)) == status), 0)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_server_whose_database_is_gone_acknowledges_nothing_and_is_not_ready(tmp_path, how):
    coordinator = toy_server.new(tmp_path, RULES)
    now = [1.0]
    with running(coordinator, clock=lambda: now[0]) as url:
        device = Device(url, 1)
        work = device.check_in()
        assert ready(url) == 200
        (tmp_path / "server.sqlite").rename(tmp_path / "moved")
        if how == "replaced":
            (tmp_path / "server.sqlite").write_bytes((tmp_path / "moved").read_bytes())
        now[0] += 2
        assert ready(url) == 503
        device.work = work
        path = f"/v1/assignments/{work.assignment}/update"
        reply = device.send("PUT", path, encoded(work, 1))
        assert (reply.status_code, reply.json()["cause"]) == (503, "unavailable")
        assert (tmp_path / "server.sqlite").exists() == (how == "replaced")
        (tmp_path / "moved").rename(tmp_path / "server.sqlite")
        now[0] += 2
        assert ready(url) == 200
        assert device.upload(work, 1).counted


def test_readiness_writes_at_most_once_a_second(tmp_path):
    coordinator = toy_server.new(tmp_path, RULES)

    def beats() -> list[float]:
        with coordinator.store.reading() as rows:
            return [at for (at,) in rows._connection.exec_driver_sql("SELECT at FROM heartbeats")]

    for now, expected in ((5.0, 5.0), (5.9, 5.0), (6.0, 6.0), (3.0, 3.0)):
        coordinator.probe(now)
        assert beats() == [expected]
    coordinator.close()


def test_blobs_that_cannot_be_written_make_a_server_not_ready(tmp_path):
    coordinator = toy_server.new(tmp_path, RULES)
    coordinator.probe(1.0)
    (tmp_path / "blobs").rename(tmp_path / "away")
    for now in (3.0, 3.5):
        with pytest.raises(RunError, match="cannot be written"):
            coordinator.probe(now)
    (tmp_path / "away").rename(tmp_path / "blobs")
    coordinator.probe(4.0)
    coordinator.close()


def test_a_server_that_can_keep_no_key_and_so_no_report_is_not_ready(tmp_path):
    coordinator = toy_server.new(tmp_path, RULES)
    (device,) = enrolled(coordinator, 1)
    work = coordinator.check_in(device, READY, 1.0)
    keys = tmp_path / "server.sqlite.keys"
    keys.rename(tmp_path / "away")
    keys.write_text("in the way")
    report = Reporting(device, work.assignment, encoded(work, 0))
    for ask in (lambda: coordinator.handle([report], 2.0), lambda: coordinator.probe(2.0)):
        with pytest.raises(RunError, match="keys cannot be written"):
            ask()
    keys.unlink()
    coordinator.probe(4.0)
    assert list(keys.iterdir()) == []
    assert coordinator.handle([report], 4.0)[0].counted
    coordinator.close()


def test_a_disk_that_is_about_to_be_full_is_said_with_what_is_expected(tmp_path, monkeypatch):
    disk.require_room(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(disk, "ROOM_BYTES", 1 << 70)
    with pytest.raises(RunError, match=r"expected \d+ MB free, found \d+; make room"):
        disk.require_room(tmp_path)


@pytest.mark.parametrize("removed", [False, True])
def test_a_second_server_finds_the_first_also_when_somebody_removed_the_lock_s_file(
    tmp_path, removed
):
    first = toy_server.new(tmp_path, RULES)
    if removed:
        (tmp_path / "server.sqlite.lock").unlink()
    code = "from server.store import Store; from pathlib import Path; import sys; "
    code += "Store(Path(sys.argv[1]))"
    before = (tmp_path / "server.sqlite").read_bytes()
    second = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "server.sqlite")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "another server is using this folder" in second.stderr
    assert (tmp_path / "server.sqlite").read_bytes() == before
    assert len(enrolled(first, 2)) == 2
    first.close()
    Store(tmp_path / "server.sqlite").close()


def test_an_update_whose_round_could_not_be_closed_is_acknowledged_and_the_round_closed_later(
    tmp_path,
):
    coordinator = toy_server.new(tmp_path, Rules(report_goal=2, over_selection=1.5, rounds=2))
    devices = enrolled(coordinator, 3)
    works = [coordinator.check_in(device, READY, 1.0) for device in devices]
    reports = [
        Reporting(device, work.assignment, encoded(work, number))
        for number, (device, work) in enumerate(zip(devices, works, strict=True))
    ]
    (tmp_path / "blobs").rename(tmp_path / "away")  # no checkpoint can be written
    (tmp_path / "blobs").write_text("")
    # the third is not answered: whoever asks for it asks again
    assert [answer.counted for answer in coordinator.handle(reports, 2.0)] == [True, True]
    with pytest.raises(RunError):
        coordinator.tick(3.0)
    with pytest.raises(RunError):
        coordinator.handle(reports[:1], 3.0)
    (tmp_path / "blobs").unlink()
    (tmp_path / "away").rename(tmp_path / "blobs")
    coordinator.tick(4.0)
    again = coordinator.handle(reports, 5.0)
    assert [type(answer) for answer in again[:2]] == [Ack, Ack]
    assert again[2].cause is Cause.SURPLUS
    first = coordinator.reports(6.0).rounds[0]
    assert (first.phase, first.counted) == ("committed", 2)
    coordinator.close()

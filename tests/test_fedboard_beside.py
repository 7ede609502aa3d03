"""The helper beside a server is there again after it was killed, and gone with its server."""

import os
import signal
import time

import pytest

from device_runtime.errors import RunError
from device_runtime.helper_wire import HelperReport
from fedboard.beside import Beside
from server.helper_client import Away, Helper, over_http


def heard(helper: Helper) -> HelperReport:
    """What a helper says of itself, once it says something."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return helper.report()
        except Away:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_helper_that_is_killed_is_started_again_and_is_the_same(tmp_path):
    beside = Beside(tmp_path)
    with beside.running():
        helper = Helper(over_http(beside.address), beside.token(), is_beside=True)
        before, child = heard(helper), beside._child.pid
        os.kill(child, signal.SIGKILL)
        while beside._child.pid == child:
            time.sleep(0.05)
        assert heard(helper).helper == before.helper
    assert beside._child.poll() is not None
    with pytest.raises(Away):
        helper.report()


def test_why_a_helper_does_not_start_is_said_in_one_line(tmp_path):
    (tmp_path / "helper").mkdir()
    (tmp_path / "helper" / "helper.key").write_text("this is no key")
    says = r"the helper did not start: .*not 32 bytes in hexadecimal"
    with pytest.raises(RunError, match=says), Beside(tmp_path).running():
        raise AssertionError("it cannot run")

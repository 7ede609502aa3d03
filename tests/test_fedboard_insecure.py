"""Without TLS only this machine is spoken to, unless its owner says otherwise."""

import pytest
from typer.testing import CliRunner

from device_runtime.errors import ServerError
from device_runtime.home import CONFIG, DeviceConfig, Home
from fedboard import devices, operator
from fedboard.cli import app

ELSEWHERE = "http://192.0.2.1:9"  # RFC 5737: nobody's


@pytest.fixture
def settings(trusted) -> DeviceConfig:
    return DeviceConfig(tuple(trusted), server=ELSEWHERE)


def test_no_device_is_made_for_a_server_that_anybody_can_read_along(
    tmp_path, settings, tiny_bundle
):
    with pytest.raises(ServerError, match="--insecure"):
        devices.enrol(tmp_path / "phone", settings, tiny_bundle.path, ELSEWHERE)
    assert not (tmp_path / "phone").exists()


def test_a_device_enrolled_so_goes_on_so_with_that_server_and_no_other(tmp_path, trusted):
    for insecure in (False, True):
        settings = DeviceConfig(tuple(trusted), server=ELSEWHERE, insecure=insecure)
        folder = Home.create(tmp_path / f"phone-{insecure}", settings).folder
        assert ("insecure = true" in (folder / CONFIG).read_text()) is insecure
        if insecure:
            with devices.way(folder, None):
                pass
        else:
            with pytest.raises(ServerError, match="--insecure"), devices.way(folder, None):
                pass
        with pytest.raises(ServerError, match="--insecure"), devices.way(folder, "http://10.0.0.1"):
            pass
        with devices.way(folder, "http://10.0.0.1", insecure=True):
            pass


def test_an_operator_s_token_goes_to_no_other_machine_for_all_to_read(tmp_path):
    (tmp_path / "token").write_text("a token of some length")
    with (
        pytest.raises(ServerError, match="--insecure"),
        operator.connect(None, ELSEWHERE, tmp_path / "token"),
    ):
        pass
    with operator.connect(None, ELSEWHERE, tmp_path / "token", insecure=True):
        pass


@pytest.mark.parametrize(
    "command",
    [
        ["task", "list"],
        ["task", "show", "default"],
        ["task", "pause", "default"],
        ["task", "resume", "default"],
        ["task", "rollback", "default", "--to", "1"],
        ["task", "create", "scores", "--evaluates", "default"],
        ["codes"],
    ],
)
def test_every_command_of_an_operator_asks_for_it(tmp_path, command):
    (tmp_path / "token").write_text("a token of some length")
    told = ["--server", ELSEWHERE, "--token-file", str(tmp_path / "token")]
    result = CliRunner().invoke(app, [*command, *told])
    assert isinstance(result.exception, ServerError)
    assert "pass --insecure" in str(result.exception)

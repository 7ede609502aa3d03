"""Where the typing log's key lies: a file only its owner can read, or the system's keystore (here keyring with a backend of its own)."""

import os
import stat
import subprocess
import sys

import pytest

from device_runtime import keystore
from device_runtime.errors import ConfigError, RunError, TypingLogError
from device_runtime.home import DeviceConfig, Home
from device_runtime.typing_log import TypingLog, wipe

KEY = bytes(range(32))


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A keystore of the system that keeps its entries in a file of ours."""
    import keyring
    from keyrings.alt.file import PlaintextKeyring

    backend = PlaintextKeyring()
    monkeypatch.setattr(PlaintextKeyring, "file_path", str(tmp_path / "system.cfg"))
    before = keyring.get_keyring()
    keyring.set_keyring(backend)
    yield tmp_path / "system.cfg"
    keyring.set_keyring(before)


def test_a_key_file_is_for_its_owner_only(tmp_path):
    store = keystore.named("file", tmp_path / "log.sqlite")
    assert store.load() is None
    store.store(KEY)
    assert store.load() == KEY
    assert stat.S_IMODE((tmp_path / "log.key").stat().st_mode) == 0o600
    store.remove()
    store.remove()  # nothing to remove is no error
    assert store.load() is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused_with_what_to_do(tmp_path, mode):
    TypingLog(tmp_path / "log.sqlite").close()
    os.chmod(tmp_path / "log.key", mode)
    with pytest.raises(RunError, match="chmod 600"):
        TypingLog(tmp_path / "log.sqlite")


def test_a_log_whose_key_is_in_the_system_s_keystore_has_no_key_beside_it(system, tmp_path):
    home = Home.create(tmp_path / "phone", DeviceConfig((), key_store="system"), [("hello there", 1.0)])
    assert not (tmp_path / "phone" / "typing_log.key").exists()
    with Home.open(home.folder).typing_log() as log:
        assert log.read(9) == ["hello there"]
    assert system.exists()


def test_a_wipe_removes_the_key_from_the_system_s_keystore_first(system, tmp_path):
    store = keystore.named("system", tmp_path / "log.sqlite")
    with TypingLog(tmp_path / "log.sqlite", key_store=store) as log:
        log.append("hello", 1.0)
    copy = (tmp_path / "log.sqlite").read_bytes()
    wipe(tmp_path / "log.sqlite", store)
    assert store.load() is None
    assert not (tmp_path / "log.sqlite").exists()
    (tmp_path / "log.sqlite").write_bytes(copy)  # a backup of the file is worth nothing without the key
    with pytest.raises(TypingLogError, match=r"the system's keystore: the key of this typing log is missing"):
        TypingLog(tmp_path / "log.sqlite", key_store=store)


def test_a_machine_without_a_keystore_is_told_so_and_nothing_falls_back_to_a_file(tmp_path):
    code = (
        "from device_runtime.home import DeviceConfig, Home; from device_runtime.errors import FedboardError\n"
        "try: Home.create('phone', DeviceConfig((), key_store='system'))\n"
        "except FedboardError as error: print(error)"
    )
    environment = {**os.environ, "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "the system's keystore: there is none on this machine" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['keyring'] = None\n"
        "from device_runtime import keystore\n"
        "try: keystore.named('system', 'x').load()\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "install `fedboard[keystore]`" in done.stdout


def test_an_unknown_key_store_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="expected file or system, found 'cloud'"):
        keystore.named("cloud", tmp_path / "log.sqlite")

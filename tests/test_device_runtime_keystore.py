import os
import shutil
import stat
import subprocess
import sys

import keyring
import pytest
from keyring.backends import chainer, fail, null
from keyring.errors import KeyringLocked
from keyrings.alt.file import PlaintextKeyring

from device_runtime import keystore
from device_runtime.errors import ConfigError, RunError, TypingLogError
from device_runtime.typing_log import TypingLog, wipe

SECRET = "meet me behind the old mill"


class Trusted(PlaintextKeyring):
    """A real backend on disk that says of itself that it keeps secrets, as Secret Service does."""

    priority = 5


@pytest.fixture
def path(tmp_path):
    (tmp_path / "phone").mkdir()
    return tmp_path / "phone" / "typing_log.sqlite"


@pytest.fixture
def use():
    """Make a backend the system's keystore for one test."""
    yield keyring.set_keyring
    keyring.set_keyring(fail.Keyring())


@pytest.fixture
def system(tmp_path, use):
    """The file in which the system's keystore of this test keeps its entries."""
    backend = Trusted()
    backend.file_path = str(tmp_path / "system" / "keyring.cfg")
    use(backend)
    return tmp_path / "system" / "keyring.cfg"


def key_in_system(path):
    """The hexadecimal key of the log at `path` as the system's keystore has it, None if it has
    none.
    """
    return keyring.get_password(keystore.SERVICE, keystore.key_path(path).read_text())


def write_log(path, key_store):
    with TypingLog(path, key_store=key_store) as log:
        log.append(SECRET, 1.0)


def read_log(path, key_store):
    with TypingLog(path, key_store=key_store) as log:
        return log.read(10)


def test_an_unknown_key_store_is_named(path):
    with pytest.raises(ConfigError, match="key_store: expected one of file, system, found 'cloud'"):
        TypingLog(path, key_store="cloud")
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_file_that_others_can_read_or_replace_is_refused_until_they_cannot(path, mode):
    write_log(path, keystore.FILE)
    key_file = keystore.key_path(path)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key_file.chmod(mode)
    with pytest.raises(TypingLogError, match=f"found mode {mode:o}; chmod 600 {key_file}"):
        TypingLog(path)
    key_file.chmod(0o600)
    assert read_log(path, keystore.FILE) == [SECRET]


def test_a_key_in_the_systems_keystore_is_in_no_file_beside_the_log(path, system):
    write_log(path, keystore.SYSTEM)
    key = key_in_system(path)
    assert len(key) == 64
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert key.encode() not in file.read_bytes() and bytes.fromhex(key) not in file.read_bytes()
    assert read_log(path, keystore.SYSTEM) == [SECRET]


def test_a_log_whose_key_is_in_the_systems_keystore_can_be_moved(path, system):
    write_log(path, keystore.SYSTEM)
    moved = path.parent.rename(path.parent.with_name("moved")) / path.name
    assert read_log(moved, keystore.SYSTEM) == [SECRET]


def test_two_logs_have_two_keys(path, system):
    other = path.with_name("other.sqlite")
    write_log(path, keystore.SYSTEM)
    write_log(other, keystore.SYSTEM)
    assert key_in_system(path) != key_in_system(other)


def test_a_wipe_removes_the_key_from_the_systems_keystore_without_being_told_that_it_is_there(
    path, system
):
    write_log(path, keystore.SYSTEM)
    name, copy = (
        keystore.key_path(path).read_text(),
        shutil.copytree(path.parent, path.parent.with_name("copy")),
    )
    wipe(path)
    assert list(path.parent.iterdir()) == []
    assert keyring.get_password(keystore.SERVICE, name) is None
    with pytest.raises(TypingLogError, match="key of this typing log is missing"):
        TypingLog(copy / path.name, key_store=keystore.SYSTEM)
    write_log(path, keystore.SYSTEM)  # anew
    with TypingLog(path, key_store=keystore.SYSTEM) as log:
        log.wipe()
    assert list(path.parent.iterdir()) == []


def test_a_wipe_removes_a_log_even_if_the_system_keeps_the_key_and_can_be_done_again(
    path, system, use
):
    write_log(path, keystore.SYSTEM)
    name, unlocked = keystore.key_path(path).read_text(), keyring.get_keyring()
    use(fail.Keyring())
    with pytest.raises(RunError):
        wipe(path)
    # by which the key is found the next time
    assert [file.name for file in path.parent.iterdir()] == ["typing_log.key"]
    use(unlocked)
    wipe(path)
    assert list(path.parent.iterdir()) == []
    assert keyring.get_password(keystore.SERVICE, name) is None


def test_a_first_use_cut_short_uses_the_same_entry_the_next_time(path, system):
    # and then the process was killed
    keystore.SystemKey(keystore.key_path(path)).store(os.urandom(32))
    name, old = keystore.key_path(path).read_text(), key_in_system(path)
    write_log(path, keystore.SYSTEM)
    assert keystore.key_path(path).read_text() == name
    assert key_in_system(path) == old


def several(*kinds):
    """Several backends at once, the best first."""

    class Several(chainer.ChainerBackend):
        backends = kinds

    return Several()


@pytest.mark.parametrize(
    "make",
    [
        PlaintextKeyring,
        fail.Keyring,
        null.Keyring,
        lambda: several(PlaintextKeyring(), null.Keyring()),
    ],
)
def test_what_keeps_no_secrets_is_no_keystore(path, use, make):
    use(make())
    with pytest.raises(RunError, match="expected one that keeps secrets, found key") as refused:
        TypingLog(path, key_store=keystore.SYSTEM)
    assert "fedboard[keystore]" in str(refused.value)
    assert not keystore.key_path(path).exists()


def test_of_several_backends_the_best_is_asked(path, system, use):
    use(several(keyring.get_keyring(), PlaintextKeyring()))
    write_log(path, keystore.SYSTEM)
    assert system.exists()


def test_a_keystore_that_is_locked_is_one_clear_line(path, use):
    class Locked(Trusted):
        def get_password(self, *_):
            raise KeyringLocked(SECRET)

        set_password = get_password

    use(Locked())
    with pytest.raises(
        RunError, match=r"the system's keystore: refused \(KeyringLocked\)"
    ) as refused:
        TypingLog(path, key_store=keystore.SYSTEM)
    assert "mill" not in str(refused.value)


def test_a_keystore_that_does_not_keep_the_key_is_refused_before_anything_is_recorded(path, use):
    class Forgetful(null.Keyring):
        priority = 5

    use(Forgetful())
    with pytest.raises(RunError, match="did not keep the key"):
        TypingLog(path, key_store=keystore.SYSTEM)


def test_without_the_library_it_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(
        RunError, match=r"expected the keyring library, found none; install `fedboard\[keystore\]`"
    ):
        TypingLog(path, key_store=keystore.SYSTEM)


def test_a_key_store_that_does_not_hold_the_key_is_refused_and_the_key_stays(path, system):
    write_log(path, keystore.FILE)
    key = keystore.key_path(path).read_bytes()
    with pytest.raises(TypingLogError, match='use key_store = "file" if it is the key') as refused:
        TypingLog(path, key_store=keystore.SYSTEM)
    assert key.hex() not in str(refused.value) and repr(key) not in str(refused.value)
    assert read_log(path, keystore.FILE) == [SECRET]
    wipe(path)
    write_log(path, keystore.SYSTEM)
    with pytest.raises(TypingLogError, match="expected a key of 32 bytes, found 36"):
        TypingLog(path, key_store=keystore.FILE)
    assert read_log(path, keystore.SYSTEM) == [SECRET]


@pytest.mark.parametrize("entry", ["no key at all", "ab", ""])
def test_an_entry_that_is_no_key_is_refused_without_being_shown(path, system, entry):
    write_log(path, keystore.SYSTEM)
    keyring.set_password(keystore.SERVICE, keystore.key_path(path).read_text(), entry)
    with pytest.raises(TypingLogError, match="expected a key") as refused:
        TypingLog(path, key_store=keystore.SYSTEM)
    assert "no key at all" not in str(refused.value)


def test_the_library_is_loaded_by_nothing_but_its_use():
    code = "import sys, device_runtime.typing_log; assert 'keyring' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

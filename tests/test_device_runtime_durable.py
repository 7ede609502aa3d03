"""Files and folders that are there whole or not at all."""

import multiprocessing

import pytest

from device_runtime import durable, signing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    durable.write(path, b"old")
    with pytest.raises(ZeroDivisionError), durable.replacing(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_shared_file_does_not_touch_a_hidden_one_of_its_name(tmp_path):
    (tmp_path / ".env").write_text("the user's")
    durable.share(tmp_path / "env", b"ours")
    assert (tmp_path / ".env").read_text() == "the user's"


def _share(path, count):
    for i in range(count):
        durable.share(path, b"%d" % i * 1000)


def _key(path, queue):
    queue.put(signing.public_hex(signing.load_or_create(path)))


def test_processes_that_write_one_file_at_once_all_succeed(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_share, args=(tmp_path / "file", 40)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert names(tmp_path) == ["file"]
    assert len(set((tmp_path / "file").read_bytes())) == 1 + 1  # of one of the last: b"39" repeated


def test_processes_that_use_a_key_first_at_once_all_get_the_same(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        path, queue = tmp_path / f"key-{attempt}", context.Queue()
        users = [context.Process(target=_key, args=(path, queue)) for _ in range(3)]
        for user in users:
            user.start()
        keys = [queue.get(timeout=30) for _ in users]
        for user in users:
            user.join()
        assert {signing.public_hex(signing.load_or_create(path))} == set(keys)
    assert not any(name.startswith(".") for name in names(tmp_path))


def test_a_lock_is_held_by_one_process_and_ends_with_the_file(tmp_path):
    with durable.lock(tmp_path / "lock"), pytest.raises(BlockingIOError):
        durable.lock(tmp_path / "lock")
    durable.lock(tmp_path / "lock").close()

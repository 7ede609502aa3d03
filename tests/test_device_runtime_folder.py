"""Folders that commands write: foreign files stay, one process writes, a kill leaves no half."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import folder
from device_runtime.errors import CorpusError
from device_runtime.folder import NEW, ORDER, READY, InUse, Kind, clear, replaced, settle, writing
from tests.kill_points import every_kill_point

ROOT = Path(__file__).parents[1]


def is_box(path: Path) -> bool:
    """Whether a folder's marker is that of a box."""
    try:
        return (path / "box.txt").read_text() == "a box\n"
    except OSError:
        return False


BOX = Kind(
    "a box", is_box, ("box.txt", "lid", "in/*.txt", "state/*/**"), "box.txt", error=CorpusError
)


def fill(place: Path, **files: str) -> None:
    """A box at `place` with these files."""
    with replaced(place, BOX) as new:
        for name, text in {"box_txt": "a box\n", **files}.items():
            path = new / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def contents(place: Path) -> dict[str, str]:
    """Every file below, by its path."""
    return {
        path.relative_to(place).as_posix(): path.read_text()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def test_a_new_folder_takes_the_place_of_the_old_one_and_what_is_not_ours_stays(tmp_path):
    place = tmp_path / "deep" / "box"
    fill(place, lid="old", in__a_txt="old", in__b_txt="old")
    (place / "notes").mkdir()
    (place / "notes" / "mine.txt").write_text("mine")
    (place / "in" / "mine.md").write_text("mine")
    fill(place, in__a_txt="new")
    assert contents(place) == {
        "box.txt": "a box\n",
        "in/a.txt": "new",
        "in/mine.md": "mine",
        "notes/mine.txt": "mine",
    }


def test_folders_of_ours_that_are_empty_then_go_and_others_stay(tmp_path):
    fill(tmp_path / "box", in__a_txt="old")
    (tmp_path / "box" / "mine").mkdir()
    fill(tmp_path / "box")
    assert sorted(path.name for path in (tmp_path / "box").iterdir()) == ["box.txt", "mine"]


@pytest.mark.parametrize("marker", ["", "title = 'My lab notes'", "a box", None])
def test_a_folder_whose_marker_is_not_ours_is_refused_and_not_touched(tmp_path, marker):
    place = tmp_path / "lab"
    (place / ".git").mkdir(parents=True)
    (place / ".git" / "HEAD").write_text("ref")
    (place / "lid").write_text("theirs")
    if marker is not None:
        (place / "box.txt").write_text(marker)
    before = contents(place)
    with pytest.raises(CorpusError, match="holds files that are not a box of Fedboard's"):
        fill(place, lid="ours")
    assert contents(place) == before


def test_a_file_and_a_link_to_nothing_are_refused(tmp_path):
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="is a file, expected a folder"):
        fill(tmp_path / "file")
    with pytest.raises(CorpusError, match="is a link to nothing"):
        fill(tmp_path / "link")
    assert (tmp_path / "file").read_text() == "theirs" and not (tmp_path / "nowhere").exists()


def test_an_earlier_one_is_replaced_only_where_that_was_asked_for(tmp_path):
    fill(tmp_path / "box")
    with pytest.raises(CorpusError, match="holds an earlier box already"):
        folder.require_free(tmp_path / "box", BOX, replace=False)
    folder.require_free(tmp_path / "box", BOX)
    folder.require_free(tmp_path / "not there", BOX, replace=False)
    assert not (tmp_path / "not there").exists()


def test_what_fails_changes_nothing_and_leaves_no_new_folder(tmp_path):
    fill(tmp_path / "box", lid="old")
    for place in (tmp_path / "box", tmp_path / "new" / "box"):
        with pytest.raises(ZeroDivisionError), replaced(place, BOX) as new:
            (new / "lid").write_text("half")
            raise ZeroDivisionError
    assert contents(tmp_path) == {"box/box.txt": "a box\n", "box/lid": "old"}
    assert not (tmp_path / "new").exists()


def test_it_works_in_the_current_folder_and_through_a_link(tmp_path, monkeypatch):
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    fill(Path("."), lid="one")
    fill(tmp_path / "link", lid="two")
    fill(Path(), lid="three")
    assert contents(tmp_path / "place") == {"box.txt": "a box\n", "lid": "three"}
    assert (tmp_path / "link").is_symlink()


def test_what_a_file_system_puts_into_an_empty_folder_does_not_make_it_somebodys(tmp_path):
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    fill(tmp_path / "disk", lid="ours")
    assert (tmp_path / "disk" / "lost+found").is_dir()


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path):
    script = f"""
        import sys
        from tests.test_device_runtime_folder import BOX, writing
        with writing({str(tmp_path / "box")!r}, BOX):
            print("holds", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout.readline() == "holds\n"
        with pytest.raises(InUse, match=f"is being written by process {child.pid}"):
            fill(tmp_path / "box")
        settle(tmp_path / "box", BOX)  # a reader does not wait for it, nor take its lock away
        child.kill()
    assert (tmp_path / "box" / ".fedboard.lock").exists()
    fill(tmp_path / "box", lid="after")  # a killed one's lock holds nobody up
    assert contents(tmp_path / "box") == {"box.txt": "a box\n", "lid": "after"}


def test_a_process_may_hold_a_folder_twice(tmp_path):
    with writing(tmp_path / "box", BOX) as place:
        fill(place, lid="inside")
        with writing(place, BOX):
            pass
        assert (place / ".fedboard.lock").read_text() == f"{os.getpid()}\n"
    assert contents(place) == {"box.txt": "a box\n", "lid": "inside"}


def test_clearing_follows_no_link_and_they_are_named_before(tmp_path):
    fill(tmp_path / "box", lid="ours", state__1__x="ours")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.txt").write_text("theirs")
    (tmp_path / "box" / "in").symlink_to(tmp_path / "theirs")
    with pytest.raises(CorpusError, match="in: is a link"):
        folder.require_no_links(tmp_path / "box", BOX)
    with writing(tmp_path / "box", BOX) as place:
        clear(place, BOX, keep=("box.txt",))
    assert contents(tmp_path / "theirs") == {"a.txt": "theirs"}
    assert sorted(path.name for path in place.iterdir()) == ["box.txt", "in"]


def test_clearing_takes_empty_folders_of_ours_along_and_no_others(tmp_path):
    fill(tmp_path / "box", state__1__x="ours")
    (tmp_path / "box" / "state" / "1" / "assets").mkdir()
    (tmp_path / "box" / "mine").mkdir()
    with writing(tmp_path / "box", BOX) as place:
        clear(place, BOX)
    assert sorted(path.name for path in place.rglob("*")) == ["mine"]


def test_a_reader_in_a_folder_it_may_not_write_is_told_what_is_unfinished(tmp_path, monkeypatch):
    fill(tmp_path / "box", lid="old")
    (tmp_path / "box" / READY).mkdir()

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(folder.durable, "lock", refuse)
    with pytest.raises(folder.RunError, match="killed while it replaced this folder"):
        settle(tmp_path / "box", BOX)
    (tmp_path / "box" / READY).rmdir()
    (tmp_path / "box" / NEW).mkdir()
    settle(tmp_path / "box", BOX)  # what was not ready is of no use to a reader


def test_a_folder_killed_at_any_step_is_all_old_or_all_new(tmp_path):
    script = """
from tests.test_device_runtime_folder import fill

def work(folder):
    fill(folder, lid="new", in__b_txt="new")
"""
    seen = set()

    def prepare(place):
        fill(place, in__a_txt="old", state__1__x="old")
        (place / "mine").write_text("mine")

    def check(place):
        settle(place, BOX)
        files = contents(place)
        assert files.pop("mine") == "mine" and files.pop("box.txt") == "a box\n"
        seen.add(tuple(files.items()))
        fill(place, lid="again")
        assert contents(place) == {"box.txt": "a box\n", "lid": "again", "mine": "mine"}

    assert every_kill_point(script, tmp_path / "box", prepare, check) > 15
    assert seen == {
        (("in/a.txt", "old"), ("state/1/x", "old")),
        (("in/b.txt", "new"), ("lid", "new")),
    }


def test_the_first_one_killed_at_any_step_leaves_room_for_the_next(tmp_path):
    script = """
from tests.test_device_runtime_folder import fill

def work(folder):
    fill(folder / "box", lid="new")
"""

    def check(place):
        if (place / "box").exists():
            settle(place / "box", BOX)
        fill(place / "box", lid="again")
        assert contents(place / "box") == {"box.txt": "a box\n", "lid": "again"}

    assert every_kill_point(script, tmp_path / "all", lambda place: None, check) > 8


NAMES = st.lists(st.sampled_from(["a", "b.txt", "in", "lid", "state", "1", ".b.txt"]), min_size=1)


@given(st.lists(NAMES, max_size=8), st.data())
def test_no_file_but_those_the_kind_names_is_ever_removed(tmp_path_factory, paths, data):
    place = tmp_path_factory.mktemp("box")
    (place / "box.txt").write_text("a box\n")
    for parts in paths:
        path = place.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("text")
        except OSError:  # a file stands where a folder would
            continue
    before = contents(place)
    if (place / "lid").is_dir():
        with pytest.raises(CorpusError, match="lid: is a folder, expected a file"):
            fill(place, lid="new")
        assert contents(place) == before
        return
    fill(place, lid="new")
    for name in before.keys() - contents(place).keys():
        parts = name.split("/")
        assert (
            (parts[0] == "in" and len(parts) == 2 and parts[1].endswith(".txt"))
            or (parts[0] == "state" and len(parts) > 2)
            or name == ".lid"
        )


@pytest.mark.parametrize(
    "order",
    [
        "",
        "{half",
        "[]",
        '{"move": [], "remove": 1}',
        '{"move": [], "remove": [["lid"]]}',
        '{"move": [], "remove": ["notes.txt"]}',
        '{"move": ["notes.txt"], "remove": []}',
        '{"move": [], "remove": ["../other/lid"]}',
        '{"move": [], "remove": ["in/../../other/lid"]}',
        '{"move": [], "remove": ["state/theirs/lid"]}',
        '{"move": [], "remove": ["OTHER/lid"]}',
    ],
)
def test_a_folder_from_somebody_else_has_nothing_removed_or_replaced(tmp_path, order):
    box, other = tmp_path / "box", tmp_path / "other"
    fill(box, lid="old")
    fill(other, lid="theirs")
    (box / "notes.txt").write_text("mine")
    (box / "state").mkdir()
    (box / "state" / "theirs").symlink_to(other)
    (box / READY).mkdir()
    (box / READY / "notes.txt").write_text("not mine")
    (box / READY / ORDER).write_text(order.replace("OTHER", str(other)))
    before = contents(tmp_path)
    for attempt in (lambda: settle(box, BOX), lambda: fill(box)):
        with pytest.raises(CorpusError, match="not written by a command of ours that writes a box"):
            attempt()
    assert contents(tmp_path) == before


def test_a_link_in_the_place_of_a_folder_of_ours_is_said(tmp_path):
    fill(tmp_path / "box", lid="old")
    fill(tmp_path / "other", lid="theirs")
    (tmp_path / "box" / NEW).symlink_to(tmp_path / "other")
    with pytest.raises(CorpusError, match="it is a link"):
        fill(tmp_path / "box")
    assert contents(tmp_path / "other")["lid"] == "theirs"

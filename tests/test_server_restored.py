"""A server or a helper is put back from a backup: no task is stuck, and what is lost is named."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from helper.desk import Desk
from server import operators
from server.rounds import Mode, Rules
from tests.toy_opening import THREE, desk, joined, new, opened, sealed, way_to
from tests.toy_server import OneByOne, certify, enrolled

BUFFERED = Rules(report_goal=3, over_selection=1.0, mode=Mode.BUFFERED, max_staleness=2)


LEFT_OUT = (
    "round {} was abandoned: the helper opens sums from round {} on: it has opened a later one "
    "than this server knows of, or lost its keys; was one of them put back from a backup?"
)


def played(coordinator: OneByOne, now: float) -> str:
    """What comes of a round in which all devices that it wants report: its phase, and why."""
    devices = enrolled(coordinator, 3)
    works = joined(coordinator, devices, now)
    for number, (device, work) in enumerate(zip(devices, works, strict=True)):
        assert coordinator.update(device, work.assignment, sealed(work, number), now + 1).counted
    coordinator.open_sums(now + 2)
    closed = next(each for each in coordinator.reports(now).rounds if each.round == works[0].round)
    return f"{closed.phase}{closed.reason and ': '}{closed.reason}"


def at(coordinator: OneByOne) -> int:
    """The round that is open."""
    return coordinator.reports(9.0).rounds[-1].round


def backed_up(folder: Path) -> Path:
    """A copy of what a server or a helper that does not run keeps, but for its keys, as the
    operator is told to make it.
    """
    copy = folder.with_name(folder.name + "-copy")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*keys", "*.lock"))
    return copy


def put_back(copy: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)


@pytest.mark.parametrize("rules", [THREE, BUFFERED], ids=["synchronous", "buffered"])
def test_a_server_that_is_put_back_goes_on_where_its_helper_is(fast_folder, rules):
    helper, folder = desk(fast_folder / "helper"), fast_folder / "server"
    with closing(new(folder, way_to(helper), rules)) as coordinator:
        assert played(coordinator, 1.0) == "committed"
    copy = backed_up(folder)
    with closing(opened(folder, way_to(helper))) as coordinator:
        # more rounds than it has keys ahead, so that the copy's keys end before the helper's begin
        assert [played(coordinator, 10.0 * each) for each in range(1, 13)] == ["committed"] * 12
        assert at(coordinator) == 14
    put_back(copy, folder)
    with closing(opened(folder, way_to(helper))) as coordinator:
        certify(coordinator, 200.0)  # its round key is in no backup
        assert at(coordinator) == 2
        coordinator.open_sums(201.0)
        assert at(coordinator) == 14
        assert operators.report(coordinator, "default", 201.0).waits == LEFT_OUT.format(2, 14)
        assert [played(coordinator, 210.0 + 10 * each) for each in range(2)] == ["committed"] * 2
    helper.close()


def test_reports_of_a_round_that_the_helper_has_opened_before_end_with_it(fast_folder):
    helper, folder = desk(fast_folder / "helper"), fast_folder / "server"
    with closing(new(folder, way_to(helper))) as coordinator:
        works = joined(coordinator, enrolled(coordinator, 3), 1.0)
    copy = backed_up(folder)
    with closing(opened(folder, way_to(helper))) as coordinator:
        devices = enrolled(coordinator, 3)
        for number, (device, work) in enumerate(zip(devices, works, strict=True)):
            coordinator.update(device, work.assignment, sealed(work, number), 2.0)
        coordinator.open_sums(3.0)
        assert [played(coordinator, 10.0 * each) for each in (1, 2)] == ["committed"] * 2
    put_back(copy, folder)
    with closing(opened(folder, way_to(helper))) as coordinator:
        certify(coordinator, 200.0)
        for number, (device, work) in enumerate(zip(devices, works, strict=True)):
            coordinator.update(device, work.assignment, sealed(work, number), 200.0)
        coordinator.open_sums(201.0)
        rounds = coordinator.reports(9.0).rounds
        assert "the helper gives no mask: " in rounds[0].reason
        assert at(coordinator) == 4  # 2 and 3 have been opened too
        assert played(coordinator, 210.0) == "committed"
    helper.close()


class Pair:
    """A server and a helper that can be replaced while the server runs."""

    def __init__(self, folder: Path, rules: Rules):
        self.folder = folder / "helper"
        self.helper: Desk = desk(self.folder)
        self.coordinator = new(
            folder / "server", lambda *request: way_to(self.helper)(*request), rules
        )

    def restart(self, copy: Path | None) -> None:
        """The helper ends, its folder is put back or, without a copy, gone; and it is there again:
        its identity is the toy one's.
        """
        self.helper.close()
        shutil.rmtree(self.folder)
        if copy is not None:
            shutil.copytree(copy, self.folder)
        self.helper = desk(self.folder)

    def copy(self) -> Path:
        """A backup of the helper."""
        self.helper.close()
        copy = backed_up(self.folder)
        self.helper = desk(self.folder)
        return copy

    def close(self) -> None:
        self.coordinator.close()
        self.helper.close()


@pytest.mark.parametrize("rules", [THREE, BUFFERED], ids=["synchronous", "buffered"])
@pytest.mark.parametrize("others", [0, 1, 70])
def test_a_helper_that_is_put_back_costs_the_round_whose_key_is_gone(fast_folder, rules, others):
    with closing(Pair(fast_folder, rules)) as pair:
        assert played(pair.coordinator, 1.0) == "committed"
        copy = pair.copy()
        for each in range(others):  # rounds that came to nothing
            pair.coordinator.roll_back("default", 1, 10.0 + each)
            pair.coordinator.open_sums(10.0 + each)
        assert played(pair.coordinator, 100.0) == "committed"
        pair.restart(copy)
        came = [played(pair.coordinator, 200.0 + 10 * each) for each in range(3)]
        assert came[0].startswith("abandoned: the helper gives no mask: unknown_round: no key of")
        assert came[1:] == ["committed"] * 2


@pytest.mark.parametrize("rules", [THREE, BUFFERED], ids=["synchronous", "buffered"])
def test_a_helper_whose_database_is_gone_costs_the_round_that_is_open(fast_folder, rules):
    with closing(Pair(fast_folder, rules)) as pair:
        assert [played(pair.coordinator, 10.0 * each) for each in (1, 2)] == ["committed"] * 2
        pair.restart(None)
        devices = enrolled(pair.coordinator, 3)
        works = joined(pair.coordinator, devices, 30.0)
        for number, (device, work) in enumerate(zip(devices, works, strict=True)):
            pair.coordinator.update(device, work.assignment, sealed(work, number), 31.0)
        for now in (32.0, 33.0):  # it is made known again, and asked again
            pair.coordinator.open_sums(now)
        assert at(pair.coordinator) == 4
        report = operators.report(pair.coordinator, "default", 33.0)
        assert report.waits.startswith("round 3 was abandoned: the helper gives no mask: unknown_r")
        assert played(pair.coordinator, 40.0) == "committed"

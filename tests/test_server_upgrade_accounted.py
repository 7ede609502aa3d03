"""A server's database and helper's folder as the version without noise left them.

They were made by the server and helper of that time: of the plain task `default` and of the task
`private`, whose sums a helper opens, a round committed with momentum, and a second one that lacks
one report, whose device is at work. `expected.json` has the checkpoints that they went on to
themselves.
"""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import alembic.command
import alembic.config
import numpy as np
import pytest
import sqlalchemy as sa

from device_runtime.accountant import Participation
from server import dashboard, operators, overview
from server.coordinator import open_folder
from server.helper_client import Helper
from server.slots import Folder
from server.tables import metadata
from tests import postgres, toy_opening
from tests.toy_opening import sealed, way_to
from tests.toy_server import READY, OneByOne, certify, encoded, enrolled

GOLDEN = Path(__file__).parent / "golden"
PRIVATE = replace(READY, population="private")


@pytest.fixture(scope="module")
def socket():
    with postgres.running() as folder:
        yield folder


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def coordinator(request, tmp_path):
    zipfile.ZipFile(GOLDEN / "server-0005.zip").extractall(tmp_path)
    desk, database = toy_opening.desk(tmp_path / "helper"), ""
    if request.param == "PostgreSQL":
        name = f"before {tmp_path.name}"
        database = postgres.new_database(request.getfixturevalue("socket"), name)
        copied(tmp_path / "server", database)
    store, blobs = open_folder(tmp_path / "server", database)
    if database:
        old = Folder(tmp_path / "server" / "server.sqlite.keys")
        with store.reading() as rows:
            new = blobs.slots(rows.server())
        for name in old.names():
            new.put(name, old.get(name))
    helper = Helper(way_to(desk), "token", False)
    opened = OneByOne(store, blobs, np.random.default_rng(0), helper=helper)
    yield opened
    opened.close()


def copied(folder: Path, database: str) -> None:
    """The rows of an SQLite file of revision 0005 in a new PostgreSQL database of that revision."""
    settings = alembic.config.Config()
    migrations = Path(__file__).parents[1] / "server" / "migrations"
    settings.set_main_option("script_location", str(migrations))
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        alembic.command.upgrade(settings, "0005")
    old = sa.create_engine(f"sqlite:///{folder / 'server.sqlite'}")
    with old.connect() as source, engine.begin() as target:
        kept = sa.MetaData()
        kept.reflect(target)
        target.execute(sa.delete(kept.tables["servers"]))  # a new database has a name of its own
        order = [each.name for each in metadata.sorted_tables if each.name in kept.tables]
        for name in order:
            table = kept.tables[name]
            rows = [dict(row._mapping) for row in source.execute(_all(name))]
            if rows:
                target.execute(table.insert(), [_typed(table, row) for row in rows])
    for each in (old, engine):
        each.dispose()


def _all(name: str) -> sa.TextClause:
    return sa.text(f'SELECT * FROM "{name}"')


def _typed(table: sa.Table, row: dict) -> dict:
    """SQLite has no truth values."""
    return {
        name: bool(value)
        if isinstance(table.c[name].type, sa.Boolean) and value is not None
        else value
        for name, value in row.items()
    }


def test_the_open_round_of_a_plain_task_ends_with_its_checkpoint_to_the_byte(coordinator, tmp_path):
    expected = json.loads((tmp_path / "expected.json").read_text())["default"]
    device = enrolled(coordinator, 2)[1]
    certify(coordinator, 10.0)  # the certificate of that time names no log
    work = coordinator.check_in(device, READY, 10.0)
    assert work.round == 2
    assert coordinator.update(device, work.assignment, encoded(work, 1), 10.0).counted
    assert coordinator.checkpoint().sha == expected


def test_a_masked_round_whose_seals_are_bound_to_no_policy_is_left_out_by_name(coordinator):
    devices = enrolled(coordinator, 5)[2:]
    certify(coordinator, 10.0, "private")
    coordinator.open_sums(10.0)
    for round, of_it in ((2, (2,)), (3, (0, 1, 2))):
        for number in of_it:
            work = coordinator.check_in(devices[number], PRIVATE, 100.0 * round)
            body = sealed(work, 2 + number)
            assert work.round == round
            assert coordinator.update(devices[number], work.assignment, body, 400.0).counted
        coordinator.open_sums(400.0)
    first, second, third = coordinator.reports(400.0, "private").rounds[:3]
    assert (second.phase, second.counted) == ("abandoned", 3)
    assert "2 seals are not signed by their devices for this task and round" in second.reason
    assert (third.phase, third.counted, third.base) == ("committed", 3, first.checkpoint)


def test_a_task_of_that_version_has_no_budget_and_says_so(coordinator):
    coordinator.tick(10.0)
    for name, protection in (
        ("default", "none: no noise was added and updates were not securely aggregated"),
        ("private", "updates were seen in sums of at least 2, opened by a helper; no noise was"),
    ):
        report = operators.report(coordinator, name, 10.0)
        assert report.privacy.startswith(protection)
        assert "no privacy guarantee (epsilon) is claimed" in report.privacy
        assert (report.epsilon, report.budget, report.sums, report.over) == (None, None, 0, "")
        first = coordinator.reports(10.0, name).rounds[0]
        assert (first.phase, first.rho) == ("committed", None)
    with coordinator.store.reading() as rows:
        assert rows.spending.all() == {}
        assert rows.spending.of("default").happened == Participation()
    page = dashboard.page(overview.read(coordinator, 10.0, 0.0, {})).html
    assert "epsilon spent" not in page

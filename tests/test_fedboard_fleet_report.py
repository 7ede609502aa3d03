import re
from dataclasses import replace

import numpy as np
import pytest

from device_runtime.errors import RunError
from device_runtime.wire import Scores
from fedboard import fleet_report, fleet_show
from fleet import figures, tables, turns
from fleet.begin import begin
from fleet.tables import Lived, Measured
from tests.test_fleet_tables import SETTINGS

SECTIONS = ("eligible", "rounds", "funnel", "drop-out", "bytes", "never", "again")


@pytest.fixture(scope="module")
def lived(tmp_path_factory) -> Lived:
    """What a fleet of 40 devices has lived through, in three committed rounds."""
    fleet = begin(SETTINGS, tmp_path_factory.mktemp("fleet") / "fleet")
    fleet.run(86_400)
    it = tables.lived(fleet)
    fleet.servers.close()
    return it


def page_of(it, folder):
    tables.write(it, folder)
    return fleet_report.build(folder).read_text()


def test_the_page_stands_by_itself_and_has_every_section(lived, tmp_path):
    page = page_of(lived, tmp_path)
    assert [name for name in SECTIONS if f'<section id="{name}">' not in page] == []
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<script" not in page


def test_every_plot_has_a_title_and_a_description_of_its_own(lived, tmp_path):
    page = page_of(lived, tmp_path)
    labels = re.findall(r'<svg[^>]* aria-labelledby="([\w-]+) ([\w-]+)"', page)
    assert len(labels) == page.count("<svg") >= 6
    for title, about in labels:
        assert re.search(rf'<title id="{title}">[^<]+</title>', page)
        assert re.search(rf'<desc id="{about}">[^<]+</desc>', page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_story_says_what_the_summary_says(lived):
    told = replace(
        tables.summary(lived, tables.tables(lived)),
        rounds_closed_share=0.993,
        drop_out_share=0.075,
        eligible_swing_ratio=4.04,
        devices_never=5,
        devices_never_share=0.125,
    )
    said = " ".join(fleet_report.story(told))
    assert "40 phones lived" in said
    assert "99.3 % of all that had got work" in said
    assert "7.5 % of the phones with work dropped out" in said
    assert "4.0 times as many phones may train" in said
    assert "5 phones, 12.5 %, never took part." in said
    assert "a stand-in" in said
    assert ("4.0x", "between the best and the worst hour of a weekday (published: 4x)") in (
        fleet_report.tiles(told)
    )


def test_equal_figures_give_equal_pages(lived, tmp_path):
    assert page_of(lived, tmp_path) == page_of(lived, tmp_path)


def test_what_is_learnt_and_what_it_costs_is_drawn_where_it_is_known(lived, tmp_path):
    plain = page_of(lived, tmp_path)
    assert 'id="learning"' not in plain
    spent = tuple(
        replace(each, rho=0.1 * each.round, epsilon=0.5 + each.round) for each in lived.rounds
    )
    measured = tuple(
        Measured(round, 3600.0 * round, who, 4, Scores(10, round, 5, 10, 30.0))
        for round in (1, 3)
        for who in ("everybody", "took part", "never took part")
    )
    it = replace(lived, rounds=spent, measured=measured)
    made = tables.tables(it)
    told = replace(tables.summary(it, made), mode="buffered", delta=1e-10)
    page = fleet_report.render("fleet", told, made)
    assert f"epsilon {lived.rounds[-1].round + 0.5}" in page
    assert "The server sees each of them." in page
    assert 'id="epsilon-title"' in page
    assert 'id="staleness-title"' in page
    assert 'id="accuracy-title"' in page
    assert "<td>never took part</td><td>4</td><td>10</td><td>30.0</td>" in page


@pytest.mark.parametrize("seconds", [0.0, 60.0, 8 * 86_400.0])
def test_a_fleet_to_which_nothing_happened_has_a_page(lived, tmp_path, seconds):
    nothing = np.zeros(0, turns.TURN)
    it = replace(lived, seconds=seconds, turns=nothing, rounds=(), check_ins={}, at_work=0)
    page = page_of(it, tmp_path)
    assert "No round came to an end" in page
    assert "nan" not in page.lower().replace("tenant", "")


def test_one_device_has_a_page(tmp_path):
    alone = replace(SETTINGS, population=replace(SETTINGS.population, devices=1), days=0.01)
    fleet = begin(alone, tmp_path / "fleet")
    fleet.run(864)
    page = page_of(tables.lived(fleet), tmp_path)
    fleet.servers.close()
    assert "1 phone lived" in page


def test_names_are_shown_and_never_obeyed(lived, tmp_path):
    classes = tuple(replace(each, name="<b>&") for each in lived.shared.population.classes)
    population = replace(lived.shared.population, classes=classes)
    page = page_of(replace(lived, shared=replace(lived.shared, population=population)), tmp_path)
    assert "class: &lt;b&gt;&amp;" in page
    assert "<b>&" not in page.replace("<b>&#", "")


def test_somebody_elses_page_is_left_alone(lived, tmp_path):
    tables.write(lived, tmp_path)
    (tmp_path / "report.html").write_text("<title>My diary</title>")
    with pytest.raises(RunError, match="something else than a report"):
        fleet_report.build(tmp_path)
    assert (tmp_path / "report.html").read_text() == "<title>My diary</title>"


def test_a_folder_without_figures_is_one_clear_error(tmp_path):
    assert not fleet_report.is_fleet(tmp_path)
    with pytest.raises(RunError, match=r"summary\.json"):
        fleet_report.build(tmp_path)


def test_thousands_of_rounds_are_drawn_by_stretches_of_time(lived, tmp_path):
    one = next(each for each in lived.rounds if each.assigned)
    many = tuple(
        replace(one, round=1 + number, opened_at=one.opened_at + 100 * number)
        for number in range(5000)
    )
    assert len(page_of(replace(lived, rounds=many), tmp_path)) < 400_000


def test_a_fleet_and_its_rounds_can_be_shown_in_a_terminal(lived, tmp_path):
    told = tables.write(lived, tmp_path)
    _, read = figures.read(tmp_path)
    assert fleet_show.heading(told)[0].startswith("40 devices, ")
    fates, never, rounds = fleet_show.fleet(read)
    assert fates.rows[0][:2] == ["counted", ""]
    assert never.rows[0][:2] == ["all", "40"]
    assert len(rounds.rows) == len(lived.rounds)
    for shown in (fates, never, rounds):
        assert {len(row) for row in shown.rows} == {len(shown.columns)}


def test_a_round_is_shown_turn_by_turn(lived, tmp_path):
    tables.write(lived, tmp_path)
    _, read = figures.read(tmp_path)
    one = next(each for each in lived.rounds if each.counted)
    devices = tables.of_round(lived.turns, lived.shared.population, one.round)
    *_, each = fleet_show.round_of(read, devices, one.round)
    assert len(each.rows) >= one.counted
    assert {len(row) for row in each.rows} == {len(each.columns)}
    assert [row[-2] for row in each.rows].count("counted") == one.counted
    with pytest.raises(RunError, match="found 99"):
        fleet_show.round_of(read, devices, 99)


def test_check_ins_and_work_are_drawn_to_scales_of_their_own():
    table = {
        "step": ["asked", "assigned", "assigned", "fetched", "fetched"],
        "cause": ["", "round_full", "", "in_use", ""],
        "count": [100, 50, 10, 5, 5],
    }
    drawn = [(bar.label, bar.share, bar.lost) for bar in fleet_report.funnel(table)]
    assert drawn == [
        ("asked (check-ins)", 1.0, False),
        ("round full", 0.5, True),
        ("got work", 1.0, False),
        ("in use", 0.5, True),
        ("fetched", 0.5, False),
    ]

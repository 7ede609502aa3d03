"""The studies of fleets: what is compared, how it goes on after a kill, and what is told of it."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.fleet_studies import drawing, fleets, rules, standins, words
from benchmarks.fleet_studies.standins import STUDIES, Case
from device_runtime.text import FIRST_WORD
from device_runtime.wire import Phase
from fleet import population
from fleet.population import Lives, PopulationSettings
from fleet.simulate import Fleet
from fleet.tables import Lived
from fleet.typed import Typed

TOY = replace(
    fleets.with_rules(fleets.COMMON, report_goal=3, min_reports=3, selection_s=600.0, rounds=2),
    days=0.5,
    population=PopulationSettings(devices=12, lives=Lives.ALWAYS),
)


def test_a_fleet_that_has_lived_is_not_lived_again(tmp_path):
    folder = tmp_path / "fleet"
    with fleets.lived(TOY, folder) as fleet:
        once = fleets.what_became(fleet, folder)
    with fleets.lived(TOY, folder) as fleet:
        fleet.run = None  # it would have to live
        again = fleets.what_became(fleet, folder)
    assert len(once.turns) > 0
    assert again.turns.tobytes() == once.turns.tobytes()
    assert again.rounds == once.rounds


def test_a_fleet_that_was_stopped_goes_on_to_the_same_turns(tmp_path, monkeypatch):
    with fleets.lived(TOY, tmp_path / "whole") as fleet:
        whole = fleets.what_became(fleet, tmp_path / "whole")
    monkeypatch.setattr(fleets, "EVERY_S", 0.0)
    monkeypatch.setattr(fleets, "SHOWN_S", 0.0)
    folder, steps = tmp_path / "stopped", []

    def stop(fleet: Fleet) -> None:
        steps.append(fleet.state.step)
        if len(steps) == 100:
            raise Stop

    with pytest.raises(Stop), fleets.lived(TOY, folder, show=stop):
        pass
    with fleets.lived(TOY, folder, show=lambda fleet: steps.append(fleet.state.step)) as fleet:
        again = fleets.what_became(fleet, folder)
    assert 0 < steps[100] <= steps[99] + 1  # it did not begin anew
    assert again.turns.tobytes() == whole.turns.tobytes()


class Stop(Exception):
    """A process ends here."""


def test_a_fleet_of_other_settings_begins_anew(tmp_path):
    folder = tmp_path / "fleet"
    with fleets.lived(TOY, folder) as fleet:
        assert committed(fleets.what_became(fleet, folder)) == 2
    with fleets.lived(fleets.with_rules(TOY, rounds=1), folder) as fleet:
        assert committed(fleets.what_became(fleet, folder)) == 1


def committed(it: Lived) -> int:
    return sum(each.phase is Phase.COMMITTED for each in it.rounds)


def test_a_folder_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(FileExistsError), fleets.lived(TOY, tmp_path):
        pass
    assert (tmp_path / "letter.txt").read_text() == "dear reader"


def test_figures_of_a_study_are_those_of_its_rounds(tmp_path):
    figures = standins.one(Case("toy", TOY), tmp_path / "fleet")
    with fleets.lived(TOY, tmp_path / "fleet") as fleet:
        it = fleets.what_became(fleet, tmp_path / "fleet")
    assert figures["rounds"] == committed(it) == 2
    assert figures["updates"] == sum(each.counted for each in it.rounds)
    assert figures["turns"] == len(it.turns) >= figures["updates"]
    assert figures["behind"] == 0


def test_slow_uplinks_send_so_many_times_as_slowly(tmp_path):
    slow = standins.with_slow_uplinks(TOY, 200.0, tmp_path / "people")
    before = population.make(TOY.population, 1, TOY.seed)
    after = population.load(tmp_path / "people")
    assert np.allclose(after.up * 200, before.up)
    assert np.array_equal(after.down, before.down)
    assert slow.population.folder == str(tmp_path / "people")


@pytest.mark.parametrize("name", STUDIES)
def test_the_fleets_of_a_study_differ_from_each_other(name):
    cases = STUDIES[name].cases(fleets.COMMON)
    assert len({case.name for case in cases}) == len(cases)
    assert len({(case.settings, case.uplink) for case in cases}) == len(cases)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_table_and_a_picture(name, tmp_path):
    study = STUDIES[name]
    figures = {figure: 2.0 for figure, _ in study.shown} | {"turns": 7}
    rows = [
        {"case": case.name, "seed": seed, **figures}
        for case in study.cases(fleets.COMMON)
        for seed in (0, 1)
    ]
    told = standins.table(study, rows)
    assert all(f"| {case.name} | 2.0 |" in told for case in study.cases(fleets.COMMON))
    assert "| 14 |" in told  # turns of both seeds
    drawing.study(study, rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_looser_rule_waits_for_less():
    training = fleets.COMMON.training
    strict, loose = (rules.settings(rules.Size(), training, rule, 0) for rule in rules.RULES)
    assert strict.needed & ~loose.needed
    assert replace(loose, vouched=()) == strict


def rows_of(messages: int) -> np.ndarray:
    """So many messages of one common word and one rare one."""
    return np.tile(np.array([1, FIRST_WORD, FIRST_WORD + 500], np.int32), (messages, 1))


def test_only_those_who_speak_the_dialect_type_in_it():
    typed = words.dealt(Typed.of([rows_of(150)]), np.array([False, True]), seed=0)
    plain, dialect = (typed.rows[typed.first_row[user]] for user in (0, 1))
    assert plain.tolist() == [1, FIRST_WORD, FIRST_WORD + 500]
    assert dialect.tolist() == [1, FIRST_WORD + 1, FIRST_WORD + 500]
    assert typed.messages.tolist() == [words.STRETCH, words.STRETCH]


def test_the_dialect_of_the_dialect_is_what_was_said():
    said = np.arange(FIRST_WORD + words.EXCHANGED + 3)
    assert np.array_equal(words.in_dialect(words.in_dialect(said)), said)


def test_scores_count_the_words_that_are_held_back():
    typed = words.dealt(Typed.of([rows_of(100)]), np.array([False]), seed=0)
    held = len(typed.held(0, 100, frozenset(), words.SCORED)[0])
    scores = words.scores(always_says(FIRST_WORD), typed, np.array([0]))
    assert held > 0
    assert (scores.targets, scores.top1) == (2 * held, held)  # two words a message


def always_says(word: int) -> dict[str, np.ndarray]:
    """Weights of a network of two cells that finds one word likeliest, whatever came before."""
    words_, width = FIRST_WORD + 501, 2
    shapes = {
        "cell_bias": (3 * width,),
        "embedding": (words_, width),
        "input_kernel": (3 * width, width),
        "output_bias": (words_,),
        "projection": (width, width),
        "recurrent_kernel": (3 * width, width),
    }
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    weights["output_bias"][word] = 5.0
    return weights
